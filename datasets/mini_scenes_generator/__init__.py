"""The miniature world's picture generator: backgrounds, sprites, scenes and their captions.

Everything is drawn from a seeded ``numpy.random.Generator``: equal seeds give equal bytes on one set of
library versions. Nothing here reads a file of pictures; handwriting enters only as sprites that a caller hands in.
"""

from .backgrounds import COLOURS, STYLES, Background, draw_background, random_background
from .captions import caption_scene, object_phrase
from .scenes import Scene, SceneObject, generate_scene
from .sprites import LETTERS, NUMERALS, SHAPES, draw_shape, face_paths, printed_sprite, random_sprite

__all__ = [
    "COLOURS",
    "LETTERS",
    "NUMERALS",
    "SHAPES",
    "STYLES",
    "Background",
    "Scene",
    "SceneObject",
    "caption_scene",
    "draw_background",
    "draw_shape",
    "face_paths",
    "generate_scene",
    "object_phrase",
    "printed_sprite",
    "random_background",
    "random_sprite",
]
