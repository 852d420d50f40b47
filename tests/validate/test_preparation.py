"""Images are brought to size as torchvision and Pillow do it for the official projects."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saccade.errors import SaccadeError
from saccade.validate.preparation import (
    RandomCropFlip,
    ShortSideCrop,
    Squash,
    Thumbnail,
    checked_side,
    read_as_pillow,
    resize,
    whole_patches,
)


@pytest.fixture
def wide(photographs: list[np.ndarray], tmp_path: Path) -> Path:
    Image.fromarray(photographs[0]).save(tmp_path / "wide.png")  # 640 x 427
    return tmp_path / "wide.png"


def test_the_short_side_is_resized_and_the_middle_is_cut(wide: Path) -> None:
    found = ShortSideCrop(256, 224)(wide)
    size = (int(256 * 640 / 427), 256)  # torchvision's Resize(256)
    resized = np.asarray(Image.open(wide).resize(size, Image.Resampling.BICUBIC))
    left, top = round((size[0] - 224) / 2), 16  # and its CenterCrop(224)
    np.testing.assert_array_equal(found, resized[top : top + 224, left : left + 224])


def test_a_tall_image_is_cut_along_its_height(photographs: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "tall.png"
    Image.fromarray(photographs[0].transpose(1, 0, 2)).save(path)
    Image.fromarray(photographs[0]).save(tmp_path / "wide.png")
    turned = ShortSideCrop(64, 56)(tmp_path / "wide.png").transpose(1, 0, 2)
    assert np.abs(ShortSideCrop(64, 56)(path).astype(int) - turned).max() <= 3  # Pillow resizes and rounds width first


def test_squashing_forgets_the_shape_and_keeps_what_has_the_size(wide: Path, photographs: list[np.ndarray]) -> None:
    expected = np.asarray(Image.open(wide).resize((70, 42), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(Squash((42, 70), "bilinear")(wide), expected)
    np.testing.assert_array_equal(Squash((427, 640))(wide), photographs[0])
    assert resize(photographs[0], (427, 640), "bicubic") is photographs[0]


def test_a_thumbnail_fits_with_its_aspect_and_never_grows(wide: Path) -> None:
    expected = Image.open(wide).convert("RGB")
    expected.thumbnail((224, 224), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(Thumbnail(224, 14)(wide), np.asarray(expected))
    assert Thumbnail(224, 14)(wide).shape == (149, 224, 3)
    assert Thumbnail(2000, 14)(wide).shape == (427, 640, 3)


def test_a_thumbnail_that_is_too_narrow_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (300, 20)).save(tmp_path / "line.png")
    with pytest.raises(SaccadeError, match=r"line.png: 112 x 7 px is too narrow; 14 px are needed"):
        Thumbnail(112, 14)(tmp_path / "line.png")


def test_random_crops_are_the_same_in_every_run_and_differ_by_view_seed_and_image(wide: Path, tmp_path: Path) -> None:
    found = RandomCropFlip(56, view=0, seed=0)(wide)
    assert found.shape == (56, 56, 3)
    np.testing.assert_array_equal(RandomCropFlip(56, view=0, seed=0)(wide), found)
    other = tmp_path / "other.png"
    other.write_bytes(wide.read_bytes())
    for crop in (RandomCropFlip(56, 1, 0)(wide), RandomCropFlip(56, 0, 1)(wide), RandomCropFlip(56, 0, 0)(other)):
        assert (crop != found).any()


def test_random_crops_are_parts_of_the_image_half_of_them_mirrored(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], 300, axis=0).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    crops = [RandomCropFlip(28, view, 0)(tmp_path / "ramp.png")[:, :, 0].astype(int) for view in range(200)]
    mirrored = [crop[0, 0] > crop[0, -1] for crop in crops]
    assert 70 < sum(mirrored) < 130
    widths = [(abs(crop[0, -1] - crop[0, 0]) + 1) / 256 for crop in crops]  # share of the image's width
    assert 0.15 < min(widths) < 0.4  # at least sqrt(0.08 * 3/4 * 300/400)
    assert max(widths) > 0.9


def test_an_extreme_shape_gives_its_middle(tmp_path: Path) -> None:
    line = np.zeros((4, 4000, 3), np.uint8)
    line[:, 1995:2005] = 255
    Image.fromarray(line).save(tmp_path / "line.png")
    assert RandomCropFlip(8, 0, 0)(tmp_path / "line.png").min() == 255  # 4 x 5 px of the middle


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "RGBA", "LA", "L", "P", "1"])
def test_every_mode_of_eight_bits_is_converted_as_pillow_does(
    mode: str, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    image = Image.fromarray(photographs[0])
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    path = tmp_path / ("image.jpg" if mode in ("CMYK", "YCbCr") else "image.png")
    image.convert(mode).save(path)
    found = read_as_pillow(path)
    assert found.shape == photographs[0].shape
    np.testing.assert_array_equal(found, np.asarray(Image.open(path).convert("RGB")))
    if mode == "CMYK":
        assert Image.open(path).mode == "CMYK"
        assert np.abs(found.astype(int) - photographs[0]).mean() < 8


def test_an_image_is_read_as_it_lies_in_the_file_whatever_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_as_pillow(tmp_path / "turned.jpg").shape == (20, 30, 3)
    assert Squash((20, 30))(tmp_path / "turned.jpg").shape == (20, 30, 3)


def test_what_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SaccadeError, match=r"deep.png: an image of mode I;16 would be clipped; convert it to 8-bit RGB"):
        read_as_pillow(tmp_path / "deep.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(SaccadeError, match=r"empty.png is not an image that Pillow can read"):
        read_as_pillow(tmp_path / "empty.png")
    with pytest.raises(SaccadeError, match=r"none.png: no such image file"):
        read_as_pillow(tmp_path / "none.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(SaccadeError, match=r"pipe.png is a device or a pipe; give an image file"):
        read_as_pillow(tmp_path / "pipe.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "large.png")
    monkeypatch.setattr("saccade.validate.preparation.MAX_PIXELS", 599)
    with pytest.raises(SaccadeError, match=r"large.png: more than 0 megapixels; make it smaller first"):
        read_as_pillow(tmp_path / "large.png")


@given(st.integers(1, 2000), st.integers(1, 64))
def test_whole_patches_are_the_nearest_multiple(pixels: int, patch: int) -> None:
    found = whole_patches(pixels, patch)
    assert found % patch == 0
    assert found == patch or abs(found - pixels) <= patch / 2


def test_a_side_is_the_protocol_s_in_whole_patches_or_a_multiple_that_is_asked_for() -> None:
    assert [checked_side(0, patch, 320) for patch in (14, 16, 8)] == [322, 320, 320]
    assert checked_side(112, 14, 320) == 112
    with pytest.raises(SaccadeError, match=r"--size 100 is not a multiple of the 14 px patch; use 98"):
        checked_side(100, 14, 320)


def test_an_image_that_is_too_narrow_for_its_short_side_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "thread.png"
    Image.new("L", (20_000, 2)).save(path)
    with pytest.raises(SaccadeError, match=r"thread.png: 20000 x 2 px is too narrow to be resized to a shorter side of 256"):
        ShortSideCrop(256, 224)(path)


def test_a_side_of_more_patches_than_are_supported_is_refused() -> None:
    assert checked_side(148 * 14, 14, 224) == 2072
    with pytest.raises(SaccadeError, match="--size 2086 makes 22201 patches; at most 21904 are supported"):
        checked_side(2086, 14, 224)
