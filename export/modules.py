"""The PyTorch modules of LookWhere. They are the exported graphs: what `forward` says here is what the engines run.

Semantics: antofuller/lookwhere, modeling.py at e7e5dc1 (the two networks), timm's VisionTransformer (their blocks).
B = batch, N = tokens, P = prefix tokens, D = width, H = heads, k = kept patches.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_SIZE = 64
NORM_EPS = 1e-6  # timm's ViT; LayerNorm's default 1e-5 moves cls by 2e-4


class Attention(nn.Module):
    """Multi-head self-attention, written out so that every engine's fusion recognises it.

    The softmax scale stands before the first product, on q, where TensorRT's fused kernels expect it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // HEAD_SIZE
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        return self.mix(*self.project(x))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:  # (B, N, D) -> queries, keys and values, (B, H, N, 64) each
        return tuple(
            part.unflatten(-1, (self.heads, HEAD_SIZE)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # three times (B, H, N, 64) -> (B, N, D)
        return self.proj((attention_weights(q, k) @ v).transpose(1, 2).flatten(2))


def attention_weights(q: Tensor, k: Tensor) -> Tensor:  # (B, H, M, 64), (B, H, N, 64) -> (B, H, M, N)
    """Return the softmax over the keys, for each query."""
    return torch.softmax((q * HEAD_SIZE**-0.5) @ k.transpose(-2, -1), dim=-1)


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """Packed SwiGLU: the first half of fc1 is the gate, the second the value (timm's gate_last=False)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """One pre-norm transformer block; DINO's has no LayerScale."""

    def __init__(self, dim: int, hidden: int, ffn: str, layer_scale: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim)
        self.ls1 = LayerScale(dim) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp: nn.Module = SwiGlu(dim, hidden) if ffn == "swiglu" else Mlp(dim, hidden)
        self.ls2 = LayerScale(dim) if layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.feed(x, self.attn(self.norm1(x)))

    def feed(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.ls1(attended)
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """The patch projection: a strided convolution over an image, or the same numbers over patches already cut out."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:  # (B, 3, h*patch, w*patch) -> (B, h*w, D)
        return self.proj(image).flatten(2).transpose(1, 2)

    def project(self, patches: Tensor) -> Tensor:  # (B, k, 3*patch*patch) -> (B, k, D)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Transformer(nn.Module):
    """Embedding, blocks and final norm, with timm's parameter names. `reg_token` exists where there are registers."""

    def __init__(self, dim: int, depth: int, patch: int, positions: int, registers: int, hidden: int, ffn: str) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim))
        self.patch_embed = PatchEmbed(dim, patch)
        self.blocks = nn.ModuleList(Block(dim, hidden, ffn) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def prefix(self) -> Tensor:  # -> (1, P, D); the checkpoint has the cls position already added to cls_token
        return self.cls_token if self.reg_token is None else torch.cat([self.cls_token, self.reg_token], dim=1)

    def encode(self, prefix: Tensor, patches: Tensor) -> Tensor:  # (B, P, D), (B, N, D) -> (B, P+N, D)
        x = torch.cat([prefix, patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class MapHead(nn.Module):
    """Scores of map_factor x map_factor cells per selector patch; channel i*map_factor + j is the cell (i, j)."""

    def __init__(self, dim: int, hidden: int, map_factor: int) -> None:
        super().__init__()
        self.map_factor = map_factor
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(hidden, map_factor**2)

    def forward(self, tokens: Tensor, grid: int) -> Tensor:  # (B, grid*grid, D) -> (B, grid*factor, grid*factor)
        scores = self.w2(F.gelu(self.w1(tokens)))
        cells = scores.unflatten(1, (grid, grid)).unflatten(3, (self.map_factor, self.map_factor))
        return cells.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)


class Selector(nn.Module):
    """The selector graph: lowres (B,3,S,S) -> score_map (B,M,M), prefix (B,P,D) after the final norm."""

    def __init__(self, backbone: Transformer, head: MapHead, grid: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.grid = grid

    def forward(self, lowres: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.backbone.patch_embed(lowres) + self.backbone.pos_embed
        learned = self.backbone.prefix()
        x = self.backbone.encode(learned.expand(lowres.shape[0], -1, -1), patches)
        prefix, tokens = x[:, : learned.shape[1]], x[:, learned.shape[1] :]
        return self.head(tokens, self.grid), prefix


class Extractor(nn.Module):
    """The extractor graph: patches (B,k,588), positions (B,k,D), prefix (B,P,D) -> by task.

    features: cls (B,D), tokens (B,k,D). classify: logits (B,C), tokens (B,k,D). segment: tokens (B,k,C), since a linear
    head commutes with the inverse-distance fill, whose weights sum to 1.
    """

    def __init__(self, backbone: Transformer, task: str, head: nn.Linear | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.task = task
        self.head = head

    def forward(self, patches: Tensor, positions: Tensor, prefix: Tensor) -> tuple[Tensor, ...]:
        x = self.backbone.encode(prefix, self.backbone.patch_embed.project(patches) + positions)
        tokens = x[:, prefix.shape[1] :]
        if self.head is None:
            return x[:, 0], tokens
        if self.task == "classify":  # on (B, 1, D), so that this layer too is a MatMul and not the graph's only Gemm
            return self.head(x[:, :1]).flatten(1), tokens
        return (self.head(tokens),)
