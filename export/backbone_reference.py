"""The PyTorch reference of a plain backbone: positions as the official codes resize them, then the checkpoint's module.

Parity then compares two ways to the same numbers: the runtime resizes the table in NumPy, and the engines run the graph.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from saccade.backbone_golden import BackboneCase
from saccade.bundle import ImageContract
from saccade.contract import backbone_contract
from saccade.export.backbone_checkpoint import BackboneCheckpoint, load_backbone
from saccade.export.reference import IMAGENET, normalised
from saccade.golden import relative_difference


class BackboneReference:
    """A checkpoint's module in one dtype."""

    def __init__(
        self,
        checkpoint: BackboneCheckpoint,
        extras: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        image: ImageContract = IMAGENET,
    ) -> None:
        self.model, self.image = checkpoint.model, image
        self.dtype = dtype
        self.module = load_backbone(checkpoint, extras)
        if dtype != torch.float32:
            self.module = self.module.to(dtype)
        self._positions = checkpoint.positions
        self._names = [spec.name for spec in backbone_contract(self.model, extras).outputs]

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Run on uint8 (H, W, 3) images of one size and return the graph's outputs by name."""
        image = normalised(images, self.dtype, self.image)
        rows, columns = (extent // self.model.patch for extent in image.shape[2:])
        outputs = self.module(image, self.positions((rows, columns)))
        return {name: output.numpy() for name, output in zip(self._names, outputs, strict=True)}

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the position table on a grid, (1+cells, D)."""
        base = self.model.base_grid
        if grid == base:
            return self._positions.to(self.dtype)
        table = self._positions[1:].reshape(1, *base, -1).permute(0, 3, 1, 2)
        if self.model.position_rule == "scale-factor":  # DINO, and DINOv2 with its interpolate_offset
            factors = ((grid[0] + 0.1) / base[0], (grid[1] + 0.1) / base[1])
            resized = F.interpolate(table, scale_factor=factors, mode="bicubic")
        else:  # DINOv2 with interpolate_offset 0 and interpolate_antialias, and timm's resample_abs_pos_embed
            resized = F.interpolate(table, grid, mode="bicubic", antialias=True)
        return torch.cat([self._positions[:1], resized[0].flatten(1).T]).to(self.dtype)


def backbone_case(reference: BackboneReference, exact: BackboneReference, images: Sequence[np.ndarray]) -> BackboneCase:
    """Run the float32 reference, and the float64 one to know the float32 noise."""
    outputs, truth = reference(images), exact(images)
    floor = {name: relative_difference(array, truth[name]) for name, array in outputs.items()}
    return BackboneCase(np.stack(images), outputs, floor)
