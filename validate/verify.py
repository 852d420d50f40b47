"""The self-test of a bundle: its engine against the reference outputs that lie in it. Needs neither torch nor a network."""
from __future__ import annotations

from saccade.golden import cases_of
from saccade.runtime.chain import Pipeline
from saccade.validate.parity import ParityResult, measure_parity


def verify(pipeline: Pipeline) -> ParityResult:
    """Compare an opened pipeline with golden.npz by the five numbers."""
    return measure_parity(pipeline, cases_of(pipeline.bundle))
