"""Under which conditions an evaluation ran: what its numbers and times depend on beside each side's own conditions."""
from __future__ import annotations

import platform
from typing import Any

import numpy as np
import PIL

from saccade._version import VERSION
from saccade.bundle import MANIFEST, Bundle, sha256_of_file
from saccade.validate.doctor import cpu
from saccade.validate.features import FEATURES_VERSION
from saccade.validate.metrics.compare import CONFIDENCE, RESAMPLES, SEED


def conditions_of(bundle: Bundle, *, device: str | None, threads: int, batch: int, workers: int) -> dict[str, Any]:
    """Return what JSON and Markdown say of a run; None and 0 are the engine's own choice."""
    return {
        "saccade": VERSION,
        "features_version": FEATURES_VERSION,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "cpu": cpu(),
        "device": device,
        "threads": threads,
        "batch": batch,
        "workers": workers,
        "bundle_sha256": sha256_of_file(bundle.path / MANIFEST),
        "checkpoint_sha256": bundle.manifest.provenance.get("checkpoint_sha256"),
        "interval": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": SEED},
    }
