"""Benchmarks in miniature: each function writes one in its published layout below a root and returns the image folder."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from yacs.config import CfgNode

WORDNET = {"n01": "tench", "n02": "great white shark", "n03": "crane", "n05": "crane"}


def read_config(root: Path | str, output: Path | str = "", seed: int = 1, **changes: object) -> CfgNode:
    """The settings that a data set reads, with changes below DATASET."""
    settings = {
        "NAME": "",
        "ROOT": str(root),
        "NUM_SHOTS": -1,
        "SUBSAMPLE_CLASSES": "all",
        "SPLIT": "auto",
        "SPLIT_SEED": 0,
        "TEST_PERCENT": 0.0,
        "DOWNLOAD": False,
        "SKIP_BROKEN": False,
        **changes,
    }
    return CfgNode({"SEED": seed, "OUTPUT_DIR": str(output), "VERBOSE": False, "DATASET": settings})


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (len(path.name) * 9 % 255, 90, 30)).save(path)


def pictures(folder: Path, names: dict[str, int] | list[str], form: str = "image_{:04d}.jpg") -> None:
    """Ten pictures per folder, or the number given; beside them a hidden file and a note."""
    for name in names:
        for number in range(1, (names[name] if isinstance(names, dict) else 10) + 1):
            picture(folder / name / form.format(number))
        (folder / name / ".hidden.jpg").touch()
        (folder / name / "note.txt").touch()


def caltech101(root: Path, images: str = "caltech-101/101_ObjectCategories") -> Path:
    pictures(root / images, ["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "accordion", "airplanes"])
    return root / images


def describable_textures(root: Path, images: str = "dtd/images") -> Path:
    names = ["banded", "chequered", "zigzagged"]
    pictures(root / images, names, "tile_{:04d}.jpg")
    labels = root / images / "../labels"
    labels.mkdir()
    for part, numbers in (("train", (3, 1)), ("val", (5, 6)), ("test", (10, 7, 8))):
        lines = [f"{name}/tile_{number:04d}.jpg\n" for number in numbers for name in reversed(names)]
        (labels / f"{part}1.txt").write_text("".join(lines))
    return root / images


def eurosat(root: Path) -> Path:
    pictures(root / "eurosat/2750", ["AnnualCrop", "Forest", "SeaLake", "Highway"])
    return root / "eurosat/2750"


def fgvc_aircraft(root: Path, images: str = "fgvc_aircraft/images") -> Path:
    names = ["A320", "707-320", "DHC-8-100", "Cessna 172"]  # not alphabetical: the file's order counts
    base = (root / images).parent
    base.mkdir(parents=True)
    (base / "variants.txt").write_text("\n".join(names) + "\n")
    number = 1000
    for part, count in (("train", 3), ("val", 2), ("test", 4)):
        lines = []
        for name in names:
            for _ in range(count):
                number += 1
                picture(base / "images" / f"{number:07d}.jpg")
                lines.append(f"{number:07d} {name}\n")
        (base / f"images_variant_{part}.txt").write_text("".join(lines))
    return root / images


def food101(root: Path) -> Path:
    names = ["apple_pie", "baby_back_ribs"]
    pictures(root / "food-101/images", names, "{}.jpg")
    (root / "food-101/meta").mkdir()
    for part, numbers in (("train", (9, 1, 2, 3, 4, 5)), ("test", (8, 7))):
        lists = {name: [f"{name}/{number}" for number in numbers] for name in reversed(names)}
        (root / f"food-101/meta/{part}.json").write_text(json.dumps(lists))
    return root / "food-101/images"


def oxford_flowers(root: Path, images: str = "oxford_flowers/jpg") -> Path:
    labels = [2, 1, 3] * 10
    pictures(root / images, {".": 30}, "image_{:05d}.jpg")
    base = (root / images).parent
    savemat(base / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    numbers = {"trnid": [[4, 1, 2, 3]], "valid": [[6, 5, 7, 8]], "tstid": [list(range(9, 31))]}
    savemat(base / "setid.mat", {key: np.array(value, dtype=np.uint16) for key, value in numbers.items()})
    return root / images


def oxford_pets(root: Path, images: str = "oxford_pets/images") -> Path:
    breeds = ["Abyssinian", "american_bulldog", "Bengal", "great_pyrenees"]  # the published order ignores case
    for breed in breeds:
        for number in range(1, 11):
            picture(root / images / f"{breed}_{number}.jpg")
    (root / images / "Abyssinian_100.mat").touch()
    notes = (root / images).parent / "annotations"
    notes.mkdir()
    for part, numbers in (("trainval", range(1, 7)), ("test", range(7, 11))):
        lines = [f"{breed}_{number} {label} 1 1\n" for label, breed in enumerate(breeds, 1) for number in numbers]
        (notes / f"{part}.txt").write_text("".join(lines))
    return root / images


def stanford_cars(root: Path) -> Path:
    base = root / "stanford_cars"
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    pictures(base, {"cars_train": 12, "cars_test": 8}, "{:05d}.jpg")
    (base / "devkit").mkdir()
    savemat(base / "devkit/cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    for path, count in (("devkit/cars_train_annos.mat", 12), ("cars_test_annos_withlabels.mat", 8)):
        entries = np.zeros((1, count), dtype=[("bbox_x1", object), ("class", object), ("fname", object)])
        for number in range(count):
            entries[0, number] = (1, number % 2 + 1, f"{number + 1:05d}.jpg")
        savemat(base / path, {"annotations": entries})
    return base


def sun397(root: Path) -> Path:
    images = root / "sun397/SUN397"
    pictures(images, ["a/abbey", "a/apartment_building/outdoor", "z/zoo"], "sun_{:04d}.jpg")
    return images


def ucf101(root: Path) -> Path:
    pictures(root / "ucf101/UCF-101-midframes", ["Apply_Eye_Makeup", "Yo_Yo"], "v_X_g01_c{:02d}.jpg")
    return root / "ucf101/UCF-101-midframes"


LAYOUTS = {
    "Caltech101": caltech101,
    "DescribableTextures": describable_textures,
    "EuroSAT": eurosat,
    "FGVCAircraft": fgvc_aircraft,
    "Food101": food101,
    "OxfordFlowers": oxford_flowers,
    "OxfordPets": oxford_pets,
    "StanfordCars": stanford_cars,
    "SUN397": sun397,
    "UCF101": ucf101,
}


def imagenet(root: Path, folder: str, images: list[str], names: list[str]) -> None:
    for part in images:
        pictures(root / folder / part, names, "x_{}.JPEG")
    lines = [f"{number} {name}\n" for number, name in WORDNET.items()]
    (root / folder / "classnames.txt").write_text("".join(lines))
