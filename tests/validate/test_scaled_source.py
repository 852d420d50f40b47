"""The mean of an image's features at several scales, each resized as PyTorch resizes by a factor."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from saccade.validate.scaled_source import ScaledSource, scaled

SCALES = (1, 1 / 2**0.5, 1 / 2)


class Means:
    """A source whose cls is the mean colour; it remembers what it was given."""

    label, k, patch = "means", None, 8
    outputs = ("cls", "tokens")

    def __init__(self) -> None:
        self.recipe = {"engine": "means"}
        self.shapes: list[tuple[int, ...]] = []

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        assert list(outputs) == ["cls"]
        assert all(image.flags.c_contiguous for image in images)
        self.shapes += [image.shape for image in images]
        return {"cls": np.array([image.mean(axis=(0, 1)) for image in images], np.float32)}


@given(st.integers(2, 90), st.integers(2, 90), st.sampled_from(SCALES), st.integers(0, 9))
def test_images_are_resized_as_pytorch_resizes_them_by_a_factor(height: int, width: int, scale: float, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = functional.interpolate(planes, scale_factor=scale, mode="bilinear", align_corners=False)
    found = scaled(image, scale)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, expected[0].permute(1, 2, 0).numpy(), atol=0.501)


def test_every_scale_sees_whole_patches_of_the_scaled_image_and_the_mean_is_kept() -> None:
    source = Means()
    image = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    found = ScaledSource(source, SCALES).run([image, image[::-1]], ["cls"])
    assert source.shapes == [(48, 64, 3)] * 2 + [(32, 48, 3)] * 2 + [(24, 32, 3)] * 2
    parts = [scaled(image, scale)[:rows, :columns].mean(axis=(0, 1)) for scale, (rows, columns, _) in
             zip(SCALES, source.shapes[::2], strict=True)]  # fmt: skip
    np.testing.assert_allclose(found["cls"][0], np.mean(parts, axis=0), rtol=1e-5)
    assert found["cls"].dtype == np.float32


def test_one_scale_is_the_source_itself_on_whole_patches() -> None:
    image = np.full((16, 24, 3), 7, np.uint8)
    np.testing.assert_array_equal(ScaledSource(Means(), (1,)).run([image], ["cls"])["cls"], [[7, 7, 7]])


def test_scales_are_part_of_what_features_depend_on() -> None:
    one, several = ScaledSource(Means(), (1,)), ScaledSource(Means(), SCALES)
    assert one.recipe != several.recipe
    assert several.recipe["engine"] == "means"
    assert several.outputs == ("cls",)


@pytest.mark.parametrize(("scales", "shortest"), [((1,), 8), (SCALES, 16), ((1, 1 / 2**0.5), 12)])
def test_the_shortest_side_has_a_patch_at_every_scale(scales: tuple[float, ...], shortest: int) -> None:
    source = Means()
    found = ScaledSource(source, scales)
    assert found.shortest == shortest
    found.run([np.zeros((shortest, shortest, 3), np.uint8)], ["cls"])
    assert min(source.shapes) == (8, 8, 3)


def test_a_source_rests_through_its_scales() -> None:
    class Streaming(Means):
        rested = 0

        def stream(self, batches: Iterable[list[np.ndarray]], outputs: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
            return (self.run(batch, outputs) for batch in batches)

        def rest(self) -> None:
            self.rested += 1

    source = Streaming()
    ScaledSource(source, SCALES).rest()
    assert source.rested == 1
    ScaledSource(Means(), SCALES).rest()  # which has nothing to free
