"""The four orders, the loss beside a naive one, what trains, and published sizes."""

from __future__ import annotations

import hashlib

import pytest
import torch
from random_captioners import D_CLIP, SOFT, random_batch, random_captioner
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from trainers.viecap.network.mapping import MappingNetwork, soft_input
from trainers.viecap.network.model import PrefixCaptioner, PromptLayout

LAYOUTS = {
    "soft, hard": PromptLayout(True, True, SOFT),
    "hard, soft": PromptLayout(True, False, SOFT),
    "hard": PromptLayout(True, True, 0),
    "soft": PromptLayout(False, True, SOFT),
}


def naive_loss(captioner: PrefixCaptioner, vectors: Tensor, ids: Tensor, n_hard: Tensor, n_caption: Tensor, *, key_mask: bool,
               fixed: int = 60) -> Tensor:  # fmt: skip
    """Mean loss as the reference computes it: rows put together one by one, one fixed length, scores of every position,
    shifted labels, id 0 ignored."""
    model, soft = captioner.language_model, captioner.soft_prompt(vectors)
    rows, labels = [], torch.zeros(len(ids), fixed, dtype=torch.long)
    for row in range(len(ids)):
        h, c = int(n_hard[row]), int(n_caption[row])
        words = captioner.embed(ids[row])
        parts = [words[:h]] if soft is None else [soft[row], words[:h]]
        parts = parts if captioner.layout.soft_first else parts[::-1]
        start = sum(map(len, parts))
        parts += [words[h : h + c], captioner.embed(torch.zeros(fixed - start - c, dtype=torch.long))]
        rows.append(torch.cat(parts))
        labels[row, start : start + c] = ids[row, h : h + c]
    n_real = n_hard + n_caption + captioner.layout.soft_tokens
    mask = (torch.arange(fixed) < n_real[:, None]).long() if key_mask else None
    scores = model(inputs_embeds=torch.stack(rows), attention_mask=mask).logits
    return F.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=0)


def test_published_counts() -> None:
    with torch.device("meta"):
        language_model = GPT2LMHeadModel(GPT2Config())
        captioner = PrefixCaptioner(language_model, MappingNetwork(512, 768), PromptLayout())
    sizes = [parameter.numel() for parameter in captioner.parameters()]
    assert sum(parameter.numel() for parameter in language_model.parameters()) == 124_439_808
    assert (sum(sizes), len(sizes)) == (166_185_216, 247)
    embeds = captioner.prompt_embeds(torch.empty(3, 512, device="meta"), [[1858, 389]] * 3)
    assert embeds.shape == (3, 12, 768)


@pytest.mark.parametrize("key_mask", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_loss_equals_the_naive_one(layout: PromptLayout, key_mask: bool) -> None:
    captioner = random_captioner(layout)
    batch = random_batch(captioner)
    with torch.no_grad():
        loss = captioner.loss(*batch)
        assert loss.n_tokens == int(batch[3].sum())
        assert (loss.total / loss.n_tokens).item() == pytest.approx(
            naive_loss(captioner, *batch, key_mask=key_mask).item(), abs=1e-5
        )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_padding_changes_nothing(layout: PromptLayout) -> None:
    captioner = random_captioner(layout)
    vectors, ids, n_hard, n_caption = random_batch(captioner, multiple=1)
    longer = F.pad(ids, (0, 7), value=9)
    with torch.no_grad():
        losses = [captioner.loss(vectors, rows, n_hard, n_caption).total.item() for rows in (ids, longer)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_orders_by_hand(name: str) -> None:
    """h 6 and 4, c 4: what stands where."""
    captioner = random_captioner(LAYOUTS[name])
    n_hard = torch.tensor([6, 4]) if captioner.layout.hard else torch.tensor([0, 0])
    ids = torch.randint(1, 400, (2, 12))
    soft = None if name == "hard" else torch.randn(2, SOFT, 32)
    embeds, words = captioner.build_inputs_embeds(soft, ids, n_hard), captioner.embed(ids)
    for row, h in enumerate(n_hard.tolist()):
        parts = {"soft": None if soft is None else soft[row], "hard": words[row, :h]}
        expected = [*(parts[part] for part in name.split(", ")), words[row, h:]]
        assert torch.equal(embeds[row], torch.cat(expected))


def test_hard_first_needs_a_hard_prompt() -> None:
    """Without one the order is soft, caption whatever SOFT_PROMPT_FIRST says."""
    captioner = random_captioner(PromptLayout(False, False, SOFT))
    vectors, ids, n_hard, n_caption = random_batch(captioner)
    with torch.no_grad():
        loss = captioner.loss(vectors, ids, n_hard, n_caption).total
        assert torch.equal(loss, random_captioner(LAYOUTS["soft"]).loss(vectors, ids, n_hard, n_caption).total)


def test_only_hard_prompt_has_no_mapper() -> None:
    captioner = random_captioner(LAYOUTS["hard"])
    assert captioner.mapping is None
    assert {name.split(".")[0] for name, _ in captioner.named_parameters()} == {"language_model"}
    vectors, *rest = random_batch(captioner)
    assert torch.equal(captioner.loss(None, *rest).total, captioner.loss(vectors, *rest).total)


def test_the_token_with_id_0_is_a_label() -> None:
    """GPT-2's "!"; the reference took it for padding."""
    captioner = random_captioner()
    vectors, ids, n_hard, n_caption = random_batch(captioner)
    ids[0, n_hard[0]] = 0
    with torch.no_grad():
        loss = captioner.loss(vectors, ids, n_hard, n_caption)
        assert loss.n_tokens == int(n_caption.sum())
        scores = captioner.scores(captioner.hidden(captioner.build_inputs_embeds(captioner.soft_prompt(vectors), ids, n_hard)))
        expected = sum(
            F.cross_entropy(scores[row, SOFT + h - 1 : SOFT + h + c - 1], ids[row, h : h + c], reduction="sum")
            for row, (h, c) in enumerate(zip(n_hard.tolist(), n_caption.tolist(), strict=True))
        )
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    naive = naive_loss(captioner, vectors, ids, n_hard, n_caption, key_mask=True)
    assert abs(naive.item() - loss.total.item() / loss.n_tokens) > 1e-5


def test_vocabulary_scores_are_computed_for_labels_only() -> None:
    captioner, seen = random_captioner(), []
    head = captioner.language_model.lm_head
    head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    batch = random_batch(captioner)
    captioner.loss(*batch)
    assert seen == [(int(batch[3].sum()), 32)]


def test_loss_is_fp32_under_autocast() -> None:
    captioner = random_captioner()
    batch = random_batch(captioner)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = captioner.loss(*batch).total
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(captioner.loss(*batch).total.item(), rel=0.01)


def test_prompts_are_laid_out_as_in_training() -> None:
    for layout in LAYOUTS.values():
        captioner = random_captioner(layout)
        vectors, ids, n_hard, _ = random_batch(captioner, batch=3)
        h = 5 if layout.hard else 0
        lengths = torch.full((3,), h)
        with torch.no_grad():
            whole = captioner.build_inputs_embeds(captioner.soft_prompt(vectors), ids, lengths)
            prompts = captioner.prompt_embeds(vectors, ids[:, :h].tolist())
        assert torch.equal(prompts, whole[:, : layout.soft_tokens + h])


def test_too_long_for_the_positions() -> None:
    captioner = random_captioner()
    ids = torch.ones(1, 126, dtype=torch.long)
    with pytest.raises(ValueError, match="a sequence has 129 tokens; TRAINER.VIECAP.LANGUAGE_MODEL has 128 positions"):
        captioner.loss(torch.randn(1, D_CLIP), ids, torch.tensor([4]), torch.tensor([5]))


def test_layouts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="ONLY_HARD_PROMPT without USING_HARD_PROMPT"):
        PromptLayout(hard=False, soft_tokens=0)
    language_model = random_captioner().language_model
    mapping = MappingNetwork(D_CLIP, 32, prefix_length=4, n_layers=1)
    with pytest.raises(ValueError, match="makes 4 soft-prompt tokens; the layout has 3"):
        PrefixCaptioner(language_model, mapping, PromptLayout(soft_tokens=3))


def _digest(module: torch.nn.Module) -> str:
    parts = [tensor.detach().numpy().tobytes() for tensor in module.state_dict().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_frozen_language_model_stays_as_it_is() -> None:
    captioner = random_captioner(frozen=True).train()
    language_model, mapping = captioner.language_model, captioner.mapping
    before, mapping_before = _digest(language_model), _digest(mapping)
    optimizer = torch.optim.AdamW([p for p in captioner.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    vectors, *rest = random_batch(captioner)
    for _ in range(20):
        loss = captioner.loss(soft_input(vectors), *rest)
        (loss.total / loss.n_tokens).backward()
        optimizer.step()
        assert all(parameter.grad is None for parameter in language_model.parameters())
        assert all(parameter.grad is not None for parameter in mapping.parameters())
        optimizer.zero_grad()
        losses.append(loss.total.item())
    assert _digest(language_model) == before and _digest(mapping) != mapping_before
    assert losses[-1] < losses[0]


def test_everything_trains_unless_frozen() -> None:
    captioner = random_captioner().train()
    captioner.loss(*random_batch(captioner)).total.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in captioner.parameters())


def test_dropout_is_active_in_training_only() -> None:
    captioner = random_captioner()
    batch = random_batch(captioner)

    def losses() -> tuple[float, float]:
        with torch.no_grad():
            return captioner.loss(*batch).total.item(), captioner.loss(*batch).total.item()

    first, second = losses()
    assert first == second
    captioner.train()
    first, second = losses()
    assert first != second
    frozen = random_captioner(frozen=True).train()
    assert frozen.training and frozen.mapping.training and not any(m.training for m in frozen.language_model.modules())


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_step_never_waits_for_the_device(layout: PromptLayout) -> None:
    """The meta device has no values: whatever the host wanted to know of them would raise."""
    captioner = random_captioner(layout).train()
    vectors, ids, n_hard, n_caption = random_batch(captioner)
    captioner.to("meta")
    loss = captioner.loss(soft_input(vectors.to("meta")), ids.to("meta"), n_hard, n_caption)
    loss.total.backward()
    assert loss.total.is_meta and loss.n_tokens == int(n_caption.sum())


def test_scores_are_the_language_models_own() -> None:
    """What stands for no cache hands keys and values on: scores equal those of the whole model."""
    captioner = random_captioner()
    embeds = torch.randn(2, 7, 32)
    with torch.no_grad():
        expected = captioner.language_model(inputs_embeds=embeds, use_cache=False).logits
        assert torch.equal(captioner.scores(captioner.hidden(embeds)), expected)
