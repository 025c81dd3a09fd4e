"""LLaVA that reads background tokens, object tokens and text, in this order.

LLaVA: https://arxiv.org/abs/2304.08485, LLaVA-1.5: https://arxiv.org/abs/2310.03744. Here a picture's background and objects
pass the frozen vision tower without seeing one another, so that both the tokens of a background and the language model's keys
and values of it can be used again. The LLaVA is held by reference and driven from outside.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from trainers.bgobj_llava.model.batches import PaddedBatch, StockRows, pad_right, write_stock_rows
from trainers.bgobj_llava.model.encode import FrozenVision, SplitBatch
from trainers.bgobj_llava.model.fusion import FusionStack
from trainers.bgobj_llava.model.info import find_llava_problems, read_info
from trainers.bgobj_llava.model.options import NODE, ModelOptions
from trainers.bgobj_llava.model.prefill import PrefillState
from trainers.bgobj_llava.model.prompt import IGNORED, TextIds
from trainers.bgobj_llava.model.separators import add_separators, build_separators
from trainers.bgobj_llava.model.sequence import GROUPS, TEXT, Encoded, Segment, Segments, SequenceRules
from trainers.recomputing import recompute_layers
from trainers.token_loss import TokenLoss


class BgObjLlava(nn.Module):
    """A LLaVA with split images, separators and fusion layers. It never calls autocast: the caller does.

    Args:
        llava: Held by reference; stays what it is.
        tokenizer: Its tokenizer; the model keeps a copy that knows the separators, as `tokenizer`.
        options: What is built, and how it is run. With `split none` nothing is.

    Raises:
        ValueError: Listing what this LLaVA or its attention cannot do.
    """

    def __init__(
        self,
        llava: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        options: ModelOptions | None = None,
    ) -> None:
        super().__init__()
        options = options or ModelOptions()
        attention = [str(each.config._attn_implementation) for each in (llava.model.language_model, llava.model.vision_tower)]
        problems = [*find_llava_problems(llava), *options.find_attention_problems(*attention)]
        if problems:
            raise ValueError("; ".join(problems))
        self.llava = llava.requires_grad_(False)
        self.options = options
        self._visible = GROUPS
        embedding = llava.get_input_embeddings()
        self.tokenizer, ids = add_separators(tokenizer, options.separators, embedding.num_embeddings)
        self.info = read_info(llava, self.tokenizer, separator_ids=ids, n_fusion_layers=options.n_fusion)
        self._build_parts(embedding, ids)
        self._rules = SequenceRules(options, n_patches=self.info.n_patches, image_id=self.info.image_id, separator_ids=ids)
        self._vision = FrozenVision(
            llava.model.vision_tower, feature_block=self.info.feature_block, own_cls=options.cls == "per_group"
        )
        self._devices_checked = False
        self.train(False)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> BgObjLlava:
        """Put a stored model together; see `composition.load_composition`, which also returns its prompt and settings."""
        from trainers.bgobj_llava.storage.composition import load_composition

        return load_composition(folder, **options).model

    def _build_parts(self, embedding: nn.Embedding, separator_ids: dict[str, int]) -> None:
        options, language_model = self.options, self.llava.model.language_model
        self.separators = self.fusion = self.projector_bg = self.projector_obj = None
        if separator_ids:
            self.separators = build_separators(
                embedding, self.tokenizer, separator_ids, init=options.sep_init, seed=options.seed
            )
        if options.n_fusion:
            self.fusion = FusionStack(
                language_model, n_layers=options.n_fusion, init=options.fusion_init, seed=options.seed
            )
        if options.n_projectors == 2:
            self.projector_bg = copy.deepcopy(self.llava.model.multi_modal_projector)
            self.projector_obj = copy.deepcopy(self.llava.model.multi_modal_projector)
        if options.grad_ckpt:
            recompute_layers([*language_model.layers, *(self.fusion.layers if self.fusion is not None else ())])

    # -- state of the module --------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows that enter the language model."""
        return self.llava.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        return self.llava.get_input_embeddings().weight.device

    @property
    def visible(self) -> frozenset[str]:
        """Groups whose tokens the language model gets: `bg` and `obj`, or less as a control."""
        return self._visible

    @visible.setter
    def visible(self, groups: Iterable[str]) -> None:
        groups = frozenset(groups)
        if not groups <= GROUPS or (self.options.split == "none" and groups != GROUPS):
            raise ValueError(f"visible is {sorted(groups)}; expected some of {sorted(GROUPS)}, with {NODE}.SPLIT 'none' all")
        self._visible = groups

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that must not be generated; none with `split none`, which stays Hugging Face's."""
        return () if self.options.split == "none" else self.info.suppressed_ids

    def train(self, mode: bool = True) -> BgObjLlava:
        """Switch the mode; the vision tower always stays in evaluation mode."""
        super().train(mode)
        self.llava.model.vision_tower.eval()
        return self

    def _apply(self, *arguments: object, **options: object) -> BgObjLlava:
        self._devices_checked = False
        return super()._apply(*arguments, **options)

    def check_devices(self, images: Tensor) -> None:
        """Require all parameters and the images on one device; done once per run, as it walks over all tensors.

        Raises:
            ValueError: Naming the tensors that are elsewhere.
        """
        if self._devices_checked:
            return
        named = {"images": images, **dict(self.named_parameters()), **dict(self.named_buffers())}
        elsewhere = [f"{name} on {tensor.device}" for name, tensor in named.items() if tensor.device != self.device]
        if elsewhere:
            raise ValueError(f"the language model's embedding is on {self.device}, but: {', '.join(elsewhere)}")
        self._devices_checked = True

    # -- image -> tokens ------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor, splits: SplitBatch, execution: str | None = None) -> list[Encoded]:
        """Turn images into background and object tokens.

        Args:
            images: Normalised RGB, (B, 3, S, S).
            splits: Their object patches.
            execution: `mask` or `gather`; None: as the options say for this mode. Irrelevant if nothing is isolated.

        Raises:
            ValueError: If masks have a wrong length, a tensor is on another device, or mask execution meets a ring.
        """
        self.check_devices(images)
        expected = (len(images), self.info.n_patches)
        if tuple(splits.objects.shape) != expected:
            raise ValueError(f"object masks have shape {tuple(splits.objects.shape)}; expected {expected}, one per patch")
        execution = execution or (self.options.vit_train if self.training else self.options.vit_eval)
        features = self._vision.encode_split(images, splits, execution if self.options.isolates else "whole")
        bg, obj = self._project(features.bg, "bg"), self._project(features.obj, "obj")
        stock = splits.stock_order.tolist()
        return [Encoded(*image) for image in zip(bg, obj, features.bg_index, features.obj_index, stock, strict=True)]

    def encode_group(self, images: Tensor, index: Tensor, group: str) -> Tensor:
        """Encode some patches of one image alone, as gather execution does.

        Args:
            images: (1, 3, S, S).
            index: Raster numbers of the patches, (n,), int64.
            group: `bg` or `obj`: whose projector.

        Returns:
            Their tokens, (n, d).
        """
        self.check_devices(images)
        return self._project(self._vision.encode_parts(images, [index]), group)[0]

    def _project(self, features: Sequence[Tensor], group: str) -> list[Tensor]:
        own = {"bg": self.projector_bg, "obj": self.projector_obj}[group]
        projector = self.llava.model.multi_modal_projector if own is None else own
        lengths = [len(rows) for rows in features]
        rows = torch.cat(list(features))
        tokens = projector(rows) if len(rows) else rows.new_zeros(0, self.info.d_model)
        return list(tokens.to(self.dtype).split(lengths))

    # -- tokens -> sequence ---------------------------------------------------------------------------------------------

    def build_segments(self, encoded: Encoded, text: TextIds) -> Segments:
        """Order tokens, separators and text; the one place where training, evaluation and prediction do so."""
        embeds = self._embed(text.prefix), self._embed(text.rest)
        separators = None if self.separators is None else self.separators.table.to(self.dtype)
        return self._rules.arrange(encoded, text, embeds, separators, self.visible)

    def token_segment(self, ids: Tensor, position: int) -> Segment:
        """Return generated tokens, (n,), as rows that go around the fusion layers; `position` is that of the first."""
        positions = torch.arange(position, position + len(ids), device=self.device)
        return Segment(self._embed(ids), positions, torch.full_like(positions, TEXT), ids.to(self.device), 0)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.llava.get_input_embeddings()(ids.to(self.device))

    # -- sequence -> hidden states --------------------------------------------------------------------------------------

    def new_state(self) -> PrefillState:
        """Return the state of a model that has read nothing."""
        return PrefillState.new(has_fusion=self.fusion is not None)

    def prefill(self, segment: Segment, state: PrefillState) -> Tensor:
        """Read one segment of one sequence after what `state` holds, which grows.

        Returns:
            The language model's final hidden states, (L, d).
        """
        length, device = len(segment), self.device
        mask = torch.ones(1, state.length + length, dtype=torch.bool, device=device)
        fused = torch.arange(length, device=device)[None] < segment.bypass
        return self.run(segment.embeds[None], segment.positions[None], mask, fused, state)[0]

    def run(
        self, embeds: Tensor, positions: Tensor, mask: Tensor, fused: Tensor, state: PrefillState | None = None
    ) -> Tensor:
        """Run fusion layers and language model: the one place that calls them, always with a mask of two dimensions.

        Without one, transformers takes gaps in the positions for the borders of packed sequences and isolates them. On the
        meta device, where masks fail, there is none.

        Args:
            embeds: (B, L, d).
            positions: Rotary positions, (B, L), int64.
            mask: Real rows, those in `state` included, (B, past + L), bool.
            fused: Rows that go through the fusion layers, (B, L), bool; none after the first that does not, padding aside.
            state: What was read before; gets these rows. None: nothing was, and nothing is kept.

        Returns:
            Final hidden states, (B, L, d).
        """
        if self.fusion is not None:
            embeds = self._fuse(embeds, positions, mask, fused, state)
        output = self.llava.model.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=None if embeds.is_meta else mask,
            past_key_values=None if state is None else state.llm,
            use_cache=state is not None,
        )
        return output.last_hidden_state

    def _fuse(self, embeds: Tensor, positions: Tensor, mask: Tensor, fused: Tensor, state: PrefillState | None) -> Tensor:
        """Replace fused rows; answers are not even shown to the layers, so nothing about them can leak."""
        end = embeds.shape[1] if embeds.is_meta else _last_true(fused)
        if end == 0:
            return embeds
        own, past = fused[:, :end], 0 if state is None else state.fused_length
        # All rows before a fused one were fused, so the first columns of the mask are those of the fusion layers.
        seen = None if embeds.is_meta else torch.cat([mask[:, :past], own], dim=1)
        mixed = self.fusion(embeds[:, :end], positions[:, :end], seen, None if state is None else state.fusion)
        mixed = torch.where(own[..., None], mixed, embeds[:, :end])
        return torch.cat([mixed, embeds[:, end:]], dim=1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states, (..., d) -> scores of the vocabulary, (..., V); `suppressed_ids` are still in."""
        return self.llava.lm_head(hidden)

    # -- whole passes ---------------------------------------------------------------------------------------------------

    def stock_inputs(self, images: Tensor, texts: Sequence[TextIds], *, padding: str = "right") -> dict[str, Tensor]:
        """Return the arguments of Hugging Face's own forward, or, with padding on the `left`, generate: ids, mask, pixels."""
        rows = self._stock_rows(texts, padding)
        return {"input_ids": rows.ids, "attention_mask": rows.mask, "pixel_values": images}

    def _stock_rows(self, texts: Sequence[TextIds], padding: str = "right") -> StockRows:
        info = self.info
        pad_id = 0 if info.pad_id is None else info.pad_id
        rows = write_stock_rows(texts, n_patches=info.n_patches, image_id=info.image_id, pad_id=pad_id, padding=padding)
        return rows.to(self.device)

    def forward(self, images: Tensor, splits: SplitBatch, texts: Sequence[TextIds]) -> list[Tensor]:
        """Return the scores after every row of each whole sequence, (L_i, V); with `split none`, Hugging Face's own."""
        if self.options.split == "none":
            self.check_devices(images)
            inputs = self.stock_inputs(images, texts)
            scores, mask = self.llava(**inputs).logits, inputs["attention_mask"]
        else:
            hidden, batch = self._run_batch(images, splits, texts)
            scores, mask = self.logits(hidden), batch.mask
        return [own[: int(length)] for own, length in zip(scores, mask.sum(dim=1), strict=True)]

    def train_losses(self, images: Tensor, splits: SplitBatch, texts: Sequence[TextIds]) -> TokenLoss:
        """Cross-entropy of the answers in one pass; scores are computed for their rows only, in fp32.

        Args:
            images: Normalised RGB, (B, 3, S, S).
            splits: Their object patches; unused with `split none`.
            texts: Conversations with answers.
        """
        if self.options.split == "none":
            self.check_devices(images)
            labels = self._stock_rows(texts).labels
            hidden = self.llava.model(**self.stock_inputs(images, texts), use_cache=False).last_hidden_state
        else:
            hidden, batch = self._run_batch(images, splits, texts)
            labels = batch.labels
        wanted = labels[:, 1:] != IGNORED  # each row says the token after it
        scores = self.logits(hidden[:, :-1][wanted]).float()
        total = nn.functional.cross_entropy(scores, labels[:, 1:][wanted], reduction="sum")
        return TokenLoss(total, len(scores))

    def _run_batch(self, images: Tensor, splits: SplitBatch, texts: Sequence[TextIds]) -> tuple[Tensor, PaddedBatch]:
        encoded = self.encode(images, splits)
        segments = [self.build_segments(image, text).whole for image, text in zip(encoded, texts, strict=True)]
        batch = pad_right(segments, [text.labels for text in texts])
        return self.run(batch.embeds, batch.positions, batch.mask, batch.fused), batch


def _last_true(columns: Tensor) -> int:
    """Columns of (B, L) up to the last that is True anywhere."""
    found = columns.any(dim=0).nonzero()
    return int(found[-1]) + 1 if len(found) else 0
