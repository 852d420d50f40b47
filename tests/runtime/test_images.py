"""What callers have becomes uint8 RGB of one size, or a line that says why not."""
from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from saccade.errors import SaccadeError
from saccade.runtime import images
from saccade.runtime.images import FITS, MAX_PIXELS, as_list, check_size, fit_image, native_size, read_rgb

PATCH = 14
EXIF_ORIENTATION = 0x0112
QUARTER_TURN = 6  # "the row 0 is the right side": rotate clockwise to see it upright

extents = st.one_of(st.just(1), st.integers(1, 60))
targets = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(lambda cells: (cells[0] * PATCH, cells[1] * PATCH))


def random_rgb(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


RGB = random_rgb(20, 30)
GREY = RGB[..., 1].copy()
PICTURE = Image.fromarray(RGB)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of raw chunks, for what Pillow cannot write."""
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


def sixteen_bit_png(colour_type: int, channels: int) -> bytes:
    rows = b"".join(b"\0" + bytes(range(2 * channels * 4)) for _ in range(3))
    return png((b"IHDR", struct.pack(">IIBBBBB", 4, 3, 16, colour_type, 0, 0, 0)), (b"IDAT", zlib.compress(rows)))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


# ---- what is accepted


def test_an_rgb_array_is_taken_as_it_is() -> None:
    assert read_rgb(RGB) is RGB


def test_a_grey_array_becomes_three_equal_channels() -> None:
    np.testing.assert_array_equal(read_rgb(GREY), np.stack([GREY] * 3, axis=-1))


@pytest.mark.parametrize(
    "view", [RGB[::-1], RGB[:, ::2], RGB[..., ::-1], np.asfortranarray(RGB)], ids=["flip", "skip", "bgr", "fortran"]
)
def test_an_array_that_is_a_view_keeps_its_pixels(view: np.ndarray) -> None:
    found = read_rgb(view)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, view)


def test_an_array_that_cannot_be_written_is_accepted() -> None:
    locked = RGB.copy()
    locked.setflags(write=False)
    np.testing.assert_array_equal(read_rgb(locked), RGB)


ACCEPTED: dict[str, tuple[Image.Image, np.ndarray]] = {
    "RGB": (PICTURE, RGB),
    "L": (Image.fromarray(GREY), np.stack([GREY] * 3, axis=-1)),
    "P": (PICTURE.quantize(16), np.asarray(PICTURE.quantize(16).convert("RGB"))),
    "1": (Image.fromarray(GREY > 99), np.where(GREY > 99, np.uint8(255), np.uint8(0))[..., None].repeat(3, axis=2)),
    "RGBA": (Image.fromarray(np.dstack([RGB, np.full_like(GREY, 255)])), RGB),
    "LA": (Image.fromarray(np.dstack([GREY, np.full_like(GREY, 255)])), np.stack([GREY] * 3, axis=-1)),
    "PA": (PICTURE.quantize(16).convert("PA"), np.asarray(PICTURE.quantize(16).convert("RGB"))),
}


@pytest.mark.parametrize("mode", ACCEPTED)
def test_a_pil_image_of_eight_bits_becomes_rgb(mode: str) -> None:
    picture, expected = ACCEPTED[mode]
    assert picture.mode == mode
    found = read_rgb(picture)
    assert (found.dtype, found.shape) == (np.uint8, RGB.shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", sorted(set(ACCEPTED) - {"PA"}))  # PNG has no palette with an alpha channel
def test_a_file_gives_what_the_pil_image_gives(mode: str, tmp_path: Path) -> None:
    picture, expected = ACCEPTED[mode]
    picture.save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "image.png"), expected)
    np.testing.assert_array_equal(read_rgb(str(tmp_path / "image.png")), expected)


@pytest.mark.parametrize("kind", ["BMP", "PPM", "TIFF", "WEBP", "GIF"])
def test_lossless_formats_give_the_pixels_back(kind: str, tmp_path: Path) -> None:
    picture = PICTURE.quantize(16).convert("RGB")
    (tmp_path / "image").write_bytes(encoded(picture, kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(read_rgb(tmp_path / "image"), np.asarray(picture))


def test_a_palette_whose_transparent_colour_is_not_used_is_accepted() -> None:
    picture = Image.new("P", (4, 3), 1)
    picture.putpalette([0, 0, 0, 9, 8, 7])
    picture.info["transparency"] = 0
    np.testing.assert_array_equal(read_rgb(picture)[0, 0], [9, 8, 7])


def test_a_rotated_jpeg_is_read_upright(tmp_path: Path) -> None:
    lying = np.zeros((32, 64, 3), np.uint8)
    lying[:, :32] = (250, 10, 10)  # the red left half is the upper half once turned
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = QUARTER_TURN
    Image.fromarray(lying).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    found = read_rgb(tmp_path / "turned.jpg")
    assert found.shape == (64, 32, 3)
    assert found[:24, :, 0].min() > 200
    assert found[40:, :, 0].max() < 60


@pytest.mark.parametrize("single", ["photo.jpg", Path("photo.jpg"), PICTURE, RGB], ids=["str", "path", "pil", "array"])
def test_one_image_is_a_list_of_one(single: images.ImageLike) -> None:
    (found,) = as_list(single)
    assert found is single


def test_a_batch_is_a_list_of_its_images() -> None:
    batch = np.stack([RGB, RGB[::-1]])
    found = as_list(batch)
    assert len(found) == 2
    np.testing.assert_array_equal(np.stack(found), batch)


def test_a_generator_of_images_is_accepted() -> None:
    assert len(as_list(image for image in (RGB, PICTURE))) == 2


# ---- what is refused


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RGB.astype(np.float32), r"photo: arrays must be uint8 \(height, width, 3\) RGB, got float32 \[20, 30, 3\]"),
        (RGB.astype(np.uint16), r"got uint16 \[20, 30, 3\]"),
        (RGB > 99, r"got bool"),
        (RGB.transpose(2, 0, 1), r"got uint8 \[3, 20, 30\]"),
        (RGB[..., :1], r"got uint8 \[20, 30, 1\]"),
        (np.dstack([RGB, GREY]), r"got uint8 \[20, 30, 4\]"),
        (RGB[0, 0], r"got uint8 \[3\]"),
        (np.empty((0, 30, 3), np.uint8), r"photo: the array is empty, \[0, 30, 3\]"),
        (np.empty((20, 0), np.uint8), r"photo: the array is empty, \[20, 0\]"),
    ],
    ids=["float32", "uint16", "bool", "planar", "one channel", "four channels", "vector", "no rows", "no columns"],
)
def test_an_array_of_another_kind_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(SaccadeError, match=message):
        read_rgb(array, "photo")


@pytest.mark.parametrize("thing", [None, 5, b"bytes", {"a": 1}], ids=["none", "number", "bytes", "dict"])
def test_what_is_no_image_at_all_is_refused(thing: object) -> None:
    with pytest.raises(SaccadeError, match="is no type of image; give a path, a PIL image or a uint8 array"):
        read_rgb(thing)


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "CMYK", "YCbCr", "LAB", "HSV"])
def test_a_pil_image_that_would_lose_something_is_refused_by_its_mode(mode: str) -> None:
    with pytest.raises(SaccadeError, match=f"photo: {mode} images are not accepted .*; convert it to 8-bit RGB first"):
        read_rgb(Image.new(mode, (4, 3)), "photo")


TRANSLUCENT = np.full_like(GREY, 255)
TRANSLUCENT[3, 4] = 254


@pytest.mark.parametrize(
    "picture", [np.dstack([RGB, TRANSLUCENT]), np.dstack([GREY, TRANSLUCENT])], ids=["RGBA", "LA"]
)
def test_one_translucent_pixel_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(SaccadeError, match="photo is translucent; put it on a background first"):
        read_rgb(Image.fromarray(picture), "photo")


def test_a_transparent_palette_colour_in_use_is_refused(tmp_path: Path) -> None:
    palette = PICTURE.quantize(16)
    palette.save(tmp_path / "image.png", transparency=palette.getpixel((0, 0)))
    with pytest.raises(SaccadeError, match=r"image\.png is translucent"):
        read_rgb(tmp_path / "image.png")


def test_a_transparent_rgb_colour_in_use_is_refused(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "image.png", transparency=tuple(RGB[0, 0].tolist()))
    with pytest.raises(SaccadeError, match=r"image\.png is translucent"):
        read_rgb(tmp_path / "image.png")


def big_tiff_header(bits: int, samples: int) -> bytes:
    """Return a raw little-endian TIFF of 4 x 3 pixels with `bits` in each of `samples` channels."""
    pixels = bytes(4 * 3 * samples * bits // 8)
    tags = [
        (256, 3, 1, 4), (257, 3, 1, 3), (258, 3, samples, 8), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 8 + 2 * samples), (277, 3, 1, samples), (278, 3, 1, 3), (279, 4, 1, len(pixels)),
    ]  # fmt: skip
    depth = struct.pack(f"<{samples}H", *[bits] * samples)
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(depth) + len(pixels)) + depth + pixels + directory


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (sixteen_bit_png(0, 1), "I;16"),
        (sixteen_bit_png(2, 3), "16-bit RGB"),
        (sixteen_bit_png(4, 2), "16-bit RGBA"),
        (sixteen_bit_png(6, 4), "16-bit RGBA"),
        (big_tiff_header(16, 3), "16-bit RGB"),
        (b"P6 4 3 65535\n" + bytes(4 * 3 * 6), "16-bit RGB"),
        (b"P3 2 1 4095\n0 1 2 3 4 5\n", "16-bit RGB"),
        (b"P5 4 3 65535\n" + bytes(4 * 3 * 2), "I"),
        (encoded(PICTURE.convert("CMYK"), "JPEG"), "CMYK"),
        (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "F"),
        (encoded(Image.fromarray(GREY.astype(np.uint16)), "TIFF"), "I;16"),
    ],
    ids=["png grey", "png rgb", "png grey+alpha", "png rgba", "tiff rgb", "ppm", "plain ppm", "pgm", "cmyk", "float", "u16"],
)
def test_a_file_of_more_than_eight_bits_or_of_cmyk_is_refused(content: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(content)
    with pytest.raises(SaccadeError, match=f"image: {kind} images are not accepted"):
        read_rgb(tmp_path / "image")


def j2k_of_depth(content: bytes, bits: int) -> bytes:
    """Return a JPEG 2000 file that declares `bits` in its last channel."""
    start = content.index(b"\xff\x4f\xff\x51")
    place = start + 42 + 3 * (int.from_bytes(content[start + 40 : start + 42], "big") - 1)
    return content[:place] + bytes([bits - 1]) + content[place + 1 :]


def avif_of_high_depth(content: bytes) -> bytes:
    """Return an AVIF file whose header declares 10 bits, in both boxes that tell the depth."""
    changed = bytearray(content)
    changed[content.index(b"av1C") + 6] |= 0x40
    depths = content.index(b"pixi") + 9
    changed[depths : depths + 3] = bytes([10] * 3)
    return bytes(changed)


@pytest.mark.parametrize("codec", ["JPEG2000", "AVIF"])
def test_the_depth_of_a_modern_format_is_read_from_its_header(codec: str, tmp_path: Path) -> None:
    if not features.check({"JPEG2000": "jpg_2000", "AVIF": "avif"}[codec]):
        pytest.skip(f"this Pillow reads no {codec}")
    for options in [{}, {"no_jp2": True}] if codec == "JPEG2000" else [{}]:
        content = encoded(PICTURE, codec, **options)
        (tmp_path / "image").write_bytes(content)
        assert read_rgb(tmp_path / "image").shape == RGB.shape
        deep = j2k_of_depth(content, 12) if codec == "JPEG2000" else avif_of_high_depth(content)
        (tmp_path / "image").write_bytes(deep)
        with pytest.raises(SaccadeError, match="image: 16-bit RGB images are not accepted"):
            read_rgb(tmp_path / "image")


# ---- files of several frames


TURNED = Image.fromarray(RGB[::-1].copy())


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP", "AVIF"])
def test_a_file_of_several_frames_is_refused_naming_their_number(kind: str, tmp_path: Path) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    frames = {"save_all": True, "append_images": [TURNED, PICTURE]}
    (tmp_path / "image").write_bytes(encoded(PICTURE, kind, **frames))
    with pytest.raises(SaccadeError, match=r"image holds 3 frames; extract the frame you mean$"):
        read_rgb(tmp_path / "image")


def test_a_photograph_with_an_embedded_preview_is_read_as_the_photograph(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encoded(PICTURE, "MPO", save_all=True, append_images=[TURNED.resize((8, 6))]))
    (tmp_path / "alone.jpg").write_bytes(encoded(PICTURE, "JPEG"))
    with Image.open(tmp_path / "photo.jpg") as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    np.testing.assert_array_equal(read_rgb(tmp_path / "photo.jpg"), read_rgb(tmp_path / "alone.jpg"))


def test_a_frame_that_the_caller_has_chosen_is_read() -> None:
    opened = Image.open(io.BytesIO(encoded(PICTURE, "TIFF", save_all=True, append_images=[TURNED])))
    opened.seek(1)
    np.testing.assert_array_equal(read_rgb(opened), RGB[::-1])


def test_a_tiff_of_eight_bits_beside_them_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(big_tiff_header(8, 3))
    assert read_rgb(tmp_path / "image").shape == (3, 4, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"image is empty"),
        (b"hello", r"image is not an image that Pillow can read"),
        (encoded(PICTURE, "JPEG")[:300], r"image: damaged or truncated image"),
        (encoded(PICTURE, "PNG")[:300], r"image: damaged or truncated image"),
        (encoded(PICTURE, "PNG")[:-30], r"image: damaged or truncated image"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "png without its end"],
)
def test_a_damaged_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(content)
    with pytest.raises(SaccadeError, match=message):
        read_rgb(tmp_path / "image")


def test_a_pil_image_of_a_truncated_file_is_refused_like_the_file() -> None:
    opened = Image.open(io.BytesIO(encoded(PICTURE, "JPEG")[:-200]))
    with pytest.raises(SaccadeError, match="photo: damaged or truncated image"):
        read_rgb(opened, "photo")


def test_a_missing_file_a_folder_and_an_impossible_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"gone\.png: no such image file"):
        read_rgb(tmp_path / "gone.png")
    with pytest.raises(SaccadeError, match="is a folder; give image files"):
        read_rgb(tmp_path)
    with pytest.raises(SaccadeError, match=r"cannot read .*: File name too long"):
        read_rgb(tmp_path / ("n" * 300))


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(images.Image, "open", refuse)
    with pytest.raises(SaccadeError, match=r"cannot read .*image: Permission denied$"):
        read_rgb(tmp_path / "image")


@pytest.mark.parametrize("width", [14_000, 40_000])
def test_a_decompression_bomb_is_refused_by_its_size(width: int, tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(png((b"IHDR", header), (b"IDAT", b"")))
    with pytest.raises(SaccadeError, match=r"bomb\.png: more than 178 megapixels; make it smaller first"):
        read_rgb(tmp_path / "bomb.png")


def test_a_pil_image_beyond_the_bound_is_refused_before_it_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", RGB.shape[0] * RGB.shape[1] - 1)
    with pytest.raises(SaccadeError, match="megapixels"):
        read_rgb(PICTURE)


def test_a_large_photograph_warns_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    PICTURE.save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # 600 pixels are to 500 as a 107-megapixel photograph to Pillow's
    np.testing.assert_array_equal(read_rgb(tmp_path / "large.png"), RGB)
    assert not list(recwarn)


def test_our_bound_is_the_one_where_pillow_refuses_to_open_a_file() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert abs(2 * Image.MAX_IMAGE_PIXELS - MAX_PIXELS) <= 2


# Pillow raised TypeError, MemoryError and RuntimeError on these before they were caught.
SEEDS = {
    kind: encoded(PICTURE, kind)
    for kind in ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", *(["JPEG2000"] if features.check("jpg_2000") else []))
}


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(SEEDS)), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6), st.data())
def test_no_damage_raises_anything_but_our_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, edits: list[tuple[int, int]], data: st.DataObject
) -> None:
    content = bytearray(SEEDS[kind])
    for place, value in edits:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = read_rgb(path)
    except SaccadeError as error:
        assert "\n" not in str(error)
        return
    assert (found.dtype, found.ndim, found.shape[2]) == (np.uint8, 3, 3)


# ---- fits


@settings(deadline=None, max_examples=60)
@given(extents, extents, targets)
def test_squash_is_pillows_bicubic_resize(height: int, width: int, size: tuple[int, int]) -> None:
    image = random_rgb(height, width)
    expected = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fit_image(image, size, "squash", PATCH), np.asarray(expected))


@settings(deadline=None, max_examples=100)
@given(extents, extents, targets, st.sampled_from(FITS))
def test_every_fit_gives_uint8_of_the_asked_size(height: int, width: int, size: tuple[int, int], fit: images.Fit) -> None:
    found = fit_image(random_rgb(height, width), size, fit, PATCH)
    wanted = (height - height % PATCH, width - width % PATCH) if fit == "native" else size
    assert (found.dtype, found.shape) == (np.uint8, (*wanted, 3))


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_an_image_of_the_asked_size_is_not_touched(fit: images.Fit) -> None:
    image = random_rgb(28, 42)
    assert fit_image(image, (28, 42), fit, PATCH) is image


def test_crop_takes_the_centre_of_a_wide_image() -> None:
    image = np.zeros((28, 84, 3), np.uint8)
    image[:, 28:56] = 200  # the middle third, which is all that a square keeps
    np.testing.assert_array_equal(fit_image(image, (28, 28), "crop", PATCH), np.full((28, 28, 3), 200, np.uint8))


def test_crop_takes_the_centre_of_a_tall_image() -> None:
    image = np.zeros((90, 30, 3), np.uint8)
    image[30:60] = 200
    np.testing.assert_array_equal(fit_image(image, (30, 30), "crop", 15), np.full((30, 30, 3), 200, np.uint8))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 60), targets)
def test_crop_covers_everywhere(height: int, width: int, size: tuple[int, int]) -> None:
    """A white image stays white: no border is invented at any aspect ratio."""
    white = np.full((height, width, 3), 255, np.uint8)
    assert fit_image(white, size, "crop", PATCH).min() == 255


@settings(deadline=None, max_examples=100)
@given(extents, extents, targets)
def test_crop_is_the_centre_of_pillows_bicubic_resize(height: int, width: int, size: tuple[int, int]) -> None:
    image = random_rgb(height, width)
    scale = max(size[0] / height, size[1] / width)
    covering = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    resized = np.asarray(Image.fromarray(image).resize((covering[1], covering[0]), Image.Resampling.BICUBIC))
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    expected = resized[top : top + size[0], left : left + size[1]]
    np.testing.assert_array_equal(fit_image(image, size, "crop", PATCH), expected)


def test_crop_keeps_the_aspect_ratio() -> None:
    """A ramp along the width has the same slope as one along the height, though the target is not square."""
    ramp = np.linspace(0, 250, 200)[None, :, None].repeat(100, axis=0).repeat(3, axis=2).astype(np.uint8)
    found = fit_image(ramp, (56, 28), "crop", PATCH).astype(float)  # scale 0.56: 112 px wide, its middle 28
    assert found.shape == (56, 28, 3)
    slope = (found[28, -1, 0] - found[28, 0, 0]) / 27
    assert slope == pytest.approx(250 / 199 / 0.56, rel=0.03)


def test_crop_does_not_keep_what_it_leaves_out_in_memory() -> None:
    found = fit_image(random_rgb(28, 2800), (28, 28), "crop", PATCH)
    assert found.base is None


@pytest.mark.parametrize("shape", [(1, 16_384), (16_384, 1)])
def test_crop_refuses_a_line_of_pixels_instead_of_filling_the_memory(shape: tuple[int, int]) -> None:
    with pytest.raises(SaccadeError, match=r"px image is too narrow for fit crop; use fit squash"):
        fit_image(random_rgb(*shape), (518, 518), "crop", PATCH)


@settings(deadline=None, max_examples=60)
@given(st.integers(PATCH, 60), st.integers(PATCH, 60))
def test_native_leaves_out_the_right_and_bottom_remainder(height: int, width: int) -> None:
    image = random_rgb(height, width)
    found = fit_image(image, (0, 0), "native", PATCH)
    np.testing.assert_array_equal(found, image[: height // PATCH * PATCH, : width // PATCH * PATCH])


def test_a_native_image_has_the_size_of_its_whole_patches() -> None:
    assert native_size(random_rgb(29, 44), PATCH, 0) == (28, 42)
    assert native_size(random_rgb(41, 42), PATCH, 1, (28, 42)) == (28, 42)


def test_native_images_of_different_grids_are_refused_naming_both() -> None:
    message = r"image 0 is 42 x 28 px in whole patches, image 1 is 42 x 14; run them apart, or use --fit squash or crop"
    with pytest.raises(SaccadeError, match=message):
        native_size(random_rgb(27, 42), PATCH, 1, (28, 42))


@pytest.mark.parametrize("shape", [(13, 100), (100, 13), (1, 1)])
def test_a_native_image_below_one_patch_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(SaccadeError, match="image 1 is smaller than one 14 px patch; use --fit squash"):
        native_size(random_rgb(*shape), PATCH, 1, (28, 42))


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_a_size_of_whole_patches_is_accepted(rows: int, columns: int) -> None:
    assert check_size((rows * PATCH, columns * PATCH), PATCH) == (rows * PATCH, columns * PATCH)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((520, 518), "518x518"), ((512, 100), "518x98"), ((3, 14), "14x14"), ((0, 14), "14x14"), ((-28, 14), "14x14")],
)
def test_a_size_between_patches_is_refused_naming_the_nearest(size: tuple[int, int], nearest: str) -> None:
    message = f"size {size[0]}x{size[1]} is not a multiple of the 14 px patch; the nearest is {nearest}$"
    with pytest.raises(SaccadeError, match=message):
        check_size(size, PATCH)


@pytest.mark.parametrize("fit", FITS)
def test_a_path_its_pil_image_and_its_pixels_give_one_picture(fit: images.Fit, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "image.png")
    expected = fit_image(RGB, (28, 14), fit, PATCH)
    for image in (tmp_path / "image.png", PICTURE, RGB):
        np.testing.assert_array_equal(fit_image(read_rgb(image), (28, 14), fit, PATCH), expected)
