"""The checkpoint in PyTorch as a source of features: what an engine is compared with. Needs torch."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from saccade.bundle import Bundle, Defaults
from saccade.contract import extras_of
from saccade.export.backbone_checkpoint import BackboneCheckpoint
from saccade.export.backbone_reference import BackboneReference
from saccade.export.checkpoint import Checkpoint
from saccade.export.reference import Reference, fill
from saccade.runtime.kept import kept_on
from saccade.validate.sources import CLS, TOKENS, Kept, Source, outputs_of


def reference_sources(
    bundle: Bundle, checkpoint: Checkpoint | BackboneCheckpoint, ks: Sequence[Kept | None]
) -> list[Source]:
    """Return the source for every k (None alone for a plain backbone) of what a bundle was made of; one model in memory."""
    outputs = outputs_of(bundle)
    if isinstance(checkpoint, BackboneCheckpoint):
        plain = BackboneReference(checkpoint, extras_of(checkpoint.model), image=bundle.manifest.image)
        return [BackboneReferenceSource(plain, outputs, checkpoint.sha256)]
    reference = Reference(checkpoint, bundle.manifest.task)
    defaults = bundle.manifest.defaults
    return [LookWhereReferenceSource(reference, k, outputs, checkpoint.sha256, defaults) for k in ks if k is not None]


class BackboneReferenceSource:
    """A plain backbone's modules in float32."""

    label = "PyTorch fp32"
    k = None

    def __init__(self, reference: BackboneReference, outputs: Sequence[str], sha256: str) -> None:
        self._reference = reference
        self.patch, self.outputs = reference.model.patch, outputs
        self.recipe = {"reference": sha256, "torch": str(torch.__version__), "model": repr(reference.model)}
        self.recipe |= {"image": repr(reference.image)}

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run the module once."""
        found = self._reference(images)
        return {name: found[name] for name in outputs}


class LookWhereReferenceSource:
    """LookWhere's modules in float32 on the full graph, keeping some patches."""

    def __init__(
        self, reference: Reference, k: Kept, outputs: Sequence[str], sha256: str, defaults: Defaults
    ) -> None:
        self._reference, self.k, self._defaults = reference, k, defaults
        self.label = f"PyTorch fp32 {k}"
        self.patch, self.outputs = reference.model.patch, outputs
        self.recipe = {"reference": sha256, "torch": str(torch.__version__), "k": str(k)}

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run both modules; tokens are the dense fill, row-major."""
        grid = (images[0].shape[0] // self.patch, images[0].shape[1] // self.patch)
        found = self._reference(images, kept_on(grid, self._defaults, self.k.number, self.k.ratio, TOKENS in outputs))
        arrays = {CLS: found.pooled}
        if TOKENS in outputs:
            filled = fill(torch.from_numpy(found.tokens), torch.from_numpy(found.indices), grid)
            arrays[TOKENS] = filled.flatten(2).transpose(1, 2).numpy()
        return {name: arrays[name] for name in outputs}
