"""Evaluations on frozen features: what each reads, extracts and scores. TASKS is all of them, in the order of --help."""
from __future__ import annotations

from saccade.validate.evaluations import knn, linear
from saccade.validate.evaluations.task import Task

TASKS: tuple[Task, ...] = (knn.TASK, linear.TASK)
