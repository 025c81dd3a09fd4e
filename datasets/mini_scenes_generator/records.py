"""A scene as one JSON object: everything that is known of a picture, in plain types."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from .rle import encode_mask
from .scenes import SceneObject
from .sentences import names_style
from .words import OBJECT_NAMES
from .world import WorldScene

# The longest name first; "letter a" must not be found in "letter a" of another word.
_NAMES = re.compile(rf"\b(?:{'|'.join(sorted(OBJECT_NAMES, key=len, reverse=True))})\b")


def find_entities(caption: str) -> list[str]:
    """Names of the objects in a caption, each once, in text order."""
    return list(dict.fromkeys(_NAMES.findall(caption)))


def make_record(sample: WorldScene, *, file: str, split: str, group_id: str = "", role: str = "") -> dict[str, Any]:
    """Describe a sample.

    Args:
        sample: The scene and what is said of it.
        file: Its picture, relative to the data set's folder.
        split: The list that it belongs to: train, val, test or groups.
        group_id: Of a scene in a group.
        role: Of a scene in a group, one of ``groups.ROLES``.
    """
    scene, scene_id = sample.scene, file.rsplit(".", 1)[0]
    return {
        "scene_id": scene_id,
        "file": file,
        "split": split,
        "style": scene.background.style,
        "main_colour": scene.background.main_colour,
        "second_colour": scene.background.second_colour,
        "background_id": scene.background.background_id,
        "group_id": group_id,
        "role": role,
        "objects": [_object_record(thing) for thing in scene.objects],
        "captions": [
            {"text": text, "entities": find_entities(text), "names_style": names_style(text)} for text in scene.captions
        ],
        "background_sentence": asdict(sample.background_sentence),
        "object_sentence": asdict(sample.object_sentence),
        "questions": [
            {"question_id": f"{scene_id}#{number}", **asdict(question)} for number, question in enumerate(sample.questions)
        ],
    }


def _object_record(thing: SceneObject) -> dict[str, Any]:
    time = {} if thing.time is None else {"time": list(thing.time)}
    return {"name": thing.name, "colour": thing.colour, "box": list(thing.box), **time, "mask": encode_mask(thing.mask)}
