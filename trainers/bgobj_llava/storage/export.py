"""A trained BgObjLLaVA in other programs' formats: a plain LLaVA folder, a PEFT folder, or a composition of this package.

What a format cannot hold is an error that names the config key. An export is written whole or not at all, and only after the
files that were written say what the model says.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaImageProcessor, LlavaProcessor

from clip_ext.folders import replacing_folder
from trainers.bgobj_llava.model.encode import SplitBatch
from trainers.bgobj_llava.model.llava import BgObjLlava
from trainers.bgobj_llava.model.scopes import LORA_TARGETS
from trainers.bgobj_llava.storage.artifact import NODE
from trainers.bgobj_llava.storage.composition import Composition, autocast_of, load_composition
from trainers.bgobj_llava.storage.loading import load_llava
from trainers.bgobj_llava.storage.model_card import write_model_card
from trainers.bgobj_llava.storage.probe import probe_input

logger = logging.getLogger(__name__)

FORMATS = ("hf", "peft", "composition")
TOLERANCE = 1e-5  # of the largest logit, or of 1, in fp32; half-precision exports are rounded, which is only reported


def find_problems(composition: Composition, form: str) -> list[str]:
    """Return one message per reason why a model has no such form."""
    node, problems = composition.settings, []
    if form == "composition":
        return problems
    if node.PROJECTOR != "shared" and node.SPLIT != "none":
        problems.append(f"{NODE}.PROJECTOR is {node.PROJECTOR!r}: a plain LLaVA has one projector; expected shared")
    if composition.model.fusion is not None:
        problems.append(f"{NODE}.FUSION.LAYERS is {node.FUSION.LAYERS}: a plain LLaVA has no fusion layers; expected 0")
    if form == "peft" and node.TRAIN.SCOPE not in ("projector", "lora"):
        scope = node.TRAIN.SCOPE
        problems.append(f"{NODE}.TRAIN.SCOPE is {scope!r}: no adapter of PEFT; expected lora or projector, or format hf")
    return problems


def export(composition: Composition, form: str, folder: Path) -> float:
    """Write a model in another form.

    Args:
        composition: The model; `hf` changes it in place: its LoRA layers are merged.
        form: One of `FORMATS`.
        folder: To write; must not exist.
    Returns:
        Largest difference of a logit between the files that were written and the model.
    Raises:
        ValueError: If the form is unknown, cannot hold the model (names the keys), or says something else than the model.
        FileExistsError: If the folder exists.
        OSError: If it cannot be written.
    """
    if form not in FORMATS:
        raise ValueError(f"format is {form!r}; expected one of {', '.join(FORMATS)}")
    problems = find_problems(composition, form)
    if problems:
        raise ValueError("\n  ".join([f"format {form}: {len(problems)} problem(s):", *problems]))
    if folder.exists():
        raise FileExistsError(f"{folder} exists; give another folder, or remove it")
    write = {"hf": _write_hf, "peft": _write_peft, "composition": _write_composition}[form]
    with replacing_folder(folder) as new:
        said, expected = write(composition, new)
        difference, limit = (said - expected).abs().max().item(), TOLERANCE * max(1.0, expected.abs().max().item())
        if composition.model.dtype == torch.float32 and not difference <= limit:
            raise ValueError(f"logits of the exported model differ by {difference:.3g}, allowed {limit:.2g}; nothing was kept")
        write_model_card(new, composition, form)
    return difference


# -- a plain LLaVA -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _write_hf(composition: Composition, folder: Path) -> tuple[Tensor, Tensor]:
    """Write the folder; this and its siblings return what the files say, and what the model says."""
    model = composition.model
    llava, expected = model.llava, _split_logits(composition)
    merge_lora(llava)
    llava.to(model.dtype)
    embedding = llava.get_input_embeddings().weight
    if model.separators is not None:
        embedding[list(model.info.separator_ids.values())] = model.separators.table.to(embedding)
    llava.generation_config.suppress_tokens = list(model.info.suppressed_ids)
    llava.save_pretrained(folder)
    _write_processor(composition, folder)
    plain = load_llava(str(folder), dtype=model.dtype, attn=_attention_of(model), device=model.device).model
    return _plain_logits(composition, plain), expected


def merge_lora(model: nn.Module) -> None:
    """Add the updates of all LoRA layers to the weights they stand beside, and take them out."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.get_base_layer())


def _write_processor(composition: Composition, folder: Path) -> None:
    """Write tokenizer and processor; it pads as this package does, if that is how the model learned."""
    loaded, side = composition.loaded, composition.loaded.side_px
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    colours = {"image_mean": list(loaded.mean), "image_std": list(loaded.std)}
    pads = composition.settings.IMAGE.ASPECT == "pad"
    processor = LlavaImageProcessor(do_pad=True, **sizes, **colours) if pads else CLIPImageProcessor(**sizes, **colours)
    LlavaProcessor(
        image_processor=processor, tokenizer=composition.model.tokenizer, patch_size=loaded.patch_px,
        vision_feature_select_strategy="default", image_token=composition.encoder.template.image, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip


@torch.no_grad()
def _split_logits(composition: Composition) -> Tensor:
    """Return what the model says after every row of the probe's input, (L, V), and with stock LLaVA's input behind it."""
    model, (images, objects, text) = composition.model, probe_input(composition.model, composition.encoder)
    with autocast_of(model):
        split, = model(images, SplitBatch.of(objects[None]), [text])
        stock = model.llava(**model.stock_inputs(images, [text])).logits[0]
    return torch.cat([split, stock]).float()


@torch.no_grad()
def _plain_logits(composition: Composition, plain: nn.Module) -> Tensor:
    """Return the same of a plain LLaVA: it is given ids, and the model's image tokens where the split would have made them."""
    model, (images, objects, text) = composition.model, probe_input(composition.model, composition.encoder)
    stock_inputs = model.stock_inputs(images, [text])
    with autocast_of(model):
        stock = plain(**stock_inputs).logits[0]
        if model.options.split == "none":
            return torch.cat([stock, stock]).float()
        encoded, = model.encode(images, SplitBatch.of(objects[None]))
        rows = model.build_segments(encoded, text).whole
        embeds = plain.get_input_embeddings()(rows.ids)
        image = (rows.ids == model.info.image_id)[:, None]
        embeds = torch.where(image, rows.embeds.to(embeds.dtype), embeds)[None]
        mask = torch.ones_like(rows.ids)[None]
        split = plain(inputs_embeds=embeds, attention_mask=mask, position_ids=rows.positions[None]).logits[0]
    return torch.cat([split, stock]).float()


# -- PEFT --------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _write_peft(composition: Composition, folder: Path) -> tuple[Tensor, Tensor]:
    """Write LoRA layers, projector and separators as an adapter for `peft.PeftModel.from_pretrained`."""
    from peft import LoraConfig, PeftModel, get_peft_model

    model, node = composition.model, composition.settings
    has_lora = node.TRAIN.SCOPE == "lora"
    separator_ids = list(model.info.separator_ids.values())
    config = LoraConfig(
        r=node.LORA.R if has_lora else 1,
        lora_alpha=node.LORA.ALPHA,
        target_modules=LORA_TARGETS,
        modules_to_save=["multi_modal_projector"],
        trainable_token_indices={"embed_tokens": separator_ids} if separator_ids else None,
    )
    wrapped = get_peft_model(_fresh_base(composition), config)
    own = dict(model.llava.named_parameters())
    for name, parameter in wrapped.base_model.model.named_parameters():
        source = own.get(name.replace(".modules_to_save.default", ""))
        if "token_adapter.trainable_tokens_delta" in name:
            parameter.copy_(model.separators.table)
        elif source is not None and (has_lora or "lora_" not in name) and (".modules_to_save." in name or "lora_" in name):
            parameter.data = source.detach().clone()
    wrapped.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    again = PeftModel.from_pretrained(_fresh_base(composition), folder).eval()
    return _plain_logits(composition, again), _split_logits(composition)


def _fresh_base(composition: Composition) -> LlavaForConditionalGeneration:
    model, revision = composition.model, composition.settings.REVISION
    base = composition.loaded.base.id
    return load_llava(base, revision=revision, dtype=model.dtype, attn=_attention_of(model), device=model.device).model


def _attention_of(model: BgObjLlava) -> str:
    return str(model.llava.config.text_config._attn_implementation)


# -- this package ------------------------------------------------------------------------------------------------------------


def _write_composition(composition: Composition, folder: Path) -> tuple[Tensor, Tensor]:
    """Copy the adapter; `BgObjLlava.from_pretrained` puts it on the base that it names."""
    shutil.copytree(composition.adapter.path, folder, dirs_exist_ok=True)
    again = load_composition(folder, base=composition.loaded.base.id, dtype=composition.model.dtype)
    return _split_logits(again), _split_logits(composition)
