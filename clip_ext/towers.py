"""One way to reach the parts of a CLIP vision tower, whoever built it.

A tower adapter holds the original modules by reference: nothing is copied, wrapped or patched. It speaks block numbers
from 1 and batch-first tokens, (B, L, D), with the CLS row first.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

NEEDS_CLS = "needs a CLIP ViT with a CLS token"


@dataclass(frozen=True)
class TowerInfo:
    """Sizes of a vision tower; `grid` is the number of patches per side, `embed_dim` the size after `project`."""

    depth: int
    width: int
    heads: int
    embed_dim: int
    patch_size: int
    grid: int
    image_size_px: int

    @property
    def n_patches(self) -> int:
        return self.grid**2


class VisionTower(Protocol):
    """What `ExtendedVisionTransformer` needs from a tower."""

    info: TowerInfo

    @property
    def blocks(self) -> nn.ModuleList:
        """The tower's own transformer blocks."""

    def embed(self, images: Tensor) -> Tensor:
        """Normalised RGB, (B, 3, H, H) -> tokens before block 1, (B, 1+N, D): patches, CLS, positions, pre-LN."""

    def native_mask(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Convert a mask, (L, L) or (B, L, L), bool (True: may attend) or additive, to what the blocks take."""

    def run_block(self, number: int, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Run block `number` (from 1) on (B, L, D); `attn_mask` comes from `native_mask`."""

    def run_block_cls(self, number: int, x: Tensor) -> Tensor:
        """Like `run_block` without a mask, but compute only the CLS row, (B, 1, D)."""

    def post(self, x: Tensor) -> Tensor:
        """Final LayerNorm on (..., D)."""

    def project(self, x: Tensor) -> Tensor:
        """(..., D) -> joint space, (..., E)."""

    def norms(self) -> dict[str, nn.LayerNorm]:
        """The tower's LayerNorms: ln_pre, blocks.<n>.ln_1, blocks.<n>.ln_2 with n from 1, ln_post."""


def build_tower(visual: nn.Module) -> "OpenClipTower | HFClipTower":
    """Wrap the vision tower of a CLIP.

    Args:
        visual: open_clip's `VisionTransformer` (`model.visual`), or transformers' `CLIPVisionModel`,
            `CLIPVisionModelWithProjection` or `CLIPModel`. A tower without projection keeps E = D.
    Raises:
        ValueError: For any other tower, such as a ResNet or one that pools without CLS.
    """
    if isinstance(visual, VisionTransformer):
        return OpenClipTower(visual)
    inner = getattr(visual, "vision_model", visual)
    if hasattr(inner, "pre_layrnorm") and hasattr(getattr(inner, "embeddings", None), "class_embedding"):
        return HFClipTower(visual)
    raise ValueError(f"{type(visual).__name__} cannot be driven: this package {NEEDS_CLS}, that is open_clip's "
                     f"VisionTransformer (model.visual) or transformers' CLIPVisionModel or CLIPModel")


def require_cls_vit(visual: nn.Module) -> None:
    """Refuse open_clip towers that do not read their feature from a CLS token.

    Raises:
        ValueError: For ResNets, timm towers, attention or average pooling, patch dropout and oblong images.
    """
    if not isinstance(visual, VisionTransformer):
        raise ValueError(f"the image tower is a {type(visual).__name__}; this package {NEEDS_CLS}")
    if visual.attn_pool is not None or visual.pool_type != "tok":
        pooling = "attention" if visual.attn_pool is not None else visual.pool_type
        raise ValueError(f"the image tower pools its tokens by {pooling!r}; this package {NEEDS_CLS}")
    if visual.grid_size[0] != visual.grid_size[1]:
        raise ValueError(f"the image tower has a grid of {visual.grid_size}; only square images are supported")
    if not isinstance(visual.patch_dropout, nn.Identity):
        raise ValueError("the image tower drops patches at random (vision_cfg.patch_dropout); set it to 0")


def _to_additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _is_plain(block: nn.Module) -> bool:
    """Whether this is open_clip's standard block with nobody listening, so that its parts may be run one by one."""
    return (
        isinstance(block, ResidualAttentionBlock)
        and type(block.attn) is nn.MultiheadAttention
        and not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in (block, block.attn))
    )


def _attend(attn: nn.MultiheadAttention, x: Tensor, *, attn_mask: Tensor | None = None, cls_only: bool = False) -> Tensor:
    """Self-attention of (B, L, D) with the module's weights, -> (B, L, D), or (B, 1, D) for the CLS row alone.

    The module itself turns batch-first tokens into a transposed view, and with frozen weights torch multiplies such a view
    position by position (a `bmm` per row of L), which takes twice as long on a CPU.
    """
    width, weight, bias = attn.embed_dim, attn.in_proj_weight, attn.in_proj_bias
    if cls_only:
        rows = [F.linear(x[:, :1], weight[:width], bias[:width]), *F.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)]
    else:
        rows = F.linear(x, weight, bias).chunk(3, dim=-1)
    query, key, value = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in rows)  # (B, heads, L, D / heads)
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask.unflatten(0, (-1, attn.num_heads))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
    return attn.out_proj(mixed.transpose(1, 2).flatten(2))


class OpenClipTower(nn.Module):
    """Adapter for open_clip's `VisionTransformer`."""

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        require_cls_vit(visual)
        self.visual = visual
        self.info = TowerInfo(
            depth=len(visual.transformer.resblocks),
            width=visual.transformer.width,
            heads=visual.transformer.resblocks[0].attn.num_heads,
            embed_dim=visual.output_dim,
            patch_size=visual.patch_size[0],
            grid=visual.grid_size[0],
            image_size_px=visual.image_size[0],
        )

    @property
    def blocks(self) -> nn.ModuleList:
        return self.visual.transformer.resblocks

    def embed(self, images: Tensor) -> Tensor:
        visual = self.visual
        patches = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (B, N, D)
        cls = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = torch.cat([cls, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        return visual.ln_pre(x)

    def native_mask(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        additive = _to_additive(mask, dtype)
        # nn.MultiheadAttention wants one mask per image and head.
        return additive if additive.ndim == 2 else additive.repeat_interleave(self.info.heads, dim=0)

    def run_block(self, number: int, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        block = self.blocks[number - 1]
        if not _is_plain(block):
            return block(x, attn_mask=attn_mask)
        x = x + block.ls_1(_attend(block.attn, block.ln_1(x), attn_mask=attn_mask))
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    def run_block_cls(self, number: int, x: Tensor) -> Tensor:
        block = self.blocks[number - 1]
        if not _is_plain(block):
            return self.run_block(number, x)[:, :1]
        cls = x[:, :1] + block.ls_1(_attend(block.attn, block.ln_1(x), cls_only=True))
        return cls + block.ls_2(block.mlp(block.ln_2(cls)))

    def post(self, x: Tensor) -> Tensor:
        return self.visual.ln_post(x)

    def project(self, x: Tensor) -> Tensor:
        return x @ self.visual.proj

    def norms(self) -> dict[str, nn.LayerNorm]:
        named = {"ln_pre": self.visual.ln_pre}
        for number, block in enumerate(self.blocks, start=1):
            named |= {f"blocks.{number}.ln_1": block.ln_1, f"blocks.{number}.ln_2": block.ln_2}
        named["ln_post"] = self.visual.ln_post
        return {name: norm for name, norm in named.items() if isinstance(norm, nn.LayerNorm)}


class HFClipTower(nn.Module):
    """Adapter for the CLIP vision towers of transformers (before 5.10 one `vision_model` deeper)."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        config = self._inner.config
        projection = getattr(visual, "visual_projection", None)
        self.info = TowerInfo(
            depth=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            embed_dim=config.hidden_size if projection is None else projection.out_features,
            patch_size=config.patch_size,
            grid=config.image_size // config.patch_size,
            image_size_px=config.image_size,
        )

    @property
    def _inner(self) -> nn.Module:
        return getattr(self.visual, "vision_model", self.visual)

    @property
    def blocks(self) -> nn.ModuleList:
        return self._inner.encoder.layers

    def embed(self, images: Tensor) -> Tensor:
        return self._inner.pre_layrnorm(self._inner.embeddings(images))

    def native_mask(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        additive = _to_additive(mask, dtype)
        return additive[None, None] if additive.ndim == 2 else additive[:, None]  # (1 or B, 1, L, L)

    def run_block(self, number: int, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        output = self.blocks[number - 1](x, attn_mask)
        return output[0] if isinstance(output, tuple) else output

    def run_block_cls(self, number: int, x: Tensor) -> Tensor:
        # HF's attention has one input for queries and keys, so the full block is the only public way.
        return self.run_block(number, x)[:, :1]

    def post(self, x: Tensor) -> Tensor:
        return self._inner.post_layernorm(x)

    def project(self, x: Tensor) -> Tensor:
        projection = getattr(self.visual, "visual_projection", None)
        return x if projection is None else projection(x)

    def norms(self) -> dict[str, nn.LayerNorm]:
        named = {"ln_pre": self._inner.pre_layrnorm}
        for number, block in enumerate(self.blocks, start=1):
            named |= {f"blocks.{number}.ln_1": block.layer_norm1, f"blocks.{number}.ln_2": block.layer_norm2}
        return named | {"ln_post": self._inner.post_layernorm}
