"""Torch's fused attention in the place of ours, where torch itself is what runs: it is what timm's modules call."""
from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from saccade.export.modules import Attention

Module = TypeVar("Module", bound=nn.Module)


class FusedAttention(Attention):
    """The same numbers by torch's kernel; ours is written out for the engines' own fusions."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return (B, N, D) for three times (B, H, N, 64)."""
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def with_torch_attention(module: Module) -> Module:
    """Return the module, with torch's attention in it. Others stay as they are."""
    for each in module.modules():
        if type(each) is Attention:
            each.__class__ = FusedAttention  # the layers and their weights are the same
    return module
