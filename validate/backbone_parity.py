"""A plain backbone's engine against PyTorch: each output on images of several sizes, against the reference in float32."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade.bundle import read_bundle
from saccade.errors import SaccadeError
from saccade.export.golden_cases import synthetic_image
from saccade.golden import relative_difference
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.loading import load

if TYPE_CHECKING:
    from saccade.export.backbone_checkpoint import BackboneCheckpoint

# Of each output's 2-norm, worst image. Two float32 runtimes differ by up to 6e-6 on the official weights' seeds.
BOUND = 5e-5


def check_exported(checkpoint: BackboneCheckpoint, folder: Path) -> dict[str, Any]:
    """Run a bundle just written in ONNX Runtime, at a size of its own and at another, and compare it with PyTorch.

    Returns the verdict; raises SaccadeError where an output differs by more than BOUND.
    """
    from saccade.export.backbone_reference import BackboneReference

    bundle = read_bundle(folder)
    model = checkpoint.model
    sizes = [bundle.manifest.defaults.size, (3 * model.patch, 5 * model.patch)]
    worst: dict[str, float] = {}
    pipeline = load(bundle, engine="onnxruntime", note=lambda line: None)
    assert isinstance(pipeline, BackbonePipeline)
    with pipeline:
        reference = BackboneReference(checkpoint, _extras(pipeline))
        for size in sizes:
            images = [synthetic_image(size, seed) for seed in (0, 1)]
            found, truth = pipeline(images, size=size).arrays(), reference(images)
            for name, array in found.items():
                worst[name] = max(worst.get(name, 0.0), relative_difference(array, np.asarray(truth[name])))
    failed = [f"{name} ({value:.1e})" for name, value in worst.items() if not value <= BOUND]
    if failed:
        raise SaccadeError(
            f"the exported graph differs from PyTorch in {', '.join(failed)}; no bundle was written. "
            "This is a bug of saccade or of the installed torch: please report it with the versions of 'saccade doctor'"
        )
    return {"passed": True, "precision": "fp32", "images": 2 * len(sizes), "relative_difference": worst}


def _extras(pipeline: BackbonePipeline) -> tuple[str, ...]:
    outputs = pipeline.engines["backbone"].outputs
    return tuple(name for name in ("attention", "cls_last4") if name in outputs)
