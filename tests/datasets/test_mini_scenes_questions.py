"""Questions of the miniature world: their answers follow from the facts, and from nothing but the facts."""

import re
from collections import Counter

import numpy as np
import pytest

from datasets.mini_scenes_generator import (
    LETTERS,
    NUMERALS,
    OBJECT_NAMES,
    QUESTION_TYPES,
    SHAPES,
    STYLES,
    all_words,
    generate_scene,
    random_sprite,
    split_words,
    training_scene,
)

HOURS = "one two three four five six seven eight nine ten eleven twelve".split()
COUNTS = "zero one two three".split()
KINDS = {
    "shape": set(SHAPES),
    "clock": {"clock"},
    "letter": {f"letter {letter.lower()}" for letter in LETTERS},
    "digit": {f"digit {numeral}" for numeral in NUMERALS},
}


@pytest.fixture(scope="module")
def samples():
    return [training_scene(np.random.default_rng(seed), per_type=3) for seed in range(250)]


def the_only(things, what):
    found = [thing for thing in things if what(thing)]
    assert len(found) == 1, "the question has more than one right answer, or none"
    return found[0]


def centre(thing):
    x0, y0, x1, y1 = thing.box
    return (x0 + x1) / 192, (y0 + y1) / 192


def answer_by_rule(scene, question):
    """Answer from boxes, colours and times, by reading the question's words."""
    text, things = question.question, scene.objects
    named = re.findall("|".join(sorted(OBJECT_NAMES, key=len, reverse=True)), text)
    if question.question_type == "style":
        return scene.background.style
    if question.question_type == "background":
        return scene.background.main_colour
    if question.question_type == "clock":
        return HOURS[the_only(things, lambda thing: thing.name == "clock").time[0] - 1]
    if question.question_type == "colour":
        return the_only(things, lambda thing: thing.name == named[0]).colour
    kind = next((kind for kind in KINDS if re.search(rf"\b{kind}s?\b", text)), None)
    if question.question_type == "count":
        return COUNTS[sum(kind is None or thing.name in KINDS[kind] for thing in things)]
    if question.question_type == "object":
        colour = next((word for word in split_words(text) if word in {thing.colour for thing in things}), None)
        return the_only(things, lambda t: (not colour or t.colour == colour) and (not kind or t.name in KINDS[kind])).name
    return position_by_rule([centre(the_only(things, lambda t, name=name: t.name == name)) for name in named], text)


def position_by_rule(places, text):
    if len(places) == 1:
        axis = int("bottom" in text)
        return (("left", "middle", "right"), ("top", "middle", "bottom"))[axis][int(places[0][axis] * 3)]
    dx, dy = (here - there for here, there in zip(*places, strict=True))
    if "left" in text or ("above" not in text and abs(dx) > abs(dy)):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def test_every_answer_follows_from_the_facts(samples):
    types = Counter()
    for sample in samples:
        for question in sample.questions:
            assert question.answer == answer_by_rule(sample.scene, question), question
            types[question.question_type] += 1
    assert set(types) == set(QUESTION_TYPES) and min(types.values()) > 40


def test_every_word_is_in_the_vocabulary_and_every_word_is_needed_once(samples):
    said = set()
    for sample in samples:
        texts = [*sample.scene.captions, sample.background_sentence.text, sample.object_sentence.text]
        texts += [text for question in sample.questions for text in (question.question, question.answer)]
        said |= {word for text in texts for word in split_words(text)}
    assert said <= set(all_words())
    assert len(set(all_words()) - said) < 5  # rare ones only, such as a letter that no picture of this sample shows


def test_answers_are_short_and_no_answer_is_most_of_its_type(samples):
    answers = {kind: Counter() for kind in QUESTION_TYPES}
    for sample in samples:
        for question in sample.questions:
            assert 1 <= len(question.answer.split()) <= 2
            answers[question.question_type][question.answer] += 1
    for kind, counts in answers.items():
        assert max(counts.values()) < 0.5 * sum(counts.values()), kind


def test_only_questions_about_the_style_name_it(samples):
    for sample in samples:
        for question in sample.questions:
            said = {*split_words(question.question.lower()), question.answer}
            assert question.names_style == (question.question_type == "style")
            assert question.names_style == bool(said & {*STYLES, "style"})
        assert not sample.object_sentence.names_style
        sentence = sample.background_sentence
        assert sentence.names_style == (sample.scene.background.style in sentence.text)
        for part in (sentence, sample.object_sentence):
            assert part.text.endswith(".") and part.text.count(".") == 1


def test_one_generator_gives_the_same_samples_again():
    first, second = (
        [(s.scene.image.tobytes(), s.questions) for s in (training_scene(rng) for _ in range(5))]
        for rng in (np.random.default_rng(3), np.random.default_rng(3))
    )
    assert first == second and len({image for image, _ in first}) == 5


def test_scenes_keep_the_time_of_their_clocks():
    seen = set()
    for seed in range(200):
        for thing in generate_scene(np.random.default_rng(seed), sprite_source=random_sprite).objects:
            assert (thing.time is not None) == (thing.name == "clock")
            seen |= {thing.time} - {None}
    assert {minute for _, minute in seen} == {0, 15, 30, 45} and {hour for hour, _ in seen} <= set(range(1, 13))
