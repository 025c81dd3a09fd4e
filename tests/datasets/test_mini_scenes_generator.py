"""The miniature world draws the same bytes twice, says only what is true, and stays inside its vocabulary."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.mini_scenes_generator import (
    COLOURS,
    LETTERS,
    NUMERALS,
    SHAPES,
    STYLES,
    Background,
    draw_background,
    draw_shape,
    face_paths,
    generate_scene,
)
from datasets.mini_scenes_generator.printed import (
    FACTS,
    GLYPHS,
    UNSTATED,
    PrintedGlyphs,
    caption_glyph,
    caption_truth,
)
from datasets.mini_scenes_generator.sprites import draw_clock

VOCABULARY = Path(__file__).resolve().parents[2] / "clip_ext/texts/vocabularies/mini_scenes.json"


def scenes(count: int = 40):
    return [generate_scene(np.random.default_rng(seed)) for seed in range(count)]


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not():
    first, second = scenes(5), scenes(5)
    assert [s.image.tobytes() for s in first] == [s.image.tobytes() for s in second]
    assert [s.captions for s in first] == [s.captions for s in second]
    assert len({s.image.tobytes() for s in first}) == 5


def test_captions_are_single_sentences_from_the_vocabulary():
    names = set(json.loads(VOCABULARY.read_text("utf-8"))["names"])
    for scene in scenes():
        assert len(scene.captions) >= 5
        assert {thing.name for thing in scene.objects} <= names
        for caption in scene.captions:
            assert caption.endswith(".") and caption.count(".") == 1
        assert all(thing.name in scene.captions[0] and thing.colour in scene.captions[0] for thing in scene.objects)


def test_vocabulary_names_every_object_that_can_be_drawn():
    names = json.loads(VOCABULARY.read_text("utf-8"))["names"]
    drawn = {*SHAPES, "clock", *(f"digit {n}" for n in NUMERALS), *(f"letter {c.lower()}" for c in LETTERS)}
    assert sorted(drawn) == names


def test_relations_in_captions_follow_the_boxes():
    checked = 0
    for scene in scenes(60):
        boxes = {f"{thing.colour} {thing.name}": thing.box for thing in scene.objects}
        words = scene.captions[-1].rstrip(".")
        for relation, axis, sign in (("to the left of", 0, 1), ("to the right of", 0, -1), ("above", 1, 1), ("below", 1, -1)):
            if f" {relation} " in words and len(boxes) == len(scene.objects):
                first, second = (part.split(" ", 1)[1] for part in words.split(f" {relation} "))
                centre = [boxes[name][axis] + boxes[name][axis + 2] for name in (first, second)]
                assert sign * (centre[1] - centre[0]) > 0
                checked += 1
    assert checked > 10


def test_pixels_outside_the_masks_are_the_background():
    for scene in scenes(10):
        free = ~np.any([thing.mask for thing in scene.objects], axis=0)
        assert (scene.image[free] == draw_background(scene.background)[free]).all()
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            inside = np.zeros_like(thing.mask)
            inside[y0:y1, x0:x1] = True
            assert thing.mask.any() and not (thing.mask & ~inside).any()


@pytest.mark.parametrize("style", STYLES)
def test_the_main_colour_covers_most_of_a_background(style):
    pictures = []
    for variant in range(4):
        picture = draw_background(Background(style, "red", "white", variant, seed=3)).astype(float)
        distance = {name: np.abs(picture - COLOURS[name]).sum(-1) for name in ("red", "white")}
        assert (distance["red"] < distance["white"]).mean() > 0.5
        pictures.append(picture.tobytes())
    assert len(set(pictures)) == 4


def test_clock_hands_move_with_the_time():
    nine, ten = draw_clock(9, 0, 40), draw_clock(10, 0, 40)
    assert nine.shape == (40, 40) and not np.array_equal(nine, ten)


def test_an_unknown_shape_lists_the_known_ones():
    with pytest.raises(ValueError, match="hexagon.*circle"):
        draw_shape("hexagon", 16)


def test_at_least_twenty_faces_are_on_disk():
    paths = face_paths()
    assert len(paths) >= 20 and all(path.is_file() for path in paths.values())


@pytest.fixture(scope="module")
def glyphs():
    return PrintedGlyphs(48, n_textures=20)


def test_printed_glyphs_repeat_and_stay_in_range(glyphs):
    images, facts = glyphs.sample(32, torch.Generator().manual_seed(5))
    again, facts_again = glyphs.sample(32, torch.Generator().manual_seed(5))
    assert torch.equal(images, again) and torch.equal(facts, facts_again)
    assert images.shape == (32, 3, 48, 48) and 0 <= images.min() and images.max() <= 1
    assert facts.shape == (32, len(FACTS)) and (facts[:, 0] < len(GLYPHS)).all()


def test_captions_of_glyphs_are_true_of_their_own_picture_and_false_of_other_glyphs(glyphs):
    _, facts = glyphs.sample(64, torch.Generator().manual_seed(6))
    rng = np.random.default_rng(0)
    described = [caption_glyph(row, rng) for row in facts.numpy()]
    truth = caption_truth(facts, torch.from_numpy(np.stack([stated for _, stated in described])))
    assert truth.diagonal().all()
    different = facts[:, None, 0] != facts[None, :, 0]
    assert not truth[different].any()
    assert all(GLYPHS[row[0]].lower() in caption for (caption, _), row in zip(described, facts.tolist(), strict=True))


def test_caption_truth_compares_stated_facts_only():
    picture = torch.tensor([[3, 1, 0], [3, 2, 0]])
    stated = torch.tensor([[3, UNSTATED, UNSTATED], [3, 2, UNSTATED], [4, 2, 0]])
    assert caption_truth(picture, stated).tolist() == [[True, False, False], [True, True, False]]
