"""The PyTorch module of a plain backbone, which is the exported graph: DINO, DINOv2 and NeCo in all their sizes.

Semantics: facebookresearch/dinov2 at b8931f7 (vision_transformer.py), facebookresearch/dino at 7c446df, vpariza/NeCo at
3932160. They assemble the tokens alike: cls with its position, registers without one, patches with theirs.
B = batch, N = patches, P = prefix tokens, D = width.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saccade.bundle import BackboneModel
from saccade.contract import CLS_BLOCKS
from saccade.export.modules import NORM_EPS, Block, PatchEmbed, attention_weights


class Backbone(nn.Module):
    """The backbone graph: image (B,3,H,W), positions (1+N,D) -> cls (B,D), tokens (B,N,D) and the extras.

    attention (B,heads,N): the softmax row of cls in the last block, at the patches. cls_last4 (B,4,D): cls after each of
    the last four blocks and the final norm, earliest first. Patches beyond the last whole one are left out.
    """

    def __init__(self, model: BackboneModel, extras: Sequence[str] = ()) -> None:
        super().__init__()
        self.extras = extras
        self.cls_token = nn.Parameter(torch.zeros(1, 1, model.dim))
        self.reg_token = nn.Parameter(torch.zeros(1, model.registers, model.dim)) if model.registers else None
        self.patch_embed = PatchEmbed(model.dim, model.patch)
        self.blocks = nn.ModuleList(
            Block(model.dim, model.hidden, model.ffn, model.layer_scale) for _ in range(model.depth)
        )
        self.norm = nn.LayerNorm(model.dim, eps=NORM_EPS)

    def forward(self, image: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        prefix = self.cls_token + positions[:1]
        if self.reg_token is not None:
            prefix = torch.cat([prefix, self.reg_token], dim=1)
        patches = self.patch_embed(image) + positions[1:]
        x = torch.cat([prefix.expand(image.shape[0], -1, -1), patches], dim=1)
        count, rows, asked = prefix.shape[1], [], []
        for block in self.blocks[:-1]:
            x = block(x)
            rows.append(x[:, :1])
        last = self.blocks[-1]
        if "attention" in self.extras:
            assert isinstance(last, Block)
            x, attention = attended(last, x)
            asked.append(attention[..., count:])
        else:
            x = last(x)
        if "cls_last4" in self.extras:  # before the final norm, which is then the graph's last
            asked.append(self.norm(torch.cat([*rows, x[:, :1]][-CLS_BLOCKS:], dim=1)))
        x = self.norm(x)
        return x[:, 0], x[:, count:], *asked


def attended(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:  # (B,P+N,D) -> (B,P+N,D), (B,heads,P+N)
    """Run a block and return its attention row of cls as well, computed beside its own attention and not out of it.

    A softmax that anything else reads is none that an engine can fuse; one row more costs next to nothing.
    """
    q, k, v = block.attn.project(block.norm1(x))
    row = attention_weights(q[:, :, :1], k)[:, :, 0]
    return block.feed(x, block.attn.mix(q, k, v)), row
