"""A source that looks at each image at several scales and gives the mean of its cls, as DINO's multi_scale does."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saccade.validate.sources import CLS, Source
from saccade.validate.tasks.resize import resize_bilinear


class ScaledSource:
    """Gives cls alone. Images may have any size: what is beyond whole patches is cut off below and at the right.

    A network of DINO's does the same, since its patch embedding has no row for the rest.
    """

    outputs = (CLS,)

    def __init__(self, source: Source, scales: Sequence[float]) -> None:
        self._source, self._scales = source, scales
        self.label, self.k, self.patch = source.label, source.k, source.patch
        self.recipe = {**source.recipe, "scales": " ".join(map(repr, scales))}

    @property
    def shortest(self) -> int:
        """Return how many pixels a side needs, so that the smallest scale has a patch."""
        side = self.patch
        while int(side * min(self._scales)) < self.patch:
            side += 1
        return side

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run the network once for every scale."""
        found = [self._source.run([self._whole(scaled(image, scale)) for image in images], [CLS]) for scale in self._scales]
        return {CLS: np.asarray(np.mean([each[CLS] for each in found], axis=0, dtype=np.float32))}

    def _whole(self, image: np.ndarray) -> np.ndarray:
        height, width = (extent // self.patch * self.patch for extent in image.shape[:2])
        return np.ascontiguousarray(image[:height, :width])


def scaled(image: np.ndarray, scale: float) -> np.ndarray:
    """Return uint8 (H, W, 3) pixels as PyTorch's bilinear interpolate with this scale factor, rounded to 8 bits."""
    if scale == 1:
        return image
    size = (int(image.shape[0] * scale), int(image.shape[1] * scale))
    planes = resize_bilinear(image.transpose(2, 0, 1), size, scale)
    return np.asarray(np.rint(planes).astype(np.uint8).transpose(1, 2, 0))
