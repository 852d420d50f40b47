"""Evaluations on frozen features: what each reads, extracts and scores. TASKS is all of them, in the order of --help."""
from __future__ import annotations

from saccade.validate.evaluations import (
    attention,
    copydays,
    dense_nn,
    foreground,
    knn,
    linear,
    linear_segmentation,
    overcluster,
    retrieval,
    video,
)
from saccade.validate.evaluations.task import Task

TASKS: tuple[Task, ...] = (
    knn.TASK, linear.TASK, retrieval.TASK, copydays.TASK, overcluster.TASK, linear_segmentation.TASK, dense_nn.TASK,
    foreground.TASK, attention.TASK, video.TASK,
)  # fmt: skip
