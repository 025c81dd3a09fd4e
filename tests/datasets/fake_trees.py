"""Small trees in the published layouts of the emotion data sets: one function per set, each returns the data root.

All contents are made up. Every image has its own colour, so that no two files are equal, and every tree has every class.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

MIKELS = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
EKMAN = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
SIDE_PX = 16


def write_image(path: Path, number: int) -> Path:
    """Write a plain picture whose colour is `number`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Steps of 8 survive JPEG.
    Image.new("RGB", (SIDE_PX, SIDE_PX), (number % 32 * 8, number // 32 % 32 * 8, 128)).save(path, quality=95)
    return path


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def permuted(columns: Sequence[str], order: Sequence[int] | None) -> list[str]:
    return [columns[index] for index in order or range(len(columns))]


def emotion6_votes(emotion: str, number: int) -> dict[str, float]:
    """Shares of seven emotions; for odd numbers the folder's is not the largest."""
    shares = dict.fromkeys([*EKMAN, "neutral"], 0.05)
    shares[emotion] = 0.5 if number % 2 else 0.2
    shares["neutral"] = 0.2
    other = EKMAN[(EKMAN.index(emotion) + 1) % len(EKMAN)]
    shares[other] = 0.3 if number % 2 == 0 else 0.1
    return shares


def write_emotion6(
    root: Path, *, per_class: int = 10, form: str = "txt", official: bool = False, order: Sequence[int] | None = None
) -> Path:
    """emotion6/images/<emotion>/<n>.jpg, and the votes in `ground_truth.txt` or `Emotion6.json`.

    Args:
        root: Data root.
        per_class: Images per class.
        form: `txt` or `json`.
        official: Add the index files, with 7 of 10 images in training.txt.
        order: Order of the table's columns after the name.
    """
    folder = root / "emotion6"
    names = [(emotion, number) for emotion in EKMAN for number in range(1, per_class + 1)]
    for position, (emotion, number) in enumerate(names):
        write_image(folder / "images" / emotion / f"{number}.jpg", position)
    if form == "json":
        content = {
            f"images/{emotion}/{number}.jpg": {
                "true_emotion": emotion,
                "dominant_emotion": max(votes := emotion6_votes(emotion, number), key=votes.get),
                "emotions": votes,
            }
            for emotion, number in names
        }
        write_lines(folder / "Emotion6.json", [json.dumps(content)])
    else:
        columns = permuted(["valence", "arousal", *(f"prob. {name}" for name in (*EKMAN, "neutral"))], order)
        lines = ["\t".join(f"[{column}]" for column in ["image_filename", *columns])]
        for emotion, number in names:
            votes = {f"prob. {name}": share for name, share in emotion6_votes(emotion, number).items()}
            cells = {"valence": 2.5, "arousal": 3.8, **votes}
            lines.append("\t".join([f"{emotion}/{number}.jpg", *(f"{cells[column]:g}" for column in columns)]))
        write_lines(folder / "ground_truth.txt", lines)
    if official:
        split = folder / "training_testing_split"
        write_lines(split / "training.txt", [f"{emotion}/{number}.jpg" for emotion, number in names if number % 10 < 7])
        write_lines(split / "testing.txt", [f"{emotion}/{number}.jpg" for emotion, number in names if number % 10 >= 7])
    return root


def write_emoset(root: Path, *, per_class: int = 20, cells: int = 4) -> Path:
    """EmoSet-118K/ with 80, 5 and 15 % in its three JSON files.

    Args:
        root: Data root.
        per_class: Images per class, a multiple of 20.
        cells: Elements of a row, 3 or 4: public copies have both.
    """
    folder = root / "EmoSet-118K"
    parts: dict[str, list[list[str]]] = {"train": [], "val": [], "test": []}
    for position, emotion in enumerate(MIKELS):
        for number in range(per_class):
            stem = f"{emotion}_{number:05d}"
            write_image(folder / "image" / emotion / f"{stem}.jpg", position * per_class + number)
            write_lines(folder / "annotation" / emotion / f"{stem}.json", [json.dumps({"emotion": emotion})])
            row = [emotion, stem, f"image/{emotion}/{stem}.jpg", f"annotation/{emotion}/{stem}.json"]
            part = "val" if number % 20 == 0 else "test" if number % 20 < 4 else "train"
            parts[part].append(row if cells == 4 else [row[0], *row[2:]])
    for part, rows in parts.items():
        write_lines(folder / f"{part}.json", [json.dumps(rows)])
    labels = {name: index for index, name in enumerate(MIKELS)}
    write_lines(folder / "info.json", [json.dumps({"emotion": {"label2idx": labels}})])
    return root


def write_fi(root: Path, *, per_class: int = 20, placeholders: int = 0) -> Path:
    """FI/emotion_dataset/<Emotion>/*.jpg; the case of the folders varies, the first files may be one placeholder."""
    for position, emotion in enumerate(MIKELS):
        folder = root / "FI" / "emotion_dataset" / (emotion.title() if position % 2 else emotion)
        for number in range(per_class):
            placeholder = position == 0 and number < placeholders
            write_image(folder / f"{emotion}_{number:04d}.jpg", 0 if placeholder else position * per_class + number + 1)
    return root


def ldl_votes(number: int, voters: int) -> dict[str, int]:
    """Whole votes that sum to `voters`, most of them for class number % 8."""
    rng = random.Random(number)
    votes = dict.fromkeys(MIKELS, 0)
    votes[MIKELS[number % 8]] = voters - 3
    for _ in range(3):
        votes[rng.choice(MIKELS)] += 1
    return votes


def write_ldl(
    root: Path, name: str, *, voters: int, count: int = 80, order: Sequence[int] | None = None, trailing: bool = False
) -> Path:
    """<name>/images/<n>.jpg and the table with blanks between its cells; a trailing column if wanted."""
    folder = root / name
    columns = permuted([emotion.title() for emotion in MIKELS], order)
    end = " " if trailing else ""
    lines = [" ".join(["images-name", *columns]) + end]
    for number in range(1, count + 1):
        write_image(folder / "images" / f"{number}.jpg", number)
        votes = ldl_votes(number, voters)
        cells = [f"{number}.jpg", *(str(votes[column.lower()]) for column in columns)]
        lines.append(" ".join(cells) + (" 0" if trailing else ""))
    write_lines(folder / "ground_truth.txt", lines)
    return root


def write_flickr_ldl(root: Path, **options: object) -> Path:
    """Flickr_LDL/, eleven voters."""
    return write_ldl(root, "Flickr_LDL", voters=11, **options)


def write_twitter_ldl(root: Path, **options: object) -> Path:
    """Twitter_LDL/, eight voters."""
    return write_ldl(root, "Twitter_LDL", voters=8, **options)


def write_mat_split(folder: Path, splits: Mapping[str, Sequence[Sequence[int]]], *, hdf5: bool, count: int = 80) -> Path:
    """The split file of the LDL sets.

    Args:
        folder: Of the data set.
        splits: `train` and `test`, each with the image numbers (from 1) of every split.
        hdf5: Version 7.3 (axes turned round, names as references), else version 5.
        count: Images.
    """
    import numpy as np

    names = [f"{number}.jpg" for number in range(1, count + 1)]
    flags = {
        f"{part}_ind": np.array([[number in chosen for chosen in numbers] for number in range(1, count + 1)], dtype=np.uint8)
        for part, numbers in splits.items()
    }
    path = folder / "ldl_config.mat"
    if not hdf5:
        from scipy.io import savemat

        savemat(path, {"imgname": np.array([[name] for name in names], dtype=object), **flags})
        return path
    import h5py

    with h5py.File(path, "w") as file:
        codes = {name: np.array([[ord(letter)] for letter in name], dtype=np.uint16) for name in names}
        stored = [file.create_dataset(f"#refs#/{name}", data=values) for name, values in codes.items()]
        file["imgname"] = np.array([[cell.ref for cell in stored]], dtype=h5py.ref_dtype)
        for name, values in flags.items():
            file[name] = values.T
    return path


def abstract_votes(number: int) -> dict[str, int]:
    """About 14 votes; every tenth painting has two emotions with equally many."""
    votes = dict.fromkeys(MIKELS, 1)
    votes[MIKELS[number % 8]] = 6
    if number % 10 == 9:
        votes[MIKELS[(number + 3) % 8]] = 6
    return votes


def write_abstract(root: Path, *, count: int = 80, order: Sequence[int] | None = None) -> Path:
    """Abstract/abstract_<n>.jpg and ABSTRACT_groundTruth.csv with quoted names and the headers `Content` and `Sad`."""
    short = {"contentment": "content", "sadness": "sad"}
    columns = permuted(MIKELS, order)
    lines = [",".join(["''", *(f"'{short.get(name, name).title()}'" for name in columns)])]
    for number in range(count):
        name = write_image(root / "Abstract" / f"abstract_{number:04d}.jpg", number).name
        votes = abstract_votes(number)
        lines.append(",".join([f"'{name}'", *(str(votes[column]) for column in columns)]))
    write_lines(root / "Abstract" / "ABSTRACT_groundTruth.csv", lines)
    return root


def write_artphoto(root: Path, *, per_class: int = 10) -> Path:
    """ArtPhoto/<emotion>_<n>.jpg; sadness is written `sad`."""
    for position, emotion in enumerate(MIKELS):
        for number in range(per_class):
            prefix = "sad" if emotion == "sadness" else emotion
            write_image(root / "ArtPhoto" / f"{prefix}_{number:04d}.jpg", position * per_class + number)
    return root


WRITERS = {
    "Emotion6": write_emotion6,
    "EmoSet": write_emoset,
    "FI": write_fi,
    "Flickr_LDL": write_flickr_ldl,
    "Twitter_LDL": write_twitter_ldl,
    "Abstract": write_abstract,
    "ArtPhoto": write_artphoto,
}
