"""The pre-training of tiny_llava: the tower is tiny12's, questions that share a pass do not see each other, runs resume."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))

import pretrain_tiny_llava as pretrain  # noqa: E402

from clip_ext.loader import load_clip  # noqa: E402
from clip_ext.towers import build_tower  # noqa: E402
from trainers.bgobj_llava.word_tokenizer import build_word_tokenizer  # noqa: E402

SIZES = ("--batch-size", "2", "--n-scenes", "4", "--steps", "3", "--warmup-steps", "1", "--save-every", "2")
SIZES += ("--n-texts", "3", "--vision-blocks", "3", "--llm-layers", "1", "--width", "32")


@pytest.fixture(scope="module")
def clip():
    return load_clip("tiny12")


@pytest.fixture(scope="module")
def tokenizer():
    template = pretrain.PromptTemplate()
    return build_word_tokenizer([*pretrain.all_words(), template.system, template.instruction, pretrain.DESCRIBE])


@pytest.fixture
def arguments(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["pretrain", "--output", str(tmp_path / "out"), *SIZES])
    return pretrain.parse_args()


@torch.no_grad()
def test_converted_blocks_give_the_rows_of_tiny12(clip, monkeypatch):
    monkeypatch.setattr(pretrain, "SIDE_PX", clip.info.image_size_px)  # at its own size the position table stays
    ours, theirs = build_tower(pretrain.convert_tower(clip, 8).eval()), build_tower(clip.model.visual)
    images = torch.randn(2, 3, clip.info.image_size_px, clip.info.image_size_px)
    rows = [tower.embed(images) for tower in (ours, theirs)]
    for number in range(1, 9):
        rows = [tower.run_block(number, x) for tower, x in zip((ours, theirs), rows, strict=True)]
    assert torch.allclose(*rows, atol=1e-5)


@torch.no_grad()
def test_questions_in_one_pass_are_answered_as_one_by_one(clip, tokenizer, arguments):
    model = pretrain.build_llava(arguments, tokenizer, clip).eval()
    batches = pretrain.Batches(tokenizer, clip, 2, 5, "train", 4)
    images, ids, labels = batches.at(0, 2)
    where = labels != -100
    together = pretrain.token_logits(model, images, batches.prefix, ids, where)
    place, alone = torch.full((model.config.image_seq_length,), model.config.image_token_index), []
    for image, texts, learned in zip(images, ids, where, strict=True):
        for text, mask in zip(texts, learned, strict=True):
            row = torch.cat([batches.prefix, place, text])[None]
            logits = model(input_ids=row, pixel_values=image[None], attention_mask=torch.ones_like(row)).logits[0]
            alone.append(logits[len(row[0]) - len(text) - 1 : -1][mask])
    assert len(together) == where.sum() > 8
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_a_batch_has_a_caption_first_and_is_a_function_of_the_step(clip, tokenizer):
    batches = pretrain.Batches(tokenizer, clip, 4, 5, "train", 3)
    first, again, other = batches.at(1, 2), batches.at(1, 2), batches.at(2, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    described = [tokenizer.decode(row[0]).lower() for row in first[1]]
    assert all("describe the picture" in text for text in described)


def test_a_run_killed_after_a_saved_state_ends_with_the_weights_of_a_straight_one(monkeypatch, tmp_path):
    draw = pretrain.draw_worlds
    monkeypatch.setattr(pretrain, "draw_worlds", lambda count, seed, split: draw(min(count, 4), seed, split))

    def start(name: str, stop_after: int = 99) -> None:
        calls = []

        def measure(*_, **__) -> dict:
            calls.append(1)
            if len(calls) > stop_after:
                raise KeyboardInterrupt
            return {}

        monkeypatch.setattr(pretrain, "evaluate", measure)
        words = ["--output", str(tmp_path / name / "out"), "--work-dir", str(tmp_path / name / "work")]
        monkeypatch.setattr(sys, "argv", ["pretrain", *words, *SIZES])
        pretrain.main()

    start("straight")
    with pytest.raises(KeyboardInterrupt):  # before the state of the last step is saved
        start("killed", stop_after=1)
    start("killed")
    expected, found = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("straight", "killed"))
    assert expected.keys() == found.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
