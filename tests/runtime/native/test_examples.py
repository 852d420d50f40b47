"""The example programs do what their first comment says, and read images as the Python runtime does."""
from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builds import BUILDS, ROOT, environment
from PIL import Image, PngImagePlugin

import saccade
from saccade.errors import SaccadeError
from saccade.runtime.images import read_rgb

PHOTO = Image.open(ROOT / "examples" / "china.jpg").resize((96, 64))
TRANSLUCENT = PHOTO.copy()
TRANSLUCENT.putalpha(254)

pytestmark = pytest.mark.skipif(
    not (BUILDS / "asan" / "examples" / "features").exists(),
    reason="the examples are not built; `make lib-test` builds them",
)


@pytest.fixture(scope="session")
def bundle(built_bundle: Callable[[str], Path]) -> Path:
    return built_bundle("dinov2")


def run(program: str, *arguments: str | Path, build: str = "asan") -> subprocess.CompletedProcess[str]:
    """Run an example, under AddressSanitizer where its input may be hostile. One that ends early frees nothing."""
    command = [BUILDS / build / "examples" / program, *arguments]
    without_leaks = environment(build, ASAN_OPTIONS="detect_leaks=0")
    return subprocess.run(command, capture_output=True, text=True, env=without_leaks, check=False)


def png_only() -> None:
    if "PNG_PNG_INCLUDE_DIR-NOTFOUND" in (BUILDS / "asan" / "CMakeCache.txt").read_text():
        pytest.skip("built without libpng; apt install libpng-dev")


# ---- features ----


def save_accepted(folder: Path) -> None:
    """Save what the Python runtime takes, each in a way of its own."""
    key = PngImagePlugin.PngInfo()
    key.add(b"gAMA", (100000).to_bytes(4, "big"))
    opaque = PHOTO.convert("RGBA")
    interlaced = PHOTO.convert("RGB")
    PHOTO.save(folder / "b.ppm")
    PHOTO.save(folder / "B.png")
    PHOTO.save(folder / "gamma.png", pnginfo=key)
    PHOTO.convert("L").save(folder / "grey.png")
    PHOTO.convert("1").save(folder / "bits.png")
    PHOTO.quantize(7).save(folder / "palette.png")
    opaque.save(folder / "opaque.png")
    interlaced.save(folder / "one_frame.png", save_all=True)
    PHOTO.convert("LA").save(folder / "grey_alpha.png")


def test_features_are_pythons_in_the_order_of_names(tmp_path: Path, bundle: Path, engine_library: Path) -> None:
    png_only()
    (tmp_path / "images").mkdir()
    save_accepted(tmp_path / "images")
    (tmp_path / "images" / "notes.txt").touch()
    done = run("features", bundle, tmp_path / "images", tmp_path / "out.npy", engine_library, build="release")
    assert done.returncode == 0, done.stderr
    assert "left out what is neither .ppm nor .png: 1 files" in done.stderr
    assert "9 of 9: palette.png" in done.stderr
    paths = sorted((tmp_path / "images").glob("*.p*"), key=lambda path: path.name.encode())
    with saccade.load(bundle) as pipe:
        expected = np.concatenate([pipe(path).cls for path in paths])
    found = np.load(tmp_path / "out.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def save_deep_ppm(path: Path) -> None:
    path.write_bytes(b"P6 2 1 65535\n" + bytes(12))


def save_cut(path: Path) -> None:
    PHOTO.save(path)
    path.write_bytes(path.read_bytes()[:-1000])


def save_damaged(path: Path) -> None:
    PHOTO.save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def save_bomb(path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(path)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "deep.png": (lambda path: Image.fromarray(np.zeros((9, 9), np.uint16)).save(path), "16-bit images are not accepted"),
    "deep.ppm": (save_deep_ppm, "its values do not run from 0 to 255"),
    "translucent.png": (TRANSLUCENT.save, "translucent; put it on a background first"),
    "colour_key.png": (lambda path: PHOTO.convert("P").save(path, transparency=0), "translucent"),
    "animated.png": (lambda path: PHOTO.save(path, save_all=True, append_images=[TRANSLUCENT]), "animated"),
    "bomb.png": (save_bomb, "more than 178 megapixels; make it smaller first"),
    "cut.png": (save_cut, "not a PNG, damaged or cut short"),
    "cut.ppm": (save_cut, "cut short"),
    "damaged.png": (save_damaged, "not a PNG, damaged or cut short"),
    "empty.png": (Path.touch, "not a PNG, damaged or cut short"),
    "empty.ppm": (Path.touch, "not a binary PPM (P6)"),
    "no_size.ppm": (lambda path: path.write_bytes(b"P6 0 4 255\n"), "its header is damaged"),
    "huge.ppm": (lambda path: path.write_bytes(b"P6 99999999999 4 255\n"), "its header is damaged"),
    "header.ppm": (lambda path: path.write_bytes(b"P6 # only a comment"), "its header is damaged"),
    "folder.ppm": (Path.mkdir, "not a binary PPM (P6)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_features_ends_with_one_line_about_what_python_refuses_too(
    tmp_path: Path, bundle: Path, engine_library: Path, name: str
) -> None:
    if name.endswith(".png"):
        png_only()
    save, reason = REFUSED[name]
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / name
    save(path)
    with pytest.raises(SaccadeError):
        read_rgb(path)
    done = run("features", bundle, path.parent, tmp_path / "out.npy", engine_library)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"features: {path}: {reason}")
    assert not (tmp_path / "out.npy").exists()


def test_features_refuses_a_rotation_that_python_applies(tmp_path: Path, bundle: Path, engine_library: Path) -> None:
    png_only()
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    PHOTO.save(tmp_path / "images" / "turned.png", exif=exif)
    done = run("features", bundle, tmp_path / "images", tmp_path / "out.npy", engine_library)
    assert done.returncode == 1
    assert "turned.png: it has EXIF data, which may rotate it; save it upright and without" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("{bundle}", "{folder}/none", "{folder}/out.npy"), "features: {folder}/none: No such file or directory"),
        (("{bundle}", "{folder}", "{folder}/out.npy"), "features: {folder} has no .ppm or .png files"),
    ],
)
def test_features_names_the_folder_that_it_cannot_use(
    tmp_path: Path, bundle: Path, arguments: tuple[str, ...], line: str
) -> None:
    done = run("features", *(each.format(bundle=bundle, folder=tmp_path) for each in arguments))
    assert (done.returncode, done.stderr) == (1, line.format(folder=tmp_path) + "\n")


def test_features_wants_a_bundle_without_a_head(tmp_path: Path, small_bundle: Callable[[str], Path]) -> None:
    PHOTO.save(tmp_path / "a.ppm")
    bundle = small_bundle("classify")
    done = run("features", bundle, tmp_path, tmp_path / "out.npy")
    assert done.stderr == f"features: {bundle} has a head and gives no cls features; export it without --task\n"


# ---- the others ----


@pytest.mark.parametrize("build", ["release", "asan", "tsan"])
def test_two_threads_come_to_one_threads_results(tmp_path: Path, bundle: Path, engine_library: Path, build: str) -> None:
    names = [tmp_path / f"{index}.ppm" for index in range(3)]
    for index, name in enumerate(names):
        PHOTO.rotate(90 * index).save(name)
    done = run("threads", bundle, engine_library, *names, build=build)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 threads, 3 images each: equal to one thread's results\n"


@pytest.mark.parametrize("program", ["classify", "features", "threads"])
def test_an_example_without_arguments_says_how_to_call_it(program: str) -> None:
    done = run(program)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: {program} BUNDLE ")


def test_classify_wants_classes_and_a_precision_that_there_is(
    tmp_path: Path, bundle: Path, engine_library: Path
) -> None:
    PHOTO.save(tmp_path / "a.ppm")
    done = run("classify", bundle, tmp_path / "a.ppm", "fp32", engine_library)
    assert done.stderr == f"classify: {bundle} has no classes; export it with --task classify\n"
    done = run("classify", bundle, tmp_path / "a.ppm", "fp23", engine_library)
    assert done.stderr == "classify: precision fp23 is unknown; give fp32, bf16, fp16 or int8\n"
