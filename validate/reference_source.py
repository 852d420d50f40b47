"""The checkpoint in PyTorch as a source of features: what an engine is compared with. Needs torch."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from saccade.bundle import BackboneModel, Bundle
from saccade.contract import extras_of
from saccade.errors import SaccadeError
from saccade.export.backbone_checkpoint import read_backbone
from saccade.export.backbone_reference import BackboneReference
from saccade.export.checkpoint import read_checkpoint
from saccade.export.reference import Reference, fill
from saccade.validate.sources import CLS, TOKENS, Source, outputs_of


def reference_source(bundle: Bundle, checkpoint: Path, k: int | None) -> Source:
    """Return the checkpoint's source; raises SaccadeError for a file that the bundle was not made of."""
    model = bundle.manifest.model
    source: BackboneReferenceSource | LookWhereReferenceSource
    if isinstance(model, BackboneModel):
        source, sha256 = _backbone(bundle, checkpoint)
    else:
        source, sha256 = _lookwhere(bundle, checkpoint, k)
    if sha256 != bundle.manifest.provenance.get("checkpoint_sha256"):
        raise SaccadeError(f"{checkpoint} is not the checkpoint that {bundle.path} was made of; give that file")
    return source


def _backbone(bundle: Bundle, path: Path) -> tuple[BackboneReferenceSource, str]:
    model = bundle.manifest.model
    assert isinstance(model, BackboneModel)
    checkpoint = read_backbone(path, model.family, bundle.manifest.provenance.get("checkpoint_key"))
    reference = BackboneReference(checkpoint, extras_of(model))
    return BackboneReferenceSource(reference, outputs_of(bundle), checkpoint.sha256), checkpoint.sha256


def _lookwhere(bundle: Bundle, path: Path, k: int | None) -> tuple[LookWhereReferenceSource, str]:
    checkpoint = read_checkpoint(path)
    assert k is not None
    reference = Reference(checkpoint, bundle.manifest.task)
    return LookWhereReferenceSource(reference, k, outputs_of(bundle), checkpoint.sha256), checkpoint.sha256


class BackboneReferenceSource:
    """A plain backbone's modules in float32."""

    label = "PyTorch fp32"
    k = None

    def __init__(self, reference: BackboneReference, outputs: Sequence[str], sha256: str) -> None:
        self._reference = reference
        self.patch, self.outputs = reference.model.patch, outputs
        self.recipe = {"reference": sha256, "torch": torch.__version__}

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run the module once."""
        found = self._reference(images)
        return {name: found[name] for name in outputs}


class LookWhereReferenceSource:
    """LookWhere's modules in float32 on the full graph, keeping k patches."""

    def __init__(self, reference: Reference, k: int, outputs: Sequence[str], sha256: str) -> None:
        self._reference, self.k = reference, k
        self.label = f"PyTorch fp32 k={k}"
        self.patch, self.outputs = reference.model.patch, outputs
        self.recipe = {"reference": sha256, "torch": torch.__version__, "k": str(k)}

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run both modules; tokens are the dense fill, row-major."""
        found = self._reference(images, self.k)
        arrays = {CLS: found.pooled}
        if TOKENS in outputs:
            grid = (images[0].shape[0] // self.patch, images[0].shape[1] // self.patch)
            filled = fill(torch.from_numpy(found.tokens), torch.from_numpy(found.indices), grid)
            arrays[TOKENS] = filled.flatten(2).transpose(1, 2).numpy()
        return {name: arrays[name] for name in outputs}
