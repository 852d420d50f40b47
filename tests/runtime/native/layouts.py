"""Images whose rows lie in memory as no packed array's do."""
from __future__ import annotations

import numpy as np


def padded(image: np.ndarray) -> np.ndarray:
    """Return the image with rows that lie farther apart than they are long, and something else between them."""
    height, width = image.shape[:2]
    memory = np.full((height, width + 11, 3), 255, np.uint8)
    memory[:, :width] = image
    return memory[:, :width]


LAYOUTS = {
    "padded rows": padded,
    "upside down": lambda image: np.ascontiguousarray(image[::-1])[::-1],
    "padded and upside down": lambda image: padded(image[::-1])[::-1],
}
