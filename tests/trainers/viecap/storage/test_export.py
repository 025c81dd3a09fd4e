"""Exported weights: which epochs, in which files, and what killed or repeated saves leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from trainers.viecap.storage import artifact
from trainers.viecap.storage.artifact import ArtifactFacts, find_artifact, read_record, write_artifact
from trainers.viecap.storage.export import Exporter, ExportPlan
from trainers.viecap.storage.weights import StoredWeights, load_weights

FACTS = ArtifactFacts(
    settings={"NUM_LAYERS": 2, "TOP_K": 3}, language_model={"name": "tiny_gpt2", "config": {}},
    clip={"name": "tiny12", "fingerprint": "f" * 64, "embed_dim": 8}, preprocessing={"image_size_px": 32}, stop_ids=(13, 7),
)  # fmt: skip


class Tied(nn.Module):
    """A model whose head is its embedding, as GPT-2's."""

    def __init__(self, fill: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.constant_(self.embedding.weight, fill)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_artifact(tmp_path, FACTS, save_tokenizer=lambda folder: (folder / "a.json").write_text("{}"), vocabulary=None,
                   keeps_epochs=False)  # fmt: skip
    return tmp_path


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "weights").glob("*"))


def value_of(run: Path, epoch: int | None = None) -> float:
    model = Tied(-1.0)
    load_weights(model, find_artifact(run).find_weights(epoch))
    return model.head.weight[0, 0].item()


def test_every_second_epoch_and_the_last_are_exported(run: Path) -> None:
    exporter = Exporter(run, ExportPlan(5, prefix="my_prefix", every=2))
    paths = [exporter.export(epoch, Tied(epoch), scores={"CIDEr": 10.0 * epoch}) for epoch in range(1, 6)]
    assert files(run) == ["my_prefix-001.safetensors", "my_prefix-003.safetensors", "my_prefix-004.safetensors"]
    assert [path is None for path in paths] == [True, False, True, False, False]
    record = read_record(run)
    assert [entry["scores"]["CIDEr"] for entry in record["epochs"]] == [10.0, 20.0, 30.0, 40.0, 50.0]
    assert (record["best"], record["last"]) == (None, 5)
    assert (value_of(run, 2), value_of(run)) == (2.0, 5.0)


def test_a_tied_head_is_stored_once(run: Path) -> None:
    path = Exporter(run, ExportPlan(1)).export(1, Tied(1.0))
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["embedding.weight"]
    assert path.name == "coco_prefix-000.safetensors"


def test_the_best_is_kept_whatever_the_plan_says(run: Path) -> None:
    exporter = Exporter(run, ExportPlan(6, every=5))
    for epoch in range(1, 6):
        if epoch in (1, 2):
            exporter.export(epoch, Tied(epoch), is_best=True)
        exporter.export(epoch, Tied(epoch))
    assert files(run) == [f"coco_prefix-00{number}.safetensors" for number in (1, 4)]
    record = read_record(run)
    assert (record["best"], record["last"]) == (2, 5)
    assert value_of(run) == 2.0
    assert [entry["epoch"] for entry in record["epochs"]] == [1, 2, 3, 4, 5]


def test_a_best_epoch_between_exports_goes_when_another_is_better(run: Path) -> None:
    exporter = Exporter(run, ExportPlan(8, every=4))
    exporter.export(1, Tied(1), is_best=True)
    exporter.export(1, Tied(1))
    assert files(run) == ["coco_prefix-000.safetensors"]
    exporter.export(2, Tied(2))
    assert files(run) == ["coco_prefix-000.safetensors"]
    exporter.export(3, Tied(3), is_best=True)
    assert files(run) == ["coco_prefix-002.safetensors"]


def test_an_epoch_is_written_once(run: Path) -> None:
    exporter = Exporter(run, ExportPlan(3))
    path = exporter.export(1, Tied(1.0), is_best=True)
    before = path.stat().st_mtime_ns
    assert exporter.export(1, Tied(9.0), scores={"CIDEr": 1.0}) == path
    assert path.stat().st_mtime_ns == before
    assert read_record(run)["best"] == 1
    # Another process, which went on from an earlier state, writes it again, and forgets what was learned after it.
    Exporter(run, ExportPlan(3)).export(2, Tied(2.0))
    Exporter(run, ExportPlan(3)).export(1, Tied(5.0))
    assert files(run) == ["coco_prefix-000.safetensors"]
    assert [entry["epoch"] for entry in read_record(run)["epochs"]] == [1]
    assert value_of(run) == 5.0


def test_weights_that_are_not_finite_are_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="not finite: embedding.weight"):
        Exporter(run, ExportPlan(1)).export(1, Tied(float("inf")))
    assert files(run) == []
    assert read_record(run)["epochs"] == []


def test_a_plan_that_cannot_be_followed_says_why(run: Path) -> None:
    with pytest.raises(ValueError) as caught:
        Exporter(run, ExportPlan(1, prefix="../x"))
    assert "PREFIX is '../x'" in str(caught.value)


def test_a_killed_save_leaves_the_old_weights(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Exporter(run, ExportPlan(3)).export(1, Tied(1.0))
    monkeypatch.setattr("trainers.viecap.storage.weights.save_file", _die)
    with pytest.raises(KeyboardInterrupt):
        Exporter(run, ExportPlan(3)).export(2, Tied(2.0))
    assert files(run) == ["coco_prefix-000.safetensors"]
    assert value_of(run) == 1.0


def _die(tensors: dict, path: Path, metadata: dict) -> None:
    Path(path).write_bytes(b"half")
    raise KeyboardInterrupt


# Reading ------------------------------------------------------------------------------------------------------------------


def test_weights_of_another_epoch_or_name_are_not_there(run: Path) -> None:
    Exporter(run, ExportPlan(2)).export(1, Tied(1.0))
    found = find_artifact(run)
    with pytest.raises(FileNotFoundError, match=r"no weights of epoch 7; finished epochs with weights: 1 \(coco_prefix-000"):
        found.find_weights(7)
    chosen = find_artifact(run / "weights" / "coco_prefix-000.safetensors")
    assert chosen.find_weights() == found.find_weights(1)
    (run / "weights" / "other.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="other.safetensors is not listed"):
        find_artifact(run / "weights" / "other.safetensors").find_weights()


def test_a_run_without_weights_says_so(run: Path) -> None:
    with pytest.raises(FileNotFoundError, match="finished epochs with weights: none"):
        find_artifact(run).find_weights()


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damaged_weights_are_refused(run: Path, damage: str) -> None:
    path = Exporter(run, ExportPlan(1)).export(1, Tied(1.0))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "flip" else content[:-3])
    with pytest.raises(ValueError, match="damaged"):
        load_weights(Tied(), StoredWeights(path, 1))


def test_weights_of_another_model_are_refused_with_every_difference(run: Path) -> None:
    path = Exporter(run, ExportPlan(1)).export(1, nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ValueError) as caught:
        load_weights(Tied(), StoredWeights(path, 1))
    assert "3 difference(s)" in str(caught.value)
    assert "missing tensor: embedding.weight" in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer/a.json", "viecap.json"])
def test_a_changed_artefact_is_refused(run: Path, name: str) -> None:
    (run / name).write_text("{1", encoding="utf-8")
    with pytest.raises(ValueError, match="damaged|not readable"):
        find_artifact(run)


def test_a_record_of_another_format_is_refused(run: Path) -> None:
    record = json.loads((run / artifact.RECORD).read_text("utf-8"))
    (run / artifact.RECORD).write_text(json.dumps(record | {"format": 9}), encoding="utf-8")
    with pytest.raises(ValueError, match="format 9; this version reads 'ViECap', format 1"):
        find_artifact(run)


def test_a_continued_run_keeps_its_epochs_and_a_fresh_one_does_not(run: Path) -> None:
    Exporter(run, ExportPlan(3)).export(1, Tied(1.0))
    for continued in (True, False):
        record = write_artifact(run, FACTS, save_tokenizer=lambda folder: None, vocabulary=None, keeps_epochs=continued)
        assert bool(record["epochs"]) is continued


def test_contradicting_keys_and_another_clip_are_listed() -> None:
    now = {"NUM_LAYERS": 4, "TOP_K": 9, "STOP": "eos"}
    assert artifact.find_setting_differences({"NUM_LAYERS": 2, "STOP": "period"}, now) == [
        "TRAINER.VIECAP.NUM_LAYERS: the run has 2, now 4",
        "TRAINER.VIECAP.STOP: the run has 'period', now 'eos'",
    ]


def test_a_vocabulary_comes_back_bitwise(tmp_path: Path) -> None:
    from trainers.viecap.storage.vocabulary_file import Vocabulary

    words = Vocabulary("coco_entities", ("dog", "traffic light", "zäh"), torch.randn(3, 8), True)
    write_artifact(tmp_path, FACTS, save_tokenizer=lambda folder: None, vocabulary=words, keeps_epochs=False)
    found = find_artifact(tmp_path).read_vocabulary()
    assert (found.name, found.names, found.ensemble) == (words.name, words.names, words.ensemble)
    assert torch.equal(found.embeddings, words.embeddings)
    assert find_artifact(tmp_path).record["vocabulary"] == {"name": "coco_entities", "size": 3, "ensemble": True}
