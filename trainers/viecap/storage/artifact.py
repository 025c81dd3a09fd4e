"""What a run leaves for use elsewhere: `OUT/viecap.json`, `OUT/tokenizer/`, `OUT/vocabulary.safetensors`, `OUT/weights/`.

With CLIP's own weights it is all that captioning needs: no hub, no corpus, no configuration file. Every file appears whole or
not at all, and the record names the others only when they are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_ext.file_hashes import hash_file
from clip_ext.files import replacing
from clip_ext.folders import replacing_folder
from trainers.run_facts import installed_versions
from trainers.viecap.storage.vocabulary_file import Vocabulary, read_vocabulary_file, write_vocabulary
from trainers.viecap.storage.weights import StoredWeights

if TYPE_CHECKING:
    from clip_ext.loader import LoadedClip

SYSTEM, FORMAT = "ViECap", 1
RECORD, TOKENIZER, VOCABULARY, WEIGHTS = "viecap.json", "tokenizer", "vocabulary.safetensors", "weights"
NODE = "TRAINER.VIECAP"
# Keys that say what the weights are; another value belongs to another model.
MODEL_KEYS = (
    "LANGUAGE_MODEL", "CLIP_PROJECT_LENGTH", "CONTINUOUS_PROMPT_LENGTH", "NUM_LAYERS", "NUM_HEADS", "NORMALIZE_PREFIX",
    "USING_HARD_PROMPT", "SOFT_PROMPT_FIRST", "ONLY_HARD_PROMPT", "MAX_NUM_OF_ENTITIES", "PROMPT_TEMPLATE_LENGTH", "STOP",
)  # fmt: skip


@dataclass(frozen=True)
class ArtifactFacts:
    """What a model is, beside its weights, in JSON's types.

    Attributes:
        settings: Keys below `TRAINER.VIECAP`, dotted -> values: prompts, mapping network, retrieval and decoding.
        language_model: `name`, as configured, and `config`, the whole configuration.
        clip: `name`, `fingerprint`, `embed_dim`.
        preprocessing: How pixels become CLIP's input.
        stop_ids: Tokens that end a caption.
    """

    settings: Mapping[str, Any]
    language_model: Mapping[str, Any]
    clip: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    stop_ids: Sequence[int]

    def to_record(self) -> dict[str, Any]:
        """Return the record's part."""
        names = ("settings", "language_model", "clip", "preprocessing")
        return {name: dict(getattr(self, name)) for name in names} | {"stop_ids": sorted(self.stop_ids)}


def clip_facts(clip: LoadedClip) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `ArtifactFacts` wants to know of a CLIP: the model, and its preprocessing."""
    info = clip.info
    model = {"name": info.name, "fingerprint": clip.fingerprint, "embed_dim": info.embed_dim}
    pixels = {"image_size_px": info.image_size_px, "interpolation": info.interpolation}
    return model, pixels | {"mean": list(info.mean), "std": list(info.std)}


# Writing --------------------------------------------------------------------------------------------------------------------


def write_artifact(
    run: Path, facts: ArtifactFacts, *, save_tokenizer: Callable[[Path], Any], vocabulary: Vocabulary | None, keeps_epochs: bool
) -> dict[str, Any]:
    """Write everything but weights; return the record.

    Args:
        run: Output folder of the run.
        facts: Of the model.
        save_tokenizer: Writes the language model's tokenizer into the folder it is given.
        vocabulary: For the hard prompt; None without one.
        keeps_epochs: Whether the run is continued, so that the weights already listed are its own.
    Raises:
        OSError: If a file cannot be written (names it).
    """
    epochs = {"epochs": [], "best": None, "last": None}
    if keeps_epochs and (run / RECORD).is_file():
        old = read_record(run)
        epochs = {name: old[name] for name in epochs}
    with replacing_folder(run / TOKENIZER) as folder:
        save_tokenizer(folder)
    written = sorted(path for path in (run / TOKENIZER).rglob("*") if path.is_file())
    if vocabulary is not None:
        write_vocabulary(run / VOCABULARY, vocabulary, facts.clip["fingerprint"])
        written.append(run / VOCABULARY)
    record = {
        "system": SYSTEM,
        "format": FORMAT,
        "versions": installed_versions(),
        **facts.to_record(),
        "vocabulary": None if vocabulary is None else _describe_vocabulary(vocabulary),
        "files": {path.relative_to(run).as_posix(): hash_file(path) for path in written},
        **epochs,
    }
    write_record(run, record)
    return record


def write_record(run: Path, record: Mapping[str, Any]) -> None:
    """Write viecap.json."""
    with replacing(run / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _describe_vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    return {"name": vocabulary.name, "size": len(vocabulary.names), "ensemble": vocabulary.ensemble}


# Reading --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Artifact:
    """A run's artefact as it was read.

    Attributes:
        path: Run folder.
        record: Content of viecap.json.
        chosen: Name of the weights file that was named itself, None if the run was.
    """

    path: Path
    record: Mapping[str, Any]
    chosen: str | None = None

    @property
    def tokenizer(self) -> Path:
        """Folder of the language model's tokenizer."""
        return self.path / TOKENIZER

    @property
    def settings(self) -> Mapping[str, Any]:
        """Keys below `TRAINER.VIECAP`, dotted -> values, as trained."""
        return self.record["settings"]

    def find_weights(self, epoch: int | None = None) -> StoredWeights:
        """Return the weights of an epoch.

        Args:
            epoch: Finished epochs, from 1; None: those that were named, else the best on validation, else the last.
        Raises:
            FileNotFoundError: If there are none (lists those present).
        """
        present = {
            entry["epoch"]: self.path / entry["file"]
            for entry in self.record["epochs"]
            if entry["file"] and (self.path / entry["file"]).is_file()
        }
        if epoch is None and self.chosen is not None:
            epoch = next((number for number, path in present.items() if path.name == self.chosen), 0)
        elif epoch is None:
            marked = (self.record["best"], self.record["last"])
            epoch = next((number for number in marked if number in present), max(present, default=0))
        if epoch not in present:
            listed = ", ".join(f"{number} ({path.name})" for number, path in present.items()) or "none"
            asked = f"{self.chosen} is not listed" if epoch == 0 and self.chosen else f"no weights of epoch {epoch}"
            raise FileNotFoundError(f"{self.path / RECORD}: {asked}; finished epochs with weights: {listed}")
        return StoredWeights(present[epoch], epoch)

    def read_vocabulary(self) -> Vocabulary | None:
        """Return the stored vocabulary, None for a run without a hard prompt."""
        return None if self.record["vocabulary"] is None else read_vocabulary_file(self.path / VOCABULARY)


def find_artifact(place: str | Path) -> Artifact:
    """Read the artefact of a run folder, or the one that a weights file belongs to, and check its small files.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a file is damaged or of another format.
    """
    path = Path(place)
    run, chosen = (path.parent.parent, path.name) if path.is_file() else (path, None)
    if not (run / RECORD).is_file():
        raise FileNotFoundError(f"{place} is no ViECap run: there is no {run / RECORD}")
    record = read_record(run)
    damaged = [name for name, digest in record["files"].items() if not _is_intact(run, name, digest)]
    if damaged:
        raise ValueError(f"{run}: damaged, changed or missing since it was written: {', '.join(damaged)}")
    return Artifact(run, record, chosen)


def is_artifact(place: str | Path) -> bool:
    """Return whether a run folder, or a weights file in it, has an artefact of this system."""
    path = Path(place)
    return ((path.parent.parent if path.is_file() else path) / RECORD).is_file()


def _is_intact(run: Path, name: str, digest: str) -> bool:
    path = run / name
    return path.is_file() and hash_file(path) == digest


def read_record(run: Path) -> dict[str, Any]:
    """Read viecap.json.

    Raises:
        ValueError: If it is damaged or of another format.
    """
    path = run / RECORD
    try:
        record = json.loads(path.read_text("utf-8"))
        found = record["system"], record["format"]
        for name in ("settings", "language_model", "clip", "preprocessing", "stop_ids", "files", "epochs", "best", "last"):
            record[name]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not readable: {type(error).__name__} {error}") from error
    if found != (SYSTEM, FORMAT):
        raise ValueError(f"{path} is {found[0]!r}, format {found[1]!r}; this version reads {SYSTEM!r}, format {FORMAT}")
    return record


# Comparing ------------------------------------------------------------------------------------------------------------------


def find_setting_differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one message per key of `MODEL_KEYS` that is given another value than the run's."""
    pairs = ((key, stored.get(key), now[key]) for key in MODEL_KEYS if key in now)
    return [f"{NODE}.{key}: the run has {old!r}, now {new!r}" for key, old, new in pairs if old != new]


def find_clip_differences(record: Mapping[str, Any], clip: LoadedClip) -> list[str]:
    """Return messages if a CLIP is not the one that a run learned with, weights and preprocessing."""
    model, pixels = clip_facts(clip)
    stored = record["clip"]
    problems = []
    if model["fingerprint"] != stored["fingerprint"]:
        problems.append(
            f"MODEL.BACKBONE.NAME is {model['name']!r} ({model['fingerprint'][:12]}, width {model['embed_dim']}); "
            f"the run learned with {stored['name']!r} ({stored['fingerprint'][:12]}, width {stored['embed_dim']})"
        )
    problems += [
        f"preprocessing.{key}: stored {old!r}, now {pixels.get(key)!r}"
        for key, old in record["preprocessing"].items()
        if pixels.get(key) != old
    ]
    return problems
