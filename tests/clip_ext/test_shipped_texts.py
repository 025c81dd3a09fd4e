"""The shipped templates and descriptions, and that every registered data set of ours finds its own."""

import json
import re

import pytest
from dassl.data.datasets import DATASET_REGISTRY

import datasets  # noqa: F401  (registers ours)
from clip_ext.loader import build_clip
from clip_ext.text_files import (
    TEXTS_DIR,
    available_texts,
    clean_sentences,
    load_descriptions,
    load_texts,
    match_descriptions,
    normalise_name,
)
from datasets.captioning import CaptionDataset

DESCRIPTION_FILES = sorted((TEXTS_DIR / "descriptions").glob("*.json"))
TEMPLATE_FILES = sorted((TEXTS_DIR / "templates").glob("*.json"))
REGISTERED = {name: DATASET_REGISTRY.get(name) for name in DATASET_REGISTRY.registered_names()}
OURS = sorted(
    name
    for name, dataset in REGISTERED.items()
    if dataset.__module__.startswith("datasets.")
    and not getattr(dataset, "labels_are_question_types", False)  # nothing for CLIP to compare with an image
    and not issubclass(dataset, CaptionDataset)  # nor is the one label of captions
)
MIKELS = ["amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness"]
EUROSAT = [
    "Annual Crop Land", "Forest", "Herbaceous Vegetation Land", "Highway or Road", "Industrial Buildings", "Pasture Land",
    "Permanent Crop Land", "Residential Buildings", "River", "Sea or Lake",
]  # fmt: skip
DTD = (
    "banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted fibrous "
    "flecked freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined marbled matted meshed "
    "paisley perforated pitted pleated polka-dotted porous potholed scaly smeared spiralled sprinkled stained "
    "stratified striped studded swirly veined waffled woven wrinkled zigzagged"
).split()
PETS = (
    "abyssinian american_bulldog american_pit_bull_terrier basset_hound beagle bengal birman bombay boxer "
    "british_shorthair chihuahua egyptian_mau english_cocker_spaniel english_setter german_shorthaired "
    "great_pyrenees havanese japanese_chin keeshond leonberger maine_coon miniature_pinscher newfoundland persian "
    "pomeranian pug ragdoll russian_blue saint_bernard samoyed scottish_terrier shiba_inu siamese sphynx "
    "staffordshire_bull_terrier wheaten_terrier yorkshire_terrier"
).split()
# Class names by data set, where the names are known without its files.
CLASSNAMES = {
    "HandwrittenDigits": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "Emotion6": ["anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral"],
    **{name: MIKELS for name in ("EmoSet", "FI", "Flickr_LDL", "Twitter_LDL", "Abstract", "ArtPhoto")},
    "EuroSAT": EUROSAT,
    "DescribableTextures": DTD,
    "OxfordPets": PETS,
    "CIFAR10_local": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}
TEXT_EPOCHS = dict.fromkeys(["DescribableTextures", "EuroSAT", "Food101", "CIFAR10_local", "CIFAR100_local", "UCF101"], 400)
TEXT_EPOCHS |= dict.fromkeys(["FGVCAircraft", "SUN397", "Caltech101"], 500) | {"OxfordFlowers": 600}
TEXT_EPOCHS |= dict.fromkeys(["ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"], 500)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", TEMPLATE_FILES, ids=lambda path: path.stem)
def test_templates_are_complete(path):
    content = read(path)
    assert set(content) - {"known_twins"} == {"zeroshot", "templates", "descriptions", "text_epochs"}
    texts = load_texts(path.stem)
    assert len(set(texts.templates)) == len(texts.templates) >= 6
    assert bool(texts.descriptions) == bool(content["descriptions"])


@pytest.mark.parametrize("path", DESCRIPTION_FILES, ids=lambda path: path.stem)
def test_descriptions_are_many_equal_in_number_and_clean(path):
    content = read(path)
    assert set(content) == {"source", "licence", "classes"}
    sentences = list(content["classes"].values())
    assert len(sentences[0]) >= 25
    assert len({len(of_class) for of_class in sentences}) == 1
    kept, dropped = clean_sentences(sentences)
    assert kept == sentences and not any(dropped.values())
    assert path.read_text(encoding="utf-8").isascii()


@pytest.mark.parametrize("path", DESCRIPTION_FILES, ids=lambda path: path.stem)
def test_descriptions_fit_the_context(path):
    tiny = path.stem == "handwritten_digits"
    text = {"context_length": 33 if tiny else 78, "vocab_size": 4514 if tiny else 49408, "width": 16, "heads": 1, "layers": 1}
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8}
    clip = build_clip({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, name="small")
    texts = [text for of_class in load_descriptions(path).values() for text in of_class]
    # One place more than allowed: a text that fills it is too long.
    too_long = [text for text, row in zip(texts, clip.tokenizer(texts), strict=True) if row[-1] != 0]
    assert too_long == []


@pytest.mark.parametrize("path", DESCRIPTION_FILES, ids=lambda path: path.stem)
def test_every_description_names_its_class(path):
    silent = []
    for name, sentences in load_descriptions(path).items():
        parts = normalise_name(name).split(" or ")  # "Highway or Road" is named by either
        silent += [text for text in sentences if not any(part in normalise_name(text) for part in parts)]
    assert silent == []


@pytest.mark.parametrize("stem", [path.stem for path in DESCRIPTION_FILES if path.stem != "handwritten_digits"])
def test_no_description_is_another_with_the_class_name_exchanged(stem):
    seen: dict[str, str] = {}
    for name, sentences in load_descriptions(TEXTS_DIR / "descriptions" / f"{stem}.json").items():
        for text in sentences:
            frame = normalise_name(text).replace(normalise_name(name), "{}")
            assert frame not in seen, (text, seen[frame])
            seen[frame] = text


@pytest.mark.parametrize("stem", ["handwritten_digits", "emotion6", "mikels8"])
def test_a_description_names_no_other_class_of_a_closed_set(stem):
    classes = load_descriptions(TEXTS_DIR / "descriptions" / f"{stem}.json")
    for name, sentences in classes.items():
        for text in sentences:
            assert set(re.findall(r"[a-z]+", text.lower())) & set(classes) == {name}, text


def test_every_descriptions_file_is_named_by_a_templates_file():
    assert {read(path)["descriptions"] for path in TEMPLATE_FILES} - {""} == {path.stem for path in DESCRIPTION_FILES}


@pytest.mark.parametrize("name", OURS)
def test_every_registered_data_set_of_ours_finds_its_texts(name):
    texts = load_texts(name)
    classnames = getattr(REGISTERED[name], "classes", ())
    if texts.descriptions and not callable(classnames):
        assert all(match_descriptions(classnames, texts.descriptions)[0])


@pytest.mark.parametrize("name", sorted(CLASSNAMES))
def test_descriptions_cover_exactly_the_known_classes(name):
    sentences, unknown = match_descriptions(CLASSNAMES[name], load_texts(name).descriptions)
    assert all(sentences) and unknown == []


@pytest.mark.parametrize("name, epochs", TEXT_EPOCHS.items())
def test_text_epochs_suit_the_data_set(name, epochs):
    assert load_texts(name).text_epochs == epochs


def test_the_names_that_imagenet_uses_twice_are_known():
    twice = {name for name in available_texts() if load_texts(name).known_twins}
    assert twice == {"imagenet", "imagenet_sketch", "imagenet_v2"}
    assert all(load_texts(name).known_twins == ("missile", "sunglasses") for name in twice)
