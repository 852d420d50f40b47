"""The self-test of a bundle: its engine against the reference outputs that lie in it. Needs neither torch nor a network."""
from __future__ import annotations

from saccade.errors import SaccadeError
from saccade.golden import read_cases
from saccade.runtime.chain import Pipeline
from saccade.validate.parity import ParityResult, measure_parity


def verify(pipeline: Pipeline) -> ParityResult:
    """Compare an opened pipeline with golden.npz by the five numbers."""
    bundle = pipeline.bundle
    if bundle.manifest.golden is None:
        raise SaccadeError(f"{bundle.path} has no golden.npz to verify against; export the bundle again")
    return measure_parity(pipeline, read_cases(bundle.checked_path(bundle.manifest.golden)))
