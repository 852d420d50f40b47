"""golden.npz of a plain backbone: images with PyTorch's outputs on them, under the names of the graph's own outputs."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from saccade.bundle import Bundle, TensorSpec
from saccade.contract import contracts_of
from saccade.errors import SaccadeError
from saccade.golden import floor_members, floor_misfit, floor_of, golden_path, is_array, read_members


@dataclass(frozen=True)
class BackboneCase:
    """Images of one size, the reference's outputs on them, and how far float32 is from float64 there.

    `floor` holds the relative difference |fp32 - fp64| / |fp64| (2-norms, worst image) of each output.
    """

    images: np.ndarray  # (B, H, W, 3) uint8
    outputs: dict[str, np.ndarray]  # float32, as the graph's contract has them
    floor: dict[str, float] = field(default_factory=dict)

    def members(self) -> dict[str, np.ndarray]:
        """Return every array of the case by its name in the file."""
        return {"images": self.images} | self.outputs | floor_members(self.floor)


def backbone_cases_of(bundle: Bundle) -> list[BackboneCase]:
    """Read a bundle's golden cases; raises SaccadeError for arrays that its model cannot have given."""
    path = golden_path(bundle)
    cases = []
    for index, members in enumerate(read_members(path)):
        misfit = _misfit(members, bundle)
        if misfit:
            raise SaccadeError(f"{path}: case {index}: {misfit}; export the bundle again")
        outputs = {spec.name: members[spec.name] for spec in _outputs(bundle)}
        cases.append(BackboneCase(members["images"], outputs, floor_of(members) or {}))
    return cases


def _outputs(bundle: Bundle) -> tuple[TensorSpec, ...]:
    (contract,) = contracts_of(bundle.manifest)
    return contract.outputs


def _misfit(members: Mapping[str, np.ndarray], bundle: Bundle) -> str | None:
    """Return what in a case the bundle's model cannot have given, if anything."""
    images, patch = members.get("images"), bundle.manifest.model.patch
    if images is None or not is_array(images, np.uint8, 4) or not len(images) or images.shape[3] != 3:
        return "images are no uint8 (B, H, W, 3)"
    batch, height, width, _ = images.shape
    if height % patch or width % patch or not height * width:
        return f"images are {width} x {height} px, which the {patch} px patch does not divide"
    sizes = {"batch": batch, "cells": height * width // patch**2}
    for spec in _outputs(bundle):
        array, shape = members.get(spec.name), tuple(sizes.get(str(extent), extent) for extent in spec.shape)
        if array is None or not is_array(array, np.float32, len(shape)) or array.shape != shape:
            return f"{spec.name} must be float32 {list(shape)}"
        if not np.isfinite(array).all():
            return f"{spec.name} holds NaN or infinity"
    floor = floor_of(members)
    return "a floor is no number" if floor is None else floor_misfit(floor)
