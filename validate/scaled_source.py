"""A source that looks at each image at several scales and gives the mean of its cls, as DINO's multi_scale does."""
from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from saccade.validate.metrics.resize import resize_bilinear
from saccade.validate.sources import CLS, Source, StreamingSource, streamed


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
        return _mean([self._source.run(self._scaled(images, scale), [CLS]) for scale in self._scales])

    def stream(self, batches: Iterable[list[np.ndarray]], outputs: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Run the scales of batches one after the other, as many at once as the source does."""
        found = streamed(self._source, (self._scaled(each, scale) for each in batches for scale in self._scales), [CLS])
        while scales := list(itertools.islice(found, len(self._scales))):
            yield _mean(scales)

    def rest(self) -> None:
        """Free what the source's streams alone need."""
        if isinstance(self._source, StreamingSource):
            self._source.rest()

    def _scaled(self, images: list[np.ndarray], scale: float) -> list[np.ndarray]:
        return [self._whole(scaled(image, scale)) for image in images]

    def _whole(self, image: np.ndarray) -> np.ndarray:
        height, width = (extent // self.patch * self.patch for extent in image.shape[:2])
        return np.ascontiguousarray(image[:height, :width])


def _mean(scales: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {CLS: np.asarray(np.mean([each[CLS] for each in scales], axis=0, dtype=np.float32))}


def scaled(image: np.ndarray, scale: float) -> np.ndarray:
    """Return uint8 (H, W, 3) pixels as PyTorch's bilinear interpolate with this scale factor, rounded to 8 bits."""
    if scale == 1:
        return image
    size = (int(image.shape[0] * scale), int(image.shape[1] * scale))
    planes = resize_bilinear(image.transpose(2, 0, 1), size, scale)
    return np.asarray(np.rint(planes).astype(np.uint8).transpose(1, 2, 0))
