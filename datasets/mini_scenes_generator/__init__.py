"""The miniature world's picture generator: backgrounds, sprites, scenes and what can be said of them.

Everything is drawn from a seeded ``numpy.random.Generator``: equal seeds give equal bytes on one set of
library versions. Nothing here reads a file of pictures; handwriting enters only as sprites that a caller hands in.
"""

from .backgrounds import COLOURS, STYLES, Background, background_of_split, draw_background, random_background
from .captions import caption_scene, object_phrase
from .groups import ROLES, scene_group
from .questions import QUESTION_TYPES, SceneQuestion, scene_questions
from .scenes import Scene, SceneObject, SpriteSource, generate_scene
from .sentences import SceneSentence, background_sentence, names_style, object_sentence
from .sprites import LETTERS, NUMERALS, SHAPES, Sprite, draw_shape, face_paths, printed_sprite, random_sprite
from .words import OBJECT_NAMES, all_words, split_words
from .world import WorldScene, training_scene, world_sprites

__all__ = [
    "COLOURS",
    "LETTERS",
    "NUMERALS",
    "OBJECT_NAMES",
    "QUESTION_TYPES",
    "ROLES",
    "SHAPES",
    "STYLES",
    "Background",
    "Scene",
    "SceneObject",
    "SceneQuestion",
    "SceneSentence",
    "Sprite",
    "SpriteSource",
    "WorldScene",
    "all_words",
    "background_of_split",
    "background_sentence",
    "caption_scene",
    "draw_background",
    "draw_shape",
    "face_paths",
    "generate_scene",
    "names_style",
    "object_phrase",
    "object_sentence",
    "printed_sprite",
    "random_background",
    "random_sprite",
    "scene_group",
    "scene_questions",
    "split_words",
    "training_scene",
    "world_sprites",
]
