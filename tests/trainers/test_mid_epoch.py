"""A run killed inside an epoch and resumed equals one that was never interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dassl
import pytest
import torch
import toy_talker
from toy_talker import build, kill, make_cfg, train_in_pieces

from trainers.run_folder import RunFolder, check_resume

ROOT = Path(__file__).resolve().parents[2]
N_BATCHES = 11  # per epoch; saved after four and eight, as the windows are pairs and there are six of them


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """A run of two epochs that nothing interrupted."""
    (trainer,) = train_in_pieces(make_cfg(tmp_path_factory.mktemp("whole")), [])
    assert len(trainer.losses) == 2 * N_BATCHES and len(set(trainer.losses)) == 2 * N_BATCHES
    return trainer


def assert_goes_on(part, whole, first_batch: int) -> None:
    """Compare bit by bit: samples, losses and rates from a batch of the run on, weights and moments at the end."""
    assert part.seen == whole.seen[first_batch:]
    assert part.losses == whole.losses[first_batch:]
    assert part.rates == whole.rates[first_batch:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, part.model.state_dict()[name]), name
    moments = [p.optim.state_dict()["state"] for p in (part, whole)]
    assert all(torch.equal(moments[0][key]["exp_avg"], moments[1][key]["exp_avg"]) for key in moments[1])


# Batch of the run at which it is killed -> batch at which it goes on.
KILLS = {0: 0, 3: 0, 4: 4, 7: 4, 8: 8, 10: 8, 11: 11, 14: 11, 15: 15, 21: 19}


@pytest.mark.parametrize("kill_at", KILLS)
def test_killed_run_goes_on_at_the_latest_save(kill_at: int, whole, tmp_path: Path) -> None:
    part = train_in_pieces(make_cfg(tmp_path), [kill_at])[-1]
    assert_goes_on(part, whole, KILLS[kill_at])


def test_run_killed_again_and_again_and_once_right_after_resuming(whole, tmp_path: Path) -> None:
    pieces = train_in_pieces(make_cfg(tmp_path), [5, 4, 9, 18])
    assert [len(piece.losses) for piece in pieces] == [5, 0, 5, 10, 7]
    assert_goes_on(pieces[-1], whole, 15)


def test_workers_change_nothing_nor_does_their_number_after_resuming(whole, tmp_path: Path) -> None:
    straight = train_in_pieces(make_cfg(tmp_path / "straight", {"DATALOADER.NUM_WORKERS": 2}), [])[-1]
    assert_goes_on(straight, whole, 0)
    train = {0: make_cfg(tmp_path / "mixed"), 2: make_cfg(tmp_path / "mixed", {"DATALOADER.NUM_WORKERS": 2})}
    first = kill(train[0], 7)
    assert_goes_on(train_in_pieces(train[2], [])[-1], whole, 4)


@pytest.mark.parametrize("overrides", [
    {"TEST.NO_TEST": False, "TEST.FINAL_MODEL": "best_val", "TRAIN.CHECKPOINT_FREQ": 0},
    {".SCHEDULER_STEP": "epoch", ".WARMUP_RATIO": 0.5, ".GRAD_ACCUM": 1},
    {".GRAD_ACCUM": 3, ".SAVE_LATEST_PER_EPOCH": 50},
])  # fmt: skip
@pytest.mark.parametrize("kill_at", [7, 17])
def test_other_settings_resume_alike(kill_at: int, overrides: dict, tmp_path: Path) -> None:
    straight = train_in_pieces(make_cfg(tmp_path / "straight", overrides), [])[-1]
    part = train_in_pieces(make_cfg(tmp_path / "part", overrides), [kill_at])[-1]
    assert 0 < len(part.losses) < 2 * N_BATCHES
    assert_goes_on(part, straight, 2 * N_BATCHES - len(part.losses))
    assert part.best_result == straight.best_result


def test_a_run_without_a_seed_keeps_the_one_it_drew(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path, {"SEED": -1})
    first = kill(cfg, 6, seed=5)
    second = build(cfg, seed=6)
    assert second.mid_epoch.seed != first.mid_epoch.seed
    second.train()
    assert second.mid_epoch.seed == first.mid_epoch.seed
    assert second.seen[:2] == first.seen[4:6]


def test_the_epochs_own_file_replaces_the_latest_one(tmp_path: Path) -> None:
    folder, pointers = tmp_path / "toy_talker", []
    trainer = build(make_cfg(tmp_path))
    inner = trainer.forward_backward

    def step(batch):
        present = folder.is_dir() and (folder / "latest.pth.tar").exists()
        pointers.append(((folder / "checkpoint").read_text().strip() if folder.is_dir() else "", present))
        return inner(batch)

    trainer.forward_backward = step
    trainer.train()
    latest = ("latest.pth.tar", True)
    assert pointers == [("", False)] * 4 + [latest] * 7 + [("model.pth.tar-1", False)] * 4 + [latest] * 7
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "model.pth.tar-1", "model.pth.tar-2"]


def test_zero_saves_per_epoch_leaves_dassls_checkpoints_only(tmp_path: Path, whole) -> None:
    cfg = make_cfg(tmp_path, {".SAVE_LATEST_PER_EPOCH": 0})
    pieces = train_in_pieces(cfg, [9, 20])
    assert_goes_on(pieces[1], pieces[1], 0)
    assert [len(piece.losses) for piece in pieces] == [9, 20, N_BATCHES]
    assert_goes_on(pieces[-1], whole, N_BATCHES)


def test_latest_file_needs_no_pickle_and_counts_finished_epochs(tmp_path: Path) -> None:
    kill(make_cfg(tmp_path), 17)
    saved = torch.load(tmp_path / "toy_talker" / "latest.pth.tar", weights_only=True)
    assert saved["epoch"] == 1
    assert saved["trainer_state"]["extra"]["mid_epoch"] == {"seed": 1, "batches_done": 4, "num_batches": N_BATCHES}
    assert set(saved) == {"state_dict", "epoch", "optimizer", "scheduler", "val_result", "trainer_state"}


def test_killed_saves_are_harmless(whole, tmp_path: Path, monkeypatch) -> None:
    cfg, folder, replace = make_cfg(tmp_path), tmp_path / "toy_talker", os.replace
    for target, first_batch in (("latest.pth.tar", 0), ("checkpoint", 0), ("latest.pth.tar", 4), ("checkpoint", 4)):
        trainer, left = build(cfg), [1 if first_batch else 0]

        def replace_or_die(source, path, target=target, left=left):
            if Path(path) == folder / target:
                if not left[0]:
                    raise toy_talker.Killed
                left[0] -= 1
            replace(source, path)

        monkeypatch.setattr(os, "replace", replace_or_die)
        with pytest.raises(toy_talker.Killed):
            trainer.train()
        monkeypatch.undo()
        (folder / ".latest.pth.tar.99.part").write_bytes(b"left by a process that was shot")
        if first_batch:
            resumed = train_in_pieces(cfg, [])[-1]
            assert_goes_on(resumed, whole, 8 if target == "checkpoint" else first_batch)
            assert not list(folder.glob(".*.part"))
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        else:
            assert_starts_afresh(cfg)


def assert_starts_afresh(cfg) -> None:
    trainer = kill(cfg, 0)
    assert trainer.start_epoch == 0 and trainer.mid_epoch.position().batches_done == 0


def test_other_data_cannot_be_gone_on_with(tmp_path: Path, monkeypatch) -> None:
    trainer = kill(make_cfg(tmp_path), 5)
    monkeypatch.setattr(toy_talker, "N_TRAIN", 18)
    with pytest.raises(ValueError, match="latest.pth.tar was written with 11 batches per epoch, now there are 9"):
        build(make_cfg(tmp_path)).train()


def test_resume_flags_count_a_latest_file_as_a_checkpoint(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path)
    check_resume(cfg, "never")
    RunFolder(cfg, "train")
    (tmp_path / "config.yaml").write_text(cfg.dump(), "utf-8")
    with pytest.raises(FileNotFoundError, match="--resume must"):
        check_resume(cfg, "must")
    trainer = kill(cfg, 5)
    check_resume(cfg, "must")
    with pytest.raises(FileExistsError, match="--resume never"):
        check_resume(cfg, "never")
    check_resume(make_cfg(tmp_path, {".SAVE_LATEST_PER_EPOCH": 7, "DATALOADER.NUM_WORKERS": 1}), "auto")
    with pytest.raises(ValueError, match="TRAINER.TOYTALKER.GRAD_ACCUM: stored 2, now 4"):
        check_resume(make_cfg(tmp_path, {".GRAD_ACCUM": 4}), "auto")


def test_resume_folder_is_read_and_left_alone(whole, tmp_path: Path) -> None:
    first = kill(make_cfg(tmp_path / "first"), 9)
    second = train_in_pieces(make_cfg(tmp_path / "second", {"RESUME": str(tmp_path / "first")}), [])[-1]
    assert_goes_on(second, whole, 8)
    assert (tmp_path / "first" / "toy_talker" / "latest.pth.tar").is_file()


def test_upstream_dassl_resumes_inside_an_epoch_alike(whole, tmp_path: Path) -> None:
    checkout = os.environ.get("DASSL_UPSTREAM", "")
    if not checkout and getattr(dassl, "__bundled__", False):
        pytest.skip("no upstream Dassl: set DASSL_UPSTREAM to a checkout")
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests" / "trainers"), checkout]))
    env = {**os.environ, "DASSL_HOST": "upstream", "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = ["-m", "dassl_host", toy_talker.__file__, tmp_path / "run", tmp_path / "result.pt", "0", "7", "16"]
    done = subprocess.run([sys.executable, *map(str, words)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "result.pt", weights_only=True)
    assert found["seen"] == whole.seen[15:] and found["losses"] == whole.losses[15:]
    assert all(torch.equal(value, found["weights"][name]) for name, value in whole.model.state_dict().items())
