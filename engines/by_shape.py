"""Two engines of one graph as one: a static one for its own shape, and one that takes all others."""
from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np

from saccade.engines.engine import Engine, load_roles


class ByShape(Engine):
    """A static engine and the dynamic one of the same graph: what has the static one's shape runs there, all else here.

    Each holds the weights in memory for itself.
    """

    def __init__(self, static: Engine, dynamic: Engine) -> None:
        self.role, self.inputs, self.outputs = dynamic.role, dynamic.inputs, dynamic.outputs
        self._engines = {"static": static, "dynamic": dynamic}

    def twin(self) -> Engine:
        """Return twins of both."""
        twin = self._sharing()
        twin._engines = load_roles(self._engines, lambda name: self._engines[name].twin())
        return twin

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        fits = all(feed[name].shape == spec.shape for name, spec in self._engines["static"].inputs.items())
        return self._engines["static" if fits else "dynamic"].run(feed)

    def _close(self) -> None:
        with contextlib.ExitStack() as stack:  # the second also where the first cannot be closed
            for engine in self._engines.values():
                stack.callback(engine.close)
