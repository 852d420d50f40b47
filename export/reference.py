"""The PyTorch reference: LookWhere run as upstream runs it, on the full graph, from the checkpoint's own modules.

Unlike the exported split it embeds every patch of the full image and gathers tokens afterwards (antofuller/lookwhere,
modeling.py at e7e5dc1), so that parity compares two different ways to the same numbers. The only rules that are ours are
those that upstream leaves open: equal scores go to the lower index, equally far patches to the higher score.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from saccade.bundle import ImageContract
from saccade.errors import SaccadeError
from saccade.export.checkpoint import Checkpoint, load_modules
from saccade.golden import Case, ReferenceOutput, relative_difference

FILL_NEIGHBOURS = 5
# What LookWhere was trained with, and every backbone of which nobody says otherwise.
IMAGENET = ImageContract(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Reference:
    """Both modules of a checkpoint in one dtype."""

    def __init__(self, checkpoint: Checkpoint, task: str, dtype: torch.dtype = torch.float32) -> None:
        self.model = checkpoint.model
        self.task = task
        self.dtype = dtype
        selector, extractor = load_modules(checkpoint, task)
        if dtype != torch.float32:
            selector, extractor = selector.to(dtype), extractor.to(dtype)
        self.selector, self.extractor = selector, extractor
        self._base_positions = checkpoint.base_positions.permute(2, 0, 1).unsqueeze(0).to(dtype)

    @torch.inference_mode()
    def __call__(
        self, images: Sequence[np.ndarray], k: int, indices: np.ndarray | None = None, prefix: np.ndarray | None = None
    ) -> ReferenceOutput:
        """Run on uint8 (H, W, 3) images of one size; `indices` and `prefix` replace the selector's own where given."""
        image = normalised(images, self.dtype)
        raw, own_prefix = self.look(image)
        grid = (image.shape[2] // self.model.patch, image.shape[3] // self.model.patch)
        scores = F.interpolate(raw.unsqueeze(1), grid, mode="bilinear", align_corners=False).squeeze(1)
        kept = top_k(scores.flatten(1), k) if indices is None else torch.from_numpy(indices).long()
        rows = own_prefix if prefix is None else torch.from_numpy(prefix).to(self.dtype)
        pooled, tokens = self.extract(image, kept, rows)
        return ReferenceOutput(
            raw.numpy(),
            scores.numpy(),
            rows.numpy(),
            kept.to(torch.int32).numpy(),
            tokens.numpy(),
            pooled.numpy(),
        )

    def look(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the raw score map and the prefix rows of normalised images (B, 3, H, W)."""
        size = self.model.selector_size
        lowres = F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=False)
        raw, prefix = self.selector(lowres)
        return raw, prefix

    def extract(self, image: Tensor, kept: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the whole image, keep the rows `kept` (B, k) and return (cls, logits or nothing; tokens)."""
        backbone = self.extractor.backbone
        embedded = backbone.patch_embed(image) + self._positions_on(image)
        rows = torch.gather(embedded, 1, kept.unsqueeze(-1).expand(-1, -1, embedded.shape[-1]))
        x = backbone.encode(prefix, rows)
        cls, tokens, head = x[:, 0], x[:, prefix.shape[1] :], self.extractor.head
        if self.task == "features":
            return cls, tokens
        assert head is not None
        return (head(cls), tokens) if self.task == "classify" else (cls[:, :0], head(tokens))

    def _positions_on(self, image: Tensor) -> Tensor:
        """Return the position table at the image's grid, (1, cells, D): bicubic by size, no antialias, as upstream."""
        grid = (image.shape[2] // self.model.patch, image.shape[3] // self.model.patch)
        table = self._base_positions
        if grid != self.model.base_grid:
            table = F.interpolate(table, grid, mode="bicubic", align_corners=False, antialias=False)
        return table.flatten(2).transpose(1, 2)


def normalised(
    images: Sequence[np.ndarray], dtype: torch.dtype = torch.float32, contract: ImageContract = IMAGENET
) -> Tensor:
    """Return uint8 (H, W, 3) images as (x/255 - mean)/std, (B, 3, H, W)."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(dtype) / 255
    mean, std = (torch.tensor(values, dtype=dtype).view(1, 3, 1, 1) for values in (contract.mean, contract.std))
    return ((pixels - mean) / std).contiguous()


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return the k best of (B, cells) by score, ties to the lower index: torch.topk leaves their order open."""
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]


def fill(tokens: Tensor, indices: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return (B, C, gh, gw) from tokens (B, k, C): the 5 nearest kept patches by inverse distance (upsample_grid_nn)."""
    rows, columns = grid
    if indices.shape[1] < FILL_NEIGHBOURS:
        raise SaccadeError(f"dense output needs at least {FILL_NEIGHBOURS} kept patches, got {indices.shape[1]}")
    cells = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    filled = []
    for kept, values in zip(indices.long(), tokens, strict=True):
        offsets = cells[:, None, :] - torch.stack([kept // columns, kept % columns], -1)[None]
        squared = offsets.pow(2).sum(-1)  # (cells, k) integers, so that equal distances are equal
        nearest = torch.sort(squared, dim=1, stable=True)
        distance = nearest.values[:, :FILL_NEIGHBOURS].to(tokens.dtype).sqrt()
        weight = 1 / (distance + 1e-8)
        weight = weight / weight.sum(1, keepdim=True)
        filled.append((values[nearest.indices[:, :FILL_NEIGHBOURS]] * weight.unsqueeze(-1)).sum(1))
    return torch.stack(filled).transpose(1, 2).unflatten(2, grid)


def reference_case(reference: Reference, exact: Reference, images: Sequence[np.ndarray], k: int) -> Case:
    """Run the float32 reference, and the float64 one under the same selection to know the float32 noise."""
    output = reference(images, k)
    truth = exact(images, k, indices=output.indices)
    floor = {
        name: relative_difference(getattr(output, name), getattr(truth, name))
        for name in ("pooled", "tokens")
        if getattr(output, name).size
    }
    return Case(np.stack(images), output, floor)
