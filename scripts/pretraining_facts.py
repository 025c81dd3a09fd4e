"""Scenes for the pre-training of ``tiny_blip2``: as pictures, as facts, patch by patch, and what is asked about them."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from clip_ext.loader import LoadedClip
from datasets.mini_scenes_generator import COLOURS, OBJECT_NAMES, WorldScene, names_style

PROMPT = "Question: {question} Short answer:"
SIDE_PX, N_PLACES = 64, 12
NO_WORD = -1
FACTS_PER_QUERY = 9
COVERED, POINTS = 0.15, 4  # share of a patch from which an object is what it shows; how finely that is looked at


def place_words(box: tuple[int, int, int, int], size_px: int) -> list[str]:
    """Words for the centre of a box: its column and row, and the thirds that they lie in."""
    x, y = (box[0] + box[2]) / 2 / size_px, (box[1] + box[3]) / 2 / size_px
    cells = [(axis, min(int(value * N_PLACES), N_PLACES - 1)) for axis, value in (("x", x), ("y", y))]
    return [f"{axis}{cell}" for axis, cell in cells] + [f"{axis}third{cell * 3 // N_PLACES}" for axis, cell in cells]


def scene_facts(world: WorldScene) -> list[list[str]]:
    """Words about a scene, in groups that belong together; the last group is the background's."""
    scene, size_px = world.scene, world.scene.image.shape[0]
    facts = []
    for thing in scene.objects:
        hour = [f"hour{thing.time[0]}"] if thing.time else []
        facts.append([thing.colour, *thing.name.split(), *place_words(thing.box, size_px), *hour])
    return [*facts, ["background", scene.background.main_colour, scene.background.style]]


def fact_words() -> list[str]:
    """Words of the facts that no sentence has."""
    places = [f"{axis}{number}" for axis in "xy" for number in range(N_PLACES)]
    places += [f"{axis}third{number}" for axis in "xy" for number in range(3)]
    return ["background", *places, *(f"hour{hour}" for hour in range(1, 13))]


def pixel_labels(world: WorldScene) -> np.ndarray:
    """Return what each pixel shows, (3, H, W), uint8: the object's name from 1 (0 = none), the colour, a clock's hour from 1.

    The colour is the object's, or the background's main one.
    """
    scene, colours = world.scene, list(COLOURS)
    labels = np.zeros((3, *scene.image.shape[:2]), np.uint8)
    labels[1] = colours.index(scene.background.main_colour)
    for thing in scene.objects:
        hour = thing.time[0] if thing.time else 0
        for part, value in enumerate((OBJECT_NAMES.index(thing.name) + 1, colours.index(thing.colour), hour)):
            labels[part][thing.mask] = value
    return labels


def patch_labels(labels: Tensor, grid: int) -> Tensor:
    """Return what each patch shows, (3, grid * grid), as `pixel_labels` has it; an hour of no clock is 0.

    Args:
        labels: Of a square part of a scene, (3, S, S), looked at in `POINTS` x `POINTS` places per patch.
        grid: Patches of a side.
    """
    places = ((torch.arange(grid * POINTS) + 0.5) / (grid * POINTS) * labels.shape[-1]).long()
    points = labels[:, places][:, :, places].unfold(1, POINTS, POINTS).unfold(2, POINTS, POINTS).flatten(3).flatten(1, 2).long()
    names = points[0]
    shown = names.max(-1).indices[:, None]
    covered = (names > 0).float().mean(-1) >= COVERED
    found = points.gather(2, shown.expand(3, -1, 1))[..., 0]
    plain = torch.stack([torch.zeros_like(found[0]), points[1].mode(-1).values, torch.zeros_like(found[0])])
    return torch.where(covered, found, plain)


def spread_facts(groups: list[list[int]], n_places: int, rng: np.random.Generator) -> list[list[int]]:
    """Return the words at each place: a group, or half the time each of an object's two halves, has one of its own."""
    found: list[list[int]] = [[] for _ in range(n_places)]
    places = rng.permutation(n_places)
    for number, words in enumerate(groups):
        is_object = number + 1 < len(groups)
        split = 2 if is_object and rng.random() < 0.5 else len(words)
        found[places[2 * number % n_places]] += words[:split]
        found[places[(2 * number + 1) % n_places]] += words[split:]
    return found


class Batches:
    """Batches of scenes, as pictures or as facts, with several texts each; a function of the step.

    Args:
        worlds: Scenes, drawn in advance.
        seed: Of the draws among them.
        n_texts: Questions and captions per scene and step.
        n_queries: Places for facts.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, clip: LoadedClip, worlds: list[WorldScene], seed: int, *,
        n_texts: int, n_queries: int,
    ) -> None:  # fmt: skip
        self.seed, self.n_texts, self.n_queries, self.pad = seed, n_texts, n_queries, tokenizer.pad_token_id
        small = [Image.fromarray(world.scene.image).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC) for world in worlds]
        self.images = torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2)
        self.large = torch.from_numpy(np.stack([world.scene.image for world in worlds])).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(np.stack([pixel_labels(world) for world in worlds]))
        self.boxes = [[thing.box for thing in world.scene.objects] for world in worlds]
        self.grid = SIDE_PX // clip.info.patch_size
        self.mean, self.std = (torch.tensor(part).view(1, 3, 1, 1) for part in (clip.info.mean, clip.info.std))
        plain = functools.partial(tokenizer, add_special_tokens=False)
        start = [tokenizer.bos_token_id]

        # Few different sentences make up the world, so that each is encoded once.
        @functools.lru_cache(None)
        def asked(question: str, answer: str) -> tuple[list[int], int]:
            prompt = start + plain(PROMPT.format(question=question)).input_ids
            return prompt + plain(f"{answer}\n").input_ids, len(prompt)

        @functools.lru_cache(None)
        def told(caption: str) -> tuple[list[int], int]:
            return start + plain(f"{caption}\n").input_ids, len(start)

        self.types = [[q.question_type for q in world.questions] for world in worlds]
        self.questions = [[asked(q.question, q.answer) for q in world.questions] for world in worlds]
        self.styled = [[q.names_style for q in world.questions] for world in worlds]
        self.captions = [[told(text) for text in world.scene.captions] for world in worlds]
        self.plain_captions = [[told(text) for text in w.scene.captions if not names_style(text)] for w in worlds]
        self.facts = [[[tokenizer.convert_tokens_to_ids(word) for word in group] for group in scene_facts(w)] for w in worlds]

    def pictures(self, picks: np.ndarray) -> Tensor:
        """Pictures of these scenes, normalised, (B, 3, S, S)."""
        return (self.images[picks].float() / 255 - self.mean) / self.std

    def closer(self, picks: np.ndarray, sides_px: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Square parts of these scenes around one of their objects each, (B, 3, S, S), and what their patches show.

        Args:
            sides_px: Side of each part in the scene's pixels.
        """
        parts, labels = [], []
        for pick, side in zip(picks, sides_px, strict=True):
            box = self.boxes[pick][rng.integers(len(self.boxes[pick]))]
            centre = [(box[k] + box[k + 2] - side) / 2 + rng.uniform(-0.1, 0.1) * side for k in (0, 1)]
            x, y = (int(np.clip(round(value), 0, self.large.shape[-1] - side)) for value in centre)
            part = self.large[pick : pick + 1, :, y : y + side, x : x + side].float()
            parts.append(F.interpolate(part, size=(SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)[0].clamp(0, 255))
            labels.append(patch_labels(self.labels[pick, :, y : y + side, x : x + side], self.grid))
        return (torch.stack(parts) / 255 - self.mean[0]) / self.std[0], torch.stack(labels)

    def written(self, picks: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Facts of these scenes in random places, as words to be added up, (B, places, words); `NO_WORD` fills up."""
        ids = torch.full((len(picks), self.n_queries, FACTS_PER_QUERY), NO_WORD)
        for row, pick in enumerate(picks):
            for place, words in enumerate(spread_facts(self.facts[pick], self.n_queries, rng)):
                ids[row, place, : len(words)] = torch.tensor(words[:FACTS_PER_QUERY])
        return ids

    def at(
        self, step: int, batch_size: int, *, styles: bool, stream: int
    ) -> tuple[np.ndarray, Tensor, Tensor, np.random.Generator]:
        """Scenes, texts (B, T, L), and labels, -100 where nothing is to be learned; and the generator for what follows.

        Args:
            styles: Whether texts may ask for or name the style.
            stream: Tells the streams of one step apart.
        """
        rng = np.random.default_rng((self.seed, step, stream))
        picks = rng.choice(len(self.questions), size=batch_size, replace=False)
        chosen = []
        for pick in picks:
            captions = self.captions[pick] if styles else self.plain_captions[pick]
            row = [captions[rng.integers(len(captions))]]
            questions = [q for q, styled in zip(self.questions[pick], self.styled[pick], strict=True) if styles or not styled]
            order = rng.permutation(len(questions))
            row += [questions[order[k % len(order)]] for k in range(self.n_texts - 1)]
            chosen.append(row)
        return picks, *self._pad(chosen), rng

    def _pad(self, rows: list[list[tuple[list[int], int]]]) -> tuple[Tensor, Tensor]:
        length = max(len(ids) for row in rows for ids, _ in row)
        shape = (len(rows), len(rows[0]), length)
        padded, labels = torch.full(shape, self.pad), torch.full(shape, -100)
        for i, row in enumerate(rows):
            for k, (ids, n_prompt) in enumerate(row):
                padded[i, k, : len(ids)] = torch.tensor(ids)
                labels[i, k, n_prompt : len(ids)] = torch.tensor(ids[n_prompt:])
        return padded, labels

    def held_out(self, first: int, size: int) -> tuple[np.ndarray, Tensor, Tensor, list[list[str]]]:
        """Scenes with all their questions, styles included, and the questions' types; "" fills up."""
        picks = np.arange(first, first + size)
        most = max(len(self.questions[p]) for p in picks)
        rows = [[self.questions[p][k % len(self.questions[p])] for k in range(most)] for p in picks]
        types = [[self.types[p][k] if k < len(self.types[p]) else "" for k in range(most)] for p in picks]
        return picks, *self._pad(rows), types
