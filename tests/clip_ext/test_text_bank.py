import logging

import pytest
import torch

from clip_ext.loader import build_clip
from clip_ext.text_bank import build_text_bank, class_prototypes, load_texts

NAMES = ["tree_frog", "cat"]
TEMPLATES = ["a photo of a {}.", "a drawing of a {}."]
DESCRIPTIONS = {
    "Tree Frog": ["a green animal that climbs", "a frog with round toes", "a small frog on a leaf", "a frog in a tree"],
    "cat": ["a furry animal that purrs", "a pet with whiskers"],
}


def small_clip(seed=0, **options):
    text = {"context_length": 24, "vocab_size": 4514, "width": 32, "heads": 2, "layers": 2}
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    config = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text} | options
    return build_clip(config, name="small", seed=seed)


@pytest.fixture(scope="module")
def clip():
    return small_clip()


def count_forwards(clip, build):
    """Run `build` and return how often the text transformer ran."""
    calls = []
    handle = clip.model.transformer.register_forward_hook(lambda *args: calls.append(1))
    build()
    handle.remove()
    return len(calls)


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("lafter", [*DESCRIPTIONS["cat"], "a photo of a cat.", "a drawing of a cat."]),
        ("cls_only", ["cat"]),
        ("single", ["this is a cat"]),
        ("templates_only", ["a photo of a cat.", "a drawing of a cat."]),
        ("descriptions_only", DESCRIPTIONS["cat"]),
    ],
)
def test_modes_compose_their_texts(clip, mode, expected):
    bank = build_text_bank(clip, NAMES, TEMPLATES, DESCRIPTIONS, mode=mode, zeroshot_template="this is a {}")
    assert [text for text, label in zip(bank.texts, bank.labels, strict=True) if label == 1] == expected
    assert bank.features.shape == (len(bank.texts), 20) and bank.classnames == tuple(NAMES)


def test_underscores_become_spaces_unless_kept(clip):
    assert build_text_bank(clip, NAMES, mode="cls_only").texts == ("tree frog", "cat")
    assert build_text_bank(clip, NAMES, mode="cls_only", keep_underscores=True).texts == ("tree_frog", "cat")


def test_features_are_unit_norm_fp32_and_ordered(clip):
    bank = build_text_bank(clip, NAMES, TEMPLATES, DESCRIPTIONS)
    assert bank.labels.tolist() == [0] * 6 + [1] * 4
    assert bank.features.dtype == torch.float32 and not bank.features.requires_grad
    expected = clip.model.encode_text(clip.tokenizer(list(bank.texts)), normalize=True)
    assert torch.allclose(bank.features, expected, atol=1e-6)


def test_defect_22_balanced_weights_give_classes_equal_sums(clip):
    bank = build_text_bank(clip, NAMES, TEMPLATES, DESCRIPTIONS)
    assert bank.weights.mean().item() == pytest.approx(1)
    assert bank.weights[bank.labels == 0].sum().item() == pytest.approx(5)
    assert bank.weights[bank.labels == 1].sum().item() == pytest.approx(5)
    assert build_text_bank(clip, NAMES, TEMPLATES, DESCRIPTIONS, balance=False).weights.tolist() == [1.0] * 10


def test_defect_22_clean_drops_junk_and_can_be_switched_off(clip):
    dirty = {"tree frog": ["1.", "a frog in a tree", "a frog in a tree"], "cat": ["a pet with whiskers"]}
    clean = build_text_bank(clip, NAMES, descriptions=dirty, mode="descriptions_only")
    assert clean.texts == ("a frog in a tree", "a pet with whiskers")
    assert len(build_text_bank(clip, NAMES, descriptions=dirty, mode="descriptions_only", clean=False).texts) == 4


def test_missing_descriptions_are_all_listed(clip):
    with pytest.raises(ValueError, match="2 of 3 classes have no description: tree_frog, newt.*TEXT.ON_MISSING"):
        build_text_bank(clip, [*NAMES, "newt"], TEMPLATES, {"cat": ["a pet with whiskers"], "tree frog": ["1."]})


def test_without_descriptions_lafter_uses_templates_with_one_notice(clip, caplog):
    caplog.set_level(logging.INFO)
    bank = build_text_bank(clip, NAMES, TEMPLATES, mode="lafter")
    assert bank.texts == build_text_bank(clip, NAMES, TEMPLATES, mode="templates_only").texts
    assert caplog.text.count("no descriptions are given") == 1
    with pytest.raises(ValueError, match="2 of 2 classes have no description"):
        build_text_bank(clip, NAMES, TEMPLATES, mode="descriptions_only")


def test_two_classes_of_one_name_are_an_error_naming_both_labels(clip):
    names = ["missile", "cat", "Missile", "dog", "dog"]
    with pytest.raises(ValueError, match="labels 0 and 2 .*'Missile'.*labels 3 and 4 .*'dog'"):
        build_text_bank(clip, names, TEMPLATES)
    with pytest.raises(ValueError) as error:
        build_text_bank(clip, names, TEMPLATES, known_twins=["missile"])
    assert "labels 3 and 4" in str(error.value) and "labels 0 and 2" not in str(error.value)


def test_known_twins_give_a_notice_and_both_get_the_same_texts(clip, caplog):
    descriptions = {"missile": ["a missile on a launch pad", "too short"], "cat": ["a pet with whiskers"]}
    bank = build_text_bank(clip, ["missile", "cat", "missile"], TEMPLATES, descriptions, known_twins=["Missile"])
    assert "labels 0 and 2 bear the same class name 'missile'" in caplog.text
    texts = ["a missile on a launch pad", "a photo of a missile.", "a drawing of a missile."]
    assert [[text for text, label in zip(bank.texts, bank.labels, strict=True) if label == k] for k in (0, 2)] == [texts] * 2


@pytest.mark.parametrize("mode, n_texts", [("lafter", 4), ("descriptions_only", 1)])
def test_on_missing_templates_fills_classes_without_descriptions(clip, mode, n_texts, caplog):
    caplog.set_level(logging.INFO)
    descriptions = {"cat": ["a pet with whiskers"], "unicorn": ["a horse with a horn"]}
    bank = build_text_bank(clip, NAMES, TEMPLATES, descriptions, mode=mode, on_missing="templates")
    assert [text for text, label in zip(bank.texts, bank.labels, strict=True) if label == 0] == [
        "a photo of a tree frog.",
        "a drawing of a tree frog.",
    ]
    assert "1 classes have no description and use templates alone: tree_frog" in caplog.text
    assert "1 names that are no class are not used: unicorn" in caplog.text
    assert "tree_frog 2, cat" in caplog.text


def test_descriptor_format_frames_short_descriptors(clip):
    bank = build_text_bank(
        clip, NAMES, TEMPLATES, {"tree frog": ["round toes"], "cat": ["whiskers"]}, mode="descriptions_only",
        descriptor_format="a photo of a {class}, which has {descriptor}.",
    )  # fmt: skip
    assert bank.texts == ("a photo of a tree frog, which has round toes.", "a photo of a cat, which has whiskers.")


def test_wrong_arguments_are_reported_together(clip):
    with pytest.raises(ValueError) as error:
        build_text_bank(clip, ["cat", "dog", "Cat"], mode="laftr", on_missing="skip", descriptor_format="{class}")
    for part in ("TEXT.MODE is 'laftr'", "TEXT.ON_MISSING is 'skip'", "TEXT.DESCRIPTOR_FORMAT", "labels 0 and 2"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="TEXT.TEMPLATES is empty"):
        build_text_bank(clip, NAMES, mode="lafter", descriptions=DESCRIPTIONS)


def test_defect_24_truncated_texts_are_counted_with_examples(clip, caplog):
    long = {"tree frog": [f"a frog {i} " + "with toes " * 30 for i in range(4)], "cat": ["a pet with whiskers"]}
    build_text_bank(clip, NAMES, descriptions=long, mode="descriptions_only")
    assert "4 of 5 texts are longer than 24 tokens" in caplog.text
    assert "a frog 2" in caplog.text and "a frog 3" not in caplog.text


def test_second_build_makes_no_text_forward(clip, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    banks = []

    def build():
        banks.append(build_text_bank(clip, NAMES, TEMPLATES, DESCRIPTIONS, cache_dir=tmp_path))

    assert count_forwards(clip, build) == 1
    assert "text features: cache miss" in caplog.text and "cache hit" not in caplog.text
    assert count_forwards(clip, build) == 0
    assert "text features: cache hit" in caplog.text
    assert torch.equal(banks[0].features, banks[1].features) and banks[0].key == banks[1].key
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_defect_15_anything_that_changes_a_feature_misses_the_cache(clip, tmp_path):
    def key(clip=clip, templates=TEMPLATES, descriptions=DESCRIPTIONS, names=NAMES):
        return build_text_bank(clip, names, templates, descriptions, cache_dir=tmp_path).key

    changed_sentence = DESCRIPTIONS | {"cat": ["a furry animal that purrs", "a pet with claws"]}
    other_dtype = small_clip()
    other_dtype.model.to(torch.bfloat16)
    keys = {
        key(),
        key(clip=small_clip(seed=1)),
        key(clip=other_dtype),
        key(clip=small_clip(text_cfg={"context_length": 23, "vocab_size": 4514, "width": 32, "heads": 2, "layers": 2})),
        key(clip=small_clip(quick_gelu=True)),
        key(templates=["a photo of a {}.", "a sketch of a {}."]),
        key(descriptions=changed_sentence),
        key(names=NAMES[::-1]),
    }
    assert len(keys) == len(list(tmp_path.iterdir())) == 8


def test_cache_is_shared_by_banks_that_differ_in_weights_only(clip, tmp_path):
    build_text_bank(clip, NAMES, TEMPLATES, DESCRIPTIONS, cache_dir=tmp_path)
    unbalanced = build_text_bank(clip, NAMES, TEMPLATES, DESCRIPTIONS, cache_dir=tmp_path, balance=False)
    assert unbalanced.weights.tolist() == [1.0] * 10
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_corrupt_cache_file_is_rebuilt_with_a_notice(clip, tmp_path, caplog, damage):
    good = build_text_bank(clip, NAMES, TEMPLATES, DESCRIPTIONS, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-40], "flipped": content[:-40] + b"\x7f" * 40, "empty": b""}[damage])
    again = build_text_bank(clip, NAMES, TEMPLATES, DESCRIPTIONS, cache_dir=tmp_path)
    assert "is rebuilt" in caplog.text
    assert torch.equal(again.features, good.features)
    assert path.read_bytes() == content


def test_class_prototypes_are_normalised_class_means(clip):
    bank = build_text_bank(clip, NAMES, TEMPLATES, DESCRIPTIONS)
    mean = bank.features[bank.labels == 1].mean(dim=0)
    assert torch.allclose(class_prototypes(bank)[1], mean / mean.norm(), atol=1e-6)


def test_every_shipped_digit_text_builds_a_balanced_bank(clip):
    texts = load_texts("handwritten_digits")
    bank = build_text_bank(clip, list(texts.descriptions), texts.templates, texts.descriptions)
    assert torch.equal(bank.weights, torch.ones(len(bank.texts)))
    assert bank.labels.bincount().tolist() == [len(bank.texts) // 10] * 10
