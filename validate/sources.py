"""Where the features of an evaluation come from: a bundle on an engine, or the checkpoint in PyTorch.

A source gives arrays of a batch of images of one size: cls (B, D), tokens (B, N, D) of every cell of the grid, attention
(B, heads, N) and cls_last4 (B, 4, D), all float32, as far as its model has them. LookWhere's tokens are filled from the kept
patches.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from saccade.bundle import Bundle, Model
from saccade.contract import EXTRAS, extras_of
from saccade.errors import SaccadeError
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.chain import Pipeline

CLS, TOKENS = "cls", "tokens"
ATTENTION, CLS_LAST4 = EXTRAS


class Source(Protocol):
    """What an evaluation asks for features."""

    @property
    def label(self) -> str:
        """How tables and plots name it, as "openvino int8" or "openvino fp32 k=136"."""

    @property
    def k(self) -> int | None:
        """Patches that LookWhere keeps; None for a network that sees all."""

    @property
    def patch(self) -> int:
        """Pixels of a patch's side; the sides of every image are multiples of it."""

    @property
    def outputs(self) -> Collection[str]:
        """The names of what it can give."""

    @property
    def recipe(self) -> Mapping[str, str]:
        """Everything its features depend on beside the images."""

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return these outputs of uint8 (H, W, 3) images of one size, batch axis first."""


def outputs_of(bundle: Bundle) -> tuple[str, ...]:
    """Return what features a bundle can give; raises SaccadeError for one whose task is not features."""
    model = bundle.manifest.model
    if not isinstance(model, Model):
        return CLS, TOKENS, *extras_of(model)
    if bundle.manifest.task != "features":
        task = bundle.manifest.task
        raise SaccadeError(f"{bundle.path} is made for {task}, and evaluations read features; export with --task features")
    return CLS, TOKENS


class BackboneSource:
    """A plain backbone on an engine."""

    def __init__(self, pipeline: BackbonePipeline) -> None:
        self._pipeline = pipeline
        self.label = f"{pipeline.receipt.engine} {pipeline.receipt.precision}"
        self.k = None
        self.patch = pipeline.model.patch
        self.outputs = outputs_of(pipeline.bundle)
        self.recipe = {"engine": pipeline.receipt.key}

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run the network once and return what is asked for."""
        found = self._pipeline(images, size=(images[0].shape[0], images[0].shape[1])).arrays()
        return {name: found[name] for name in outputs}


class LookWhereSource:
    """LookWhere on an engine, keeping k patches of every image."""

    def __init__(self, pipeline: Pipeline, k: int) -> None:
        self._pipeline, self.k = pipeline, k
        self.label = f"{pipeline.receipt.engine} {pipeline.receipt.precision} k={k}"
        self.patch = pipeline.bundle.model.patch
        self.outputs = outputs_of(pipeline.bundle)
        self.recipe = {"engine": pipeline.receipt.key, "k": str(k)}

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run the chain once; tokens are the dense fill, row-major."""
        size = (images[0].shape[0], images[0].shape[1])
        found = self._pipeline(images, k=self.k, size=size, dense=TOKENS in outputs)
        arrays = {CLS: found.cls}
        if found.dense is not None:
            arrays[TOKENS] = found.dense.reshape(*found.dense.shape[:2], -1).transpose(0, 2, 1)
        return {name: value for name in outputs if (value := arrays[name]) is not None}
