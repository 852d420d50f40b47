"""Evaluations on frozen features: what each reads, extracts and scores. TASKS is all of them, in the order of --help."""
from __future__ import annotations

from saccade.validate.evaluations import attention, knn, video
from saccade.validate.evaluations.task import Task

TASKS: tuple[Task, ...] = (knn.TASK, attention.TASK, video.TASK)
