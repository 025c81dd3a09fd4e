"""Emotion6: 1,980 photos from Flickr, 330 for each of six search words, with the votes of several people each.

Source: K.-C. Peng, T. Chen, A. Sadovnik, A. Gallagher, "A Mixed Bag of Emotions: Model, Predict, and Transfer Emotion
Distributions", CVPR 2015. The split of 1,386 and 594 images came with the same authors' EmotionROI (ICIP 2016).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY

from clip_ext.label_ring import EMOTION6_RING
from datasets.emotion import EmotionDataset
from datasets.emotion_files import Picture, find_entry, join_votes, list_class_folders
from datasets.image_files import read_text, some
from datasets.vote_tables import emotion_name, read_vote_table

INDEX_FILES = {"train": "training_testing_split/training.txt", "test": "training_testing_split/testing.txt"}


@DATASET_REGISTRY.register()
class Emotion6(EmotionDataset):
    """Six classes. The label is the search word, that is the folder; the votes' arg-max is another one for many images.

    The seventh vote, neutral, is dropped and the rest normalised, unless DATASET.WITH_NEUTRAL makes it a class.
    """

    dataset_dir = "emotion6"
    layout = "images/<emotion>/*.jpg and ground_truth.txt or Emotion6.json"
    classes = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
    emotion_ring = EMOTION6_RING
    published_size = 1980
    has_votes = True
    may_have_neutral = True
    test_share = 0.3
    official_files = " and ".join(INDEX_FILES.values())

    def read_pictures(self) -> list[Picture]:
        source = self.require("ground_truth.txt", "Emotion6.json")
        if source.suffix.lower() == ".json":
            return read_json(source, self.classes, skip_absent=self.settings.SKIP_BROKEN)
        images = self.require("images")
        votes = read_vote_table(source, self.classes, delimiter="\t")
        pictures = list_class_folders(images, self.classes, self.folder)
        files = {_below(picture.name, images.name): picture for picture in pictures}
        return self.join_votes(files, {_below(name, images.name): row for name, row in votes.items()}, source)

    def read_official(self) -> Mapping[str, list[str]] | None:
        files = {part: find_entry(self.folder, name) for part, name in INDEX_FILES.items()}
        if None in files.values():
            return None
        images = self.require("images").name
        return {
            part: [f"{images}/{_below(line.split()[0], images)}" for line in read_text(file).splitlines() if line.strip()]
            for part, file in files.items()
        }


def _below(name: str, folder: str) -> str:
    """The name without a leading `folder/`; the files write it with and without."""
    first, _, rest = name.replace("\\", "/").partition("/")
    return rest if rest and first.casefold() == folder.casefold() else name.replace("\\", "/")


def read_json(file: Path, classes: tuple[str, ...], *, skip_absent: bool) -> list[Picture]:
    """Read the JSON form, {path: {"true_emotion": word, "emotions": {emotion: share}}}.

    Args:
        file: Its paths are relative to its folder, or to `images` in it.
        classes: Emotions to read, in label order; others in the file are left alone.
        skip_absent: DATASET.SKIP_BROKEN.
    Raises:
        ValueError: One for all entries that lack something (names them).
        FileNotFoundError: If images are absent.
    """
    try:
        content = json.loads(read_text(file))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected {{path: {{true_emotion, emotions}}}}")
    problems = [f"{path}: {problem}" for path, entry in content.items() if (problem := _problem_with_entry(entry, classes))]
    if problems:
        raise ValueError(f"{file} has {len(problems)} wrong entries: {some(problems)}")
    files, votes = {}, {}
    for path, entry in content.items():
        emotions = {emotion_name(name): value for name, value in entry["emotions"].items()}
        votes[path] = tuple(float(emotions[name]) for name in classes)
        found = find_entry(file.parent, path) or find_entry(file.parent, f"images/{path}")
        if found is not None:
            name = found.relative_to(file.parent).as_posix()
            files[path] = Picture(name, emotion_name(entry["true_emotion"]))
    return join_votes(files, votes, file, skip_absent=skip_absent)


def _problem_with_entry(entry: Any, classes: tuple[str, ...]) -> str:
    """What an entry lacks; "" if nothing."""
    if not isinstance(entry, dict) or not isinstance(entry.get("emotions"), dict):
        return f"{entry!r:.60}; expected true_emotion and emotions"
    if emotion_name(str(entry.get("true_emotion"))) not in classes:
        return f"true_emotion is {entry.get('true_emotion')!r}; expected one of {', '.join(classes)}"
    emotions = {emotion_name(name): value for name, value in entry["emotions"].items()}
    missing = [name for name in classes if not isinstance(emotions.get(name), (int, float))]
    return f"no number for {', '.join(missing)}" if missing else ""
