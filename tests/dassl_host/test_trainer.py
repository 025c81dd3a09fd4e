"""SimpleTrainer, TrainerX and TrainerXU on the toy images: log lines, evaluation, errors."""

import re

import pytest
import torch
import toy_world
from dassl.engine import TRAINER_REGISTRY, SimpleNet, TrainerX, TrainerXU, build_trainer
from dassl.modeling import BACKBONE_REGISTRY, Backbone
from dassl.utils import set_random_seed
from torch import nn

BATCH_LINE = re.compile(
    r"^epoch \[\d+/\d+\] batch \[\d+/\d+\] time \d+\.\d{3} \(.+\) data .+ lr \d\.\d{4}e[+-]\d\d eta .+$"
)


@TRAINER_REGISTRY.register()
class PairedToy(TrainerXU):
    """Counts what the loop hands over."""

    def build_model(self) -> None:
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(toy_world.N_PIXELS, self.num_classes))
        self.register_model("pair", self.model, torch.optim.SGD(self.model.parameters(), lr=0.1))
        self.pairs: list[tuple[int, int]] = []

    def forward_backward(self, batch_x, batch_u):
        image, label, image_u = self.parse_batch_train(batch_x, batch_u)
        self.pairs.append((len(label), len(image_u)))
        loss = nn.functional.cross_entropy(self.model(image), label) + self.model(image_u).square().mean()
        self.model_backward_and_update(loss)


@BACKBONE_REGISTRY.register()
def flat_pixels(pretrained: bool = True, **kwargs) -> Backbone:
    class FlatPixels(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self._out_features = toy_world.N_PIXELS

        def forward(self, x):
            return x.flatten(1)

    return FlatPixels()


def strip_times(line: str) -> str:
    line = re.sub(r"(time|data) \d+\.\d{3} \(\d+\.\d{3}\)", r"\1 T", line)
    return re.sub(r"(eta|Elapsed:) \d+:\d\d:\d\d", r"\1 H", line)


def test_run_prints_the_fixed_lines_in_order(make_toy_cfg, capsys):
    trainer = toy_world.train_once(make_toy_cfg())
    lines = [strip_times(line) for line in capsys.readouterr().out.splitlines()]
    out = trainer.cfg.OUTPUT_DIR
    wanted = [
        "Loading trainer: NoisyToy", "Loading dataset: ToyColours", "Building transform_train", "Building transform_test",
        "Loading evaluator: Classification", "No checkpoint found, train from scratch",
        f"Initialize tensorboard (log_dir={out}/tensorboard)", f"Checkpoint saved to {out}/toy/model.pth.tar-2",
        "Finish training", "Deploy the last-epoch model", "Evaluate on the *test* set", "=> result", "* total: 6",
        "Elapsed: H",
    ]  # fmt: skip
    assert [line for line in lines if line in wanted] == wanted
    loss, lr = trainer.losses[0][2], "2.0000e-02"
    first = next(line for line in lines if line.startswith("epoch"))
    assert first.startswith(f"epoch [1/2] batch [1/3] time T data T loss {loss:.4f} ({loss:.4f}) acc ")
    assert first.endswith(f" lr {lr} eta H")


def test_batch_lines_match_the_contract_and_the_last_shows_the_next_lr(make_toy_cfg, capsys):
    toy_world.train_once(make_toy_cfg())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 6
    assert all(BATCH_LINE.match(line) for line in lines)
    assert [re.search(r"lr (\S+)", line)[1] for line in lines[:3]] == ["2.0000e-02", "2.0000e-02", "1.0000e-02"]


@pytest.mark.parametrize(("print_freq", "shown"), [(2, [2]), (4, [1, 2, 3]), (3, [3])])
def test_print_freq_chooses_the_batches(make_toy_cfg, capsys, print_freq, shown):
    toy_world.train_once(make_toy_cfg(**{"TRAIN.PRINT_FREQ": print_freq, "OPTIM.MAX_EPOCH": 1, "TEST.NO_TEST": True}))
    output = capsys.readouterr()
    assert [int(number) for number in re.findall(r"batch \[(\d+)/3\]", output.out)] == shown
    assert output.err == ""  # no progress bar away from a terminal


def test_scalars_are_running_averages_at_global_steps(make_toy_cfg, monkeypatch):
    written = []
    monkeypatch.setattr(TrainerX, "write_scalar", lambda self, *values: written.append(values))
    trainer = toy_world.train_once(make_toy_cfg())
    losses = [loss for epoch, _, loss in trainer.losses if epoch == 1]
    steps = [(step, value) for tag, value, step in written if tag == "train/loss" and step >= 3]
    assert [step for step, _ in steps] == [3, 4, 5]
    assert steps[-1][1] == pytest.approx(sum(losses) / 3)
    assert {tag for tag, _, _ in written} == {
        "train/loss", "train/acc", "train/lr", "test/accuracy", "test/error_rate", "test/macro_f1"
    }  # fmt: skip


def test_best_val_keeps_and_deploys_the_best_model(make_toy_cfg, capsys, tmp_path):
    trainer = toy_world.train_once(make_toy_cfg(**{"TEST.FINAL_MODEL": "best_val", "OPTIM.MAX_EPOCH": 3}))
    output = capsys.readouterr().out
    assert "Deploy the model with the best val performance" in output
    best = torch.load(tmp_path / "run/toy/model-best.pth.tar", weights_only=True)
    assert best["val_result"] == trainer.best_result == best["trainer_state"]["best_result"]
    assert re.search(rf"Load .*model-best.pth.tar to toy \(epoch={best['epoch']}, val_result=\d+\.\d\)", output)
    assert torch.equal(best["state_dict"]["2.weight"], trainer.model[2].weight)


def test_best_val_without_val_split_warns_once(make_toy_cfg, capsys):
    toy_world.train_once(make_toy_cfg(**{"TEST.FINAL_MODEL": "best_val", "DATASET.VAL_PERCENT": 0.0}))
    assert capsys.readouterr().out.count("no val split: best_val selects on TEST") == 1


def test_unknown_final_model_means_last_step(make_toy_cfg, capsys):
    toy_world.train_once(make_toy_cfg(**{"TEST.FINAL_MODEL": "last_val"}))
    assert "Deploy the last-epoch model" in capsys.readouterr().out


def test_test_returns_the_first_metric_and_chooses_the_split(make_toy_cfg, capsys):
    trainer = build_trainer(make_toy_cfg(**{"TEST.SPLIT": "val"}))
    accuracy = trainer.test()
    output = capsys.readouterr().out
    assert "Evaluate on the *val* set" in output
    assert f"* accuracy: {accuracy:.1f}%" in output
    assert not trainer.model.training
    trainer.test(split="test")
    assert "Evaluate on the *test* set" in capsys.readouterr().out


def test_load_model_last_step_missing_and_skipped(make_toy_cfg, capsys):
    trainer = toy_world.train_once(make_toy_cfg())
    fresh = build_trainer(trainer.cfg)
    capsys.readouterr()
    fresh.load_model(trainer.cfg.OUTPUT_DIR, epoch=2)
    assert "(epoch=2, val_result=n/a)" in capsys.readouterr().out
    assert torch.equal(fresh.model[2].weight, trainer.model[2].weight)
    with pytest.raises(FileNotFoundError, match=r"No model at .*model-best.*--load-epoch 2"):
        fresh.load_model(trainer.cfg.OUTPUT_DIR)
    fresh.load_model("")
    assert "Note that load_model() is skipped as no pretrained model is given" in capsys.readouterr().out


def test_run_without_any_optimizer_names_register_model(make_toy_cfg, monkeypatch):
    def build_model(self) -> None:
        self.model = nn.Linear(1, 1)
        self.register_model("toy", self.model)

    trainer_class = TRAINER_REGISTRY.get("NoisyToy")
    monkeypatch.setattr(trainer_class, "build_model", build_model)
    monkeypatch.setattr(trainer_class, "before_epoch", lambda self: None)
    monkeypatch.setattr(trainer_class, "forward_backward", lambda self, batch: None)
    with pytest.raises(RuntimeError, match="register_model"):
        toy_world.train_once(make_toy_cfg())


def test_build_trainer_suggests_the_nearest_name(make_toy_cfg):
    with pytest.raises(ValueError, match="NoisyToy"):
        build_trainer(make_toy_cfg("NoisyTony"))


def test_default_model_is_backbone_head_classifier(make_toy_cfg):
    cfg = make_toy_cfg(**{"MODEL.BACKBONE.NAME": "flat_pixels", "MODEL.HEAD.NAME": "mlp", "MODEL.HEAD.HIDDEN_LAYERS": (5,)})
    net = SimpleNet(cfg, cfg.MODEL, 3).eval()
    logits, features = net(torch.rand(2, 3, 8, 8), return_feature=True)
    assert (logits.shape, features.shape, net.fdim) == ((2, 3), (2, 5), 5)
    assert SimpleNet(cfg, cfg.MODEL, 0).classifier is None


@pytest.mark.parametrize(("count_iter", "expected"), [("train_x", 3), ("train_u", 1), ("smaller_one", 1)])
def test_xu_counts_pairs_and_restarts_the_shorter_loader(make_toy_cfg, capsys, count_iter, expected):
    cfg = make_toy_cfg("PairedToy", **{
        "DATASET.ALL_AS_UNLABELED": True, "TRAIN.COUNT_ITER": count_iter, "OPTIM.MAX_EPOCH": 1, "TEST.NO_TEST": True
    })  # fmt: skip
    set_random_seed(1)
    trainer = build_trainer(cfg)
    trainer.train()
    assert trainer.pairs == [(4, 4)] * expected
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == expected
    assert all(BATCH_LINE.match(line) for line in lines)


def test_xu_errors_name_data_set_and_key(make_toy_cfg):
    with pytest.raises(ValueError, match="DATASET.NAME 'ToyColours' has no train_u"):
        build_trainer(make_toy_cfg("PairedToy")).train()
    cfg = make_toy_cfg("PairedToy", **{"DATASET.ALL_AS_UNLABELED": True, "TRAIN.COUNT_ITER": "foo"})
    with pytest.raises(ValueError, match="TRAIN.COUNT_ITER is 'foo'; expected one of train_x, train_u, smaller_one"):
        build_trainer(cfg).train()
