"""The names and the config tree that foreign trainers rely on, and what importing them leaves alone."""

from __future__ import annotations

import json

# Module paths -> names each of them must have.
SURFACE = {
    "dassl.engine dassl.engine.trainer": "TrainerX TrainerXU TrainerBase SimpleTrainer SimpleNet",
    "dassl.engine dassl.engine.build": "TRAINER_REGISTRY build_trainer",
    "dassl.data dassl.data.data_manager": "DataManager DatasetWrapper",
    "dassl.data.data_manager": "build_data_loader",
    "dassl.data.datasets dassl.data.datasets.base_dataset": "Datum DatasetBase",
    "dassl.data.datasets dassl.data.datasets.build": "DATASET_REGISTRY build_dataset",
    "dassl.data.transforms dassl.data.transforms.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.data.samplers": "build_sampler",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.lr_scheduler": "ConstantWarmupScheduler LinearWarmupScheduler build_lr_scheduler",
    "dassl.evaluation dassl.evaluation.evaluator": "Classification EvaluatorBase",
    "dassl.evaluation dassl.evaluation.build": "EVALUATOR_REGISTRY build_evaluator",
    "dassl.metrics": "compute_accuracy compute_distance_matrix cosine_distance euclidean_squared_distance",
    "dassl.metrics.accuracy": "compute_accuracy",
    "dassl.metrics.distance": "compute_distance_matrix cosine_distance euclidean_squared_distance",
    "dassl.config": "get_cfg_default clean_cfg cfg_default",
    "dassl.utils": "mkdir_if_missing listdir_nohidden read_json write_json check_isfile read_image load_checkpoint "
    "save_checkpoint resume_from_checkpoint load_pretrained_weights setup_logger set_random_seed collect_env_info "
    "count_num_param tolist_if_not MetricMeter AverageMeter Logger Registry check_availability download_url "
    "get_most_similar_str_to_a_from_b open_all_layers open_specified_layers init_network_weights",
    "dassl.utils.tools": "mkdir_if_missing read_json check_availability read_image set_random_seed",
    "dassl.utils.torchtools": "adjust_learning_rate set_bn_to_eval save_checkpoint load_checkpoint count_num_param",
    "dassl.utils.logger": "Logger setup_logger",
    "dassl.utils.meters": "AverageMeter MetricMeter",
    "dassl.utils.registry": "Registry",
    "dassl.modeling": "BACKBONE_REGISTRY HEAD_REGISTRY NETWORK_REGISTRY build_backbone build_head build_network Backbone",
    "dassl.modeling.backbone": "BACKBONE_REGISTRY Backbone build_backbone",
    "dassl.modeling.head": "HEAD_REGISTRY build_head mlp",
    "dassl.modeling.network": "NETWORK_REGISTRY build_network",
}

LIST_MISSING = """
import importlib, json, sys
missing = [
    f"{path}.{name}"
    for paths, names in json.loads(sys.argv[1]).items()
    for path in paths.split()
    for name in names.split()
    if not hasattr(importlib.import_module(path), name)
]
print(json.dumps(missing))
"""

HASH_CONFIG = """
import hashlib, json
from dassl.config import get_cfg_default

def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

def digest(tree):
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

flat = dict(leaves(get_cfg_default()))
print(len(flat), digest(flat), digest({key: type(value).__name__ for key, value in flat.items()}))
"""
VALUES_HASH = "1386f8b70934051649a074bb8cbe011f701b08e7f7311066fcd53ea0c4af747c"
TYPES_HASH = "f43c4f0924747f5ace5fedcc5db42bfd3a0b761a5d2b8ba7d287b7ed4b1f3df9"

IMPORT_QUIETLY = """
import logging, random, socket, sys
import numpy, torch

def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")

socket.socket = socket.create_connection = refuse
numpy_state = numpy.random.get_state()
before = random.getstate(), numpy_state[1].tolist(), numpy_state[2:], torch.get_rng_state().tolist()
import dassl.engine, dassl.data, dassl.evaluation, dassl.modeling
numpy_state = numpy.random.get_state()
assert before == (random.getstate(), numpy_state[1].tolist(), numpy_state[2:], torch.get_rng_state().tolist())
assert logging.root.manager.disable == 0 and not logging.root.handlers
loaded = {name.split(".")[0] for name in sys.modules} | set(sys.modules)
lazy = {"tensorboard", "torch.utils.tensorboard", "sklearn", "gdown", "six", "wilds", "transformers", "open_clip"}
assert not loaded & lazy, loaded & lazy
"""


def test_every_public_name_imports_at_every_listed_path(side, run_on):
    assert json.loads(run_on(side, LIST_MISSING, json.dumps(SURFACE)).splitlines()[-1]) == []


def test_config_tree_has_the_known_hashes(side, run_on):
    assert run_on(side, HASH_CONFIG).split() == ["135", VALUES_HASH, TYPES_HASH]


def test_import_of_the_engine_leaves_the_process_alone(run_on):
    run_on("bundled", IMPORT_QUIETLY)


def test_registries_start_with_what_is_built_in_and_operators_are_refused(run_on):
    code = """
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.evaluation import EVALUATOR_REGISTRY
from dassl.modeling import BACKBONE_REGISTRY, HEAD_REGISTRY, NETWORK_REGISTRY
registries = DATASET_REGISTRY, TRAINER_REGISTRY, BACKBONE_REGISTRY, NETWORK_REGISTRY, EVALUATOR_REGISTRY, HEAD_REGISTRY
print([name for registry in registries for name in registry.registered_names()])
for statement in "import dassl.modeling.ops", "from dassl.modeling.ops.utils import create_onehot":
    try:
        exec(statement)
    except ImportError as error:
        print(error)
"""
    names, *messages = run_on("bundled", code).splitlines()
    assert names == "['Classification', 'mlp']"
    assert len(messages) == 2
    assert all("not part of the bundled engine; install upstream Dassl" in message for message in messages)


def test_clean_cfg_keeps_name_and_the_trainers_own_node(side, run_on):
    code = """
from dassl.config import cfg_default, clean_cfg, get_cfg_default
cfg = get_cfg_default()
clean_cfg(cfg, "FixMatch")
print(sorted(cfg.TRAINER), len(cfg_default.TRAINER) > 2)
"""
    assert run_on(side, code).strip() == "['FIXMATCH', 'NAME'] True"
