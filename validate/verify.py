"""The self-test of a bundle: its engine against the reference outputs that lie in it. Needs neither torch nor a network."""
from __future__ import annotations

from typing import Any

from saccade.backbone_golden import backbone_cases_of
from saccade.golden import cases_of
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.chain import Pipeline
from saccade.validate.backbone_parity import measure_backbone
from saccade.validate.parity import Verdict, measure_parity


def verify(pipeline: Pipeline | BackbonePipeline) -> Verdict[Any]:
    """Compare an opened pipeline with golden.npz by the numbers of its kind of model."""
    if isinstance(pipeline, BackbonePipeline):
        return measure_backbone(pipeline, backbone_cases_of(pipeline.bundle))
    return measure_parity(pipeline, cases_of(pipeline.bundle))
