"""The libraries of the extra `evaluate`, imported where a task needs them: scipy, scikit-learn, infomap."""
from __future__ import annotations

import importlib
from typing import Any

from saccade.errors import SaccadeError

NEEDS_PYTHON = {"infomap": " (it needs Python 3.11 or later)"}


def library(module: str) -> Any:
    """Return a module of one of them by its full name."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        needs = NEEDS_PYTHON.get(name, "")
        raise SaccadeError(f"{name} cannot be imported; pip install '.[evaluate]' in the clone{needs}") from error
