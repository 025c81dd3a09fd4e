"""The thirty defect classes of this kind of code, and the tests that fail when one of them comes back.

The list names functions, so that a test which is renamed or removed is missed here.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

# Defect -> what it is, and its tests.
DEFECTS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "a declared learnable that is not in the optimizer or does not change, or an undeclared one that does",
        (
            "trainers/test_all_trainers.py::test_only_declared_parameters_receive_gradients_and_all_of_them_change",
            "trainers/test_all_trainers.py::test_groups_hold_every_trainable_once_and_reach_the_optimizer",
            "trainers/test_presets.py::test_preset_runs_and_trains_what_it_declares",
        ),
    ),
    2: (
        "evaluation on another path than training",
        ("trainers/test_lafter_modes.py::test_defect_2_the_test_runs_the_path_of_training",),
    ),
    3: (
        "distributions paired by their place in the batch",
        ("trainers/lafter_parts/test_dual_task.py::test_defect_3_distributions_follow_their_image_through_a_shuffled_loader",),
    ),
    4: (
        "temperature dropped at inference",
        (
            "trainers/test_lafter_modes.py::test_defect_4_tested_distribution_has_the_training_temperature",
            "trainers/lafter_parts/test_dual_task.py::test_defect_4_prediction_keeps_the_temperature_and_reads_the_distributions_own_head",
        ),
    ),
    5: (
        "a module registered without optimizer or schedule",
        ("trainers/test_defects.py::test_defect_05_optimizer_and_schedule_are_registered_with_the_module",),
    ),
    6: (
        "a schedule without effect",
        (
            "trainers/test_schedules.py::test_defect_6_run_follows_its_schedule_per_group_and_epoch",
            "trainers/lafter_parts/test_stage_training.py::test_defect_6_rates_and_weights_of_resumed_runs_equal_the_straight_run",
        ),
    ),
    7: (
        "a tensor here, a tuple there",
        (
            "trainers/test_defects.py::test_defect_07_a_student_returns_one_kind_of_thing_in_every_mode",
            "clip_ext/test_towers.py::test_hf_tower_accepts_blocks_that_return_tuples",
        ),
    ),
    8: (
        "fp16 settings on fp32 weights, weights cast inside a forward pass",
        (
            "trainers/test_defects.py::test_defect_08_a_half_precision_step_leaves_every_weight_in_fp32",
            "trainers/test_defects.py::test_defect_08_zeroshot_in_fp16_loads_half_weights_and_feeds_them_half_images",
        ),
    ),
    9: ("distances that contradict the ring", ("clip_ext/test_label_ring.py::test_defect_9_distances_follow_the_ring",)),
    10: (
        "validation images in the test set, an epoch chosen by the test",
        (
            "trainers/test_defects.py::test_defect_10_test_images_are_read_once_and_when_all_is_chosen",
            "trainers/test_defects.py::test_defect_10_the_reported_test_maximum_chooses_nothing",
            "trainers/test_base.py::test_labelled_test_image_in_another_split_is_refused",
            "datasets/test_splits.py::test_stratified_split_has_the_shares_in_every_class_and_loses_nothing",
            "datasets/test_emotion.py::test_layout_gives_classes_sizes_and_disjoint_parts",
        ),
    ),
    11: ("percent of percent", ("trainers/test_defects.py::test_defect_11_accuracy_is_scikit_learns_in_percent",)),
    12: ("swallowed errors", ("test_tree_clean.py::test_defect_12_no_error_is_swallowed",)),
    13: (
        "a configured loss that is not in the total",
        (
            "trainers/lafter_parts/test_stage_training.py::test_defect_13_a_loss_weight_changes_the_loss_and_the_gradient",
            "trainers/test_all_trainers.py::test_first_step_has_a_finite_loss_that_is_the_sum_of_its_parts",
            "trainers/lafter_parts/test_dual_task.py::test_defect_13_every_key_of_the_loss_changes_the_gradient",
            "clip_ext/test_losses.py::test_defect_13_every_setting_of_a_loss_changes_the_gradient",
        ),
    ),
    14: (
        "a private name of another package",
        ("test_import_rules.py::test_defect_14_no_private_name_of_another_module_is_used",),
    ),
    15: (
        "a cache that misses no change but that of counts",
        (
            "clip_ext/test_text_bank.py::test_defect_15_anything_that_changes_a_feature_misses_the_cache",
            "trainers/lafter_parts/test_pseudo_teacher.py::test_label_key_covers_every_input",
        ),
    ),
    16: (
        "NaN of softmax().log()",
        (
            "clip_ext/test_losses.py::test_defect_16_large_logit_gaps_and_zero_targets_stay_finite",
            "clip_ext/test_losses.py::test_defect_16_two_heads_stay_finite",
            "trainers/lafter_parts/test_dual_task.py::test_defect_16_large_gaps_and_votes_with_zeros_stay_finite",
            "clip_ext/test_pseudo_labels.py::test_defect_16_one_hot_probabilities_and_empty_columns_stay_finite",
            "clip_ext/test_aggregation.py::test_nga_narrowest_sigma_stays_finite",
        ),
    ),
    17: (
        "weight decay on widths, fusion or scale",
        ("trainers/test_all_trainers.py::test_scalars_never_decay_even_with_ln_decay",),
    ),
    18: (
        "sizes typed in",
        (
            "trainers/test_defects.py::test_defect_18_every_size_is_read_from_the_tower",
            "clip_ext/test_vision.py::test_stage_prompts_and_taps_on_any_tower",
        ),
    ),
    19: (
        "squeeze() at one image or two classes",
        (
            "trainers/test_defects.py::test_defect_19_one_image_at_a_time_of_two_classes_trains_and_tests",
            "trainers/test_hybrid_cascade_lafter.py::test_defect_19_prediction_keeps_its_shape_at_batch_one_and_two_classes",
            "trainers/test_multilayer_lafter.py::test_defect_19_prediction_keeps_its_shape_at_batch_one_and_two_classes",
            "trainers/lafter_parts/test_dual_task.py::test_defect_19_one_image_of_two_classes_keeps_its_shape",
            "clip_ext/test_losses.py::test_defect_19_batch_of_one_and_two_classes_keep_their_shape",
            "clip_ext/test_heads.py::test_defect_19_classifier_keeps_every_leading_dimension",
            "clip_ext/test_pseudo_labels.py::test_defect_19_report_of_one_image_and_two_classes",
        ),
    ),
    20: (
        "reentrant checkpoints",
        (
            "trainers/test_defects.py::test_defect_20_checkpointed_blocks_give_every_parameter_its_gradient",
            "trainers/test_multilayer_lafter.py::test_defect_20_checkpointing_gives_the_same_gradients",
            "trainers/test_hybrid_cascade_lafter.py::test_defect_20_checkpointing_gives_the_same_gradients",
        ),
    ),
    21: ("a key twice in a YAML file", ("trainers/test_config_merge.py::test_read_yaml_with_repeated_keys_names_both_lines",)),
    22: (
        "junk or unequally many texts",
        (
            "clip_ext/test_text_files.py::test_defect_22_junk_sentences_are_dropped_and_counted",
            "clip_ext/test_text_bank.py::test_defect_22_clean_drops_junk_and_can_be_switched_off",
            "clip_ext/test_text_bank.py::test_defect_22_balanced_weights_give_classes_equal_sums",
            "clip_ext/test_heads.py::test_defect_22_balanced_weights_enter_the_loss",
        ),
    ),
    23: (
        "the wrong GELU",
        (
            "clip_ext/test_loader.py::test_load_openai_name_uses_quickgelu_and_openais_weights",
            "clip_ext/test_loader.py::test_load_clip_wrong_names",
        ),
    ),
    24: (
        "texts cut in silence",
        (
            "clip_ext/test_text_bank.py::test_defect_24_truncated_texts_are_counted_with_examples",
            "clip_ext/test_text_encoding.py::test_defect_24_over_long_texts_are_found_and_a_full_context_is_not",
        ),
    ),
    25: (
        "what no spawned worker can receive",
        (
            "trainers/test_defects.py::test_defect_25_what_a_spawned_worker_needs_can_be_pickled",
            "trainers/test_views.py::test_strong_view_is_picklable",
        ),
    ),
    26: (
        "a key that nothing reads",
        (
            "trainers/test_key_effects.py::test_defect_26_a_key_changes_something_or_raises",
            "trainers/test_key_effects.py::test_every_key_has_a_change_and_every_change_a_key",
            "trainers/test_config.py::test_every_key_is_read_by_code",
        ),
    ),
    27: (
        "prompts changed by the callee",
        (
            "trainers/test_multilayer_lafter.py::test_defect_27_prompts_that_are_handed_over_stay_as_they_are",
            "clip_ext/test_vision.py::test_prompt_mapping_of_the_caller_is_not_modified",
        ),
    ),
    28: (
        "zero gradients that decay what is frozen",
        ("trainers/test_multilayer_lafter.py::test_defect_28_progressive_run_moves_and_decays_exactly_the_open_parameters",),
    ),
    29: (
        "one stage, stages of one block",
        (
            "trainers/lafter_parts/test_stage_training.py::test_defect_29_one_stage_and_one_block_stages_have_nothing_to_weigh",
            "clip_ext/test_aggregation.py::test_nga_one_block_stages_are_the_identity_without_parameters",
            "clip_ext/test_losses.py::test_consistency_of_one_stage_is_zero_in_fp32",
        ),
    ),
    30: (
        "letters that cp1252 lacks in paths, labels or JSON",
        (
            "trainers/test_defects.py::test_defect_30_letters_that_a_cp1252_console_lacks_end_no_run",
            "test_tree_clean.py::test_defect_30_every_text_file_has_a_named_encoding",
            "test_predict.py::test_a_fresh_process_needs_neither_training_images_nor_texts",
        ),
    ),
}


@functools.cache
def functions_of(file: Path) -> frozenset[str]:
    """Names of the test functions of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def test_all_thirty_are_listed() -> None:
    assert list(DEFECTS) == list(range(1, 31))


@pytest.mark.parametrize("number", DEFECTS)
def test_every_listed_test_exists(number: int) -> None:
    assert DEFECTS[number][1]
    for node in DEFECTS[number][1]:
        file, name = node.split("::")
        assert name in functions_of(TESTS / file), node


def test_every_test_with_a_number_is_listed() -> None:
    listed = {node for _, nodes in DEFECTS.values() for node in nodes}
    named = {
        f"{file.relative_to(TESTS).as_posix()}::{name}"
        for file in TESTS.rglob("test_*.py")
        for name in functions_of(file)
        if name.startswith("test_defect_")
    }
    assert named - listed == set()
