"""The bicubic resize gives the bits of Pillow's, whole or in part, and refuses what it cannot read or write."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, __version__

from saccade.runtime import _kernels, kernels

pytestmark = pytest.mark.skipif(
    int(__version__.split(".")[0]) < 13, reason="before 13, Pillow never began with the rows: some pixels differ by 1"
)

MANY = settings(deadline=None, max_examples=300)
extents = st.one_of(st.integers(1, 3), st.integers(1, 40), st.integers(1, 150))
sizes = st.tuples(extents, extents)
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)

LAYOUTS = {
    "packed": lambda image: image,
    "crop": lambda image: np.pad(image, ((2, 1), (3, 5), (0, 0)))[2:-1, 3:-5],
    "every other row": lambda image: image.repeat(2, axis=0)[::2],
    "upside down": lambda image: np.ascontiguousarray(image[::-1])[::-1],
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1])[:, ::-1],
    "BGR": lambda image: np.ascontiguousarray(image[..., ::-1])[..., ::-1],
}


def random_image(rng: np.random.Generator, size: tuple[int, int], kind: str = "noise") -> np.ndarray:
    """Return an image (height, width, 3); in black and white the filter overshoots both ends of the range."""
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    if kind == "noise":
        return image
    if kind == "black and white":
        return np.where(image < 128, np.uint8(0), np.uint8(255))
    rows, columns = np.indices(size) // rng.integers(1, 6)
    return np.where((rows + columns) % 2, np.uint8(0), np.uint8(255))[..., None].repeat(3, axis=2)


def resized_by_pillow(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))


@st.composite
def boxes(draw: st.DrawFn, size: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = (draw(st.integers(1, extent)) for extent in size)
    return draw(st.integers(0, size[0] - height)), draw(st.integers(0, size[1] - width)), height, width


@MANY
@given(seeds, sizes, sizes, st.sampled_from(["noise", "black and white", "checkerboard"]))
def test_any_size_gives_pillows_bits_even_where_it_clips(rng, size_in, size_out, kind) -> None:
    image = random_image(rng, size_in, kind)
    np.testing.assert_array_equal(kernels.resize_bicubic(image, size_out), resized_by_pillow(image, size_out))


@MANY
@given(seeds, sizes, sizes, st.data())
def test_a_window_is_that_part_of_the_whole(rng, size_in, size_out, data) -> None:
    image = random_image(rng, size_in)
    top, left, height, width = window = data.draw(boxes(size_out))
    expected = resized_by_pillow(image, size_out)[top : top + height, left : left + width]
    np.testing.assert_array_equal(kernels.resize_bicubic(image, size_out, window), expected)


@MANY
@given(seeds, sizes, extents, st.booleans(), st.data())
def test_one_side_alone_is_resized_as_pillow_does(rng, size_in, extent, is_height, data) -> None:
    image = random_image(rng, size_in)
    size_out = (extent, size_in[1]) if is_height else (size_in[0], extent)
    top, left, height, width = window = data.draw(boxes(size_out))
    expected = resized_by_pillow(image, size_out)[top : top + height, left : left + width]
    np.testing.assert_array_equal(kernels.resize_bicubic(image, size_out, window), expected)


@MANY
@given(seeds, sizes, sizes, st.sampled_from(sorted(LAYOUTS)))
def test_any_layout_gives_pillows_bits(rng, size_in, size_out, layout) -> None:
    image = random_image(rng, size_in)
    found = kernels.resize_bicubic(LAYOUTS[layout](image), size_out)
    np.testing.assert_array_equal(found, resized_by_pillow(image, size_out))


@MANY
@given(seeds, sizes, st.data())
def test_an_unchanged_size_gives_the_pixels_of_the_window(rng, size, data) -> None:
    image = random_image(rng, size)
    top, left, height, width = window = data.draw(boxes(size))
    expected = image[top : top + height, left : left + width]
    np.testing.assert_array_equal(kernels.resize_bicubic(image, size, window), expected)


@pytest.mark.parametrize(
    ("size_in", "size_out"),
    [
        ((1080, 1920), (518, 518)),
        ((427, 640), (518, 518)),
        ((1531, 2040), (1036, 1036)),
        ((1920, 1080), (518, 518)),  # upright, where Pillow begins with the rows
        ((224, 224), (518, 518)),
        ((518, 518), (154, 154)),
        ((3, 70_000), (5, 20)),  # a filter of 14 000 taps, on an extent that no grid has
        ((70_000, 2), (1, 3)),
        ((2, 1), (3, 66_000)),
        ((1, 1), (518, 518)),
    ],
)
def test_large_images_and_lines_give_pillows_bits(size_in, size_out) -> None:
    image = random_image(np.random.default_rng(1), size_in)
    np.testing.assert_array_equal(kernels.resize_bicubic(image, size_out), resized_by_pillow(image, size_out))


def test_the_result_is_written_into_out() -> None:
    image, out = random_image(np.random.default_rng(2), (9, 7)), np.zeros((4, 5, 3), np.uint8)
    assert kernels.resize_bicubic(image, (6, 5), (1, 0, 4, 5), out=out) is out
    np.testing.assert_array_equal(out, resized_by_pillow(image, (6, 5))[1:5])


IMAGE = np.zeros((4, 6, 3), np.uint8)


@pytest.mark.parametrize("window", [(-1, 0, 2, 2), (0, -1, 2, 2), (3, 0, 3, 5), (0, 4, 5, 2), (0, 0, 6, 5)])
def test_a_window_outside_the_resized_image_is_refused(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="the window is larger than the resized image or not inside it"):
        kernels.resize_bicubic(IMAGE, (5, 5), window)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (2**28 + 1, 5)])
def test_an_impossible_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"(height|width): extents must be 1 to 268435456, got"):
        kernels.resize_bicubic(IMAGE, size, (0, 0, 5, 5))


@pytest.mark.parametrize("image", [IMAGE.astype(np.float32), IMAGE[..., 0], IMAGE[..., :2]], ids=["float", "grey", "two"])
def test_what_is_no_rgb_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"image must be uint8 \(height, width, 3\) with packed pixels, got"):
        kernels.resize_bicubic(image, (5, 5))


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="image: extents must be 1 to 268435456, got 0"):
        kernels.resize_bicubic(IMAGE[:0], (5, 5))


def test_the_door_refuses_channels_that_run_backwards() -> None:
    with pytest.raises(ValueError, match="image must be RGB, got"):
        _kernels.resize_bicubic(IMAGE[..., ::-1], (5, 5), (0, 0), np.empty((5, 5, 3), np.uint8))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty((5, 4, 3), np.uint8), r"out must be \(5, 5, 3\), got \(5, 4, 3\)"),
        (np.empty((5, 5, 3), np.float32), r"out must be contiguous uint8 \(5, 5, 3\), got float32"),
        (np.empty((5, 10, 3), np.uint8)[:, ::2], r"out must be contiguous uint8 \(5, 5, 3\), got uint8"),
    ],
    ids=["shape", "dtype", "layout"],
)
def test_an_out_that_does_not_fit_is_refused(out: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.resize_bicubic(IMAGE, (5, 5), out=out)
