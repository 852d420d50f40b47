"""The store of features: order, resumption, unreadable images, and memory."""
from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from saccade.errors import SaccadeError
from saccade.runtime.stream import in_order
from saccade.validate.features import STATE, Features, Stream, _Writer, extract

Usage = namedtuple("Usage", "total used free")
RECIPE = {"engine": "none", "size": "4"}


def decode(path: Path) -> np.ndarray:
    """Read the number in a file's name as an image of one value; some names cannot be read."""
    if "bad" in path.name:
        raise SaccadeError(f"{path.name} is not an image")
    return np.full((4, 4, 3), int(path.stem) % 256, np.uint8)


class Network:
    """Means of images, and a record of the batches that it was given."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.batches: list[int] = []
        self.fails_at = fails_at

    def __call__(self, images: list[np.ndarray]) -> Mapping[str, np.ndarray]:
        if self.fails_at is not None and sum(self.batches) >= self.fails_at:
            raise KeyboardInterrupt
        self.batches.append(len(images))
        means = np.array([image.mean() for image in images], np.float32)
        return {"cls": means[:, None], "tokens": np.repeat(means[:, None, None], 6, axis=1), "unused": means}


def stream_of(network: Callable[[list[np.ndarray]], Mapping[str, np.ndarray]]) -> Stream:
    return functools.partial(map, network)


def run(names: list[str], root: Path, network: Network | None = None, **options: int) -> Features:
    network, outputs = network or Network(), ("cls", "tokens")
    paths, stream = [Path(name) for name in names], stream_of(network)
    return extract(paths, root, RECIPE, decode=decode, stream=stream, outputs=outputs, **options)


def test_row_i_of_every_array_belongs_to_name_i(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(100)]
    found = run(names, tmp_path, batch=7)
    assert found.names == names
    assert set(found.arrays) == {"cls", "tokens"}
    np.testing.assert_array_equal(found.arrays["cls"][:, 0], np.arange(100))
    assert found.arrays["tokens"].shape == (100, 6, 1)


def test_unreadable_images_have_no_row_and_are_named_with_the_reason(tmp_path: Path) -> None:
    found = run(["0.png", "bad1.png", "2.png", "bad3.png"], tmp_path)
    assert found.names == ["0.png", "2.png"]
    assert found.failed == {"bad1.png": "bad1.png is not an image", "bad3.png": "bad3.png is not an image"}
    np.testing.assert_array_equal(found.arrays["cls"][:, 0], [0, 2])


def test_an_interrupted_extraction_is_taken_up_where_it_stopped(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(50)] + ["bad.png"] + [f"{number}.png" for number in range(50, 90)]
    with pytest.raises(KeyboardInterrupt):
        run(names, tmp_path, Network(fails_at=40), batch=8)
    second = Network()
    found = run(names, tmp_path, second, batch=8)
    assert sum(second.batches) == 90 - 40
    np.testing.assert_array_equal(found.arrays["cls"][:, 0], np.arange(90))
    assert list(found.failed) == ["bad.png"]


@pytest.mark.parametrize(("free", "fits"), [(28 * 100, True), (28 * 100 - 1, False), (28 * 92, False)])
def test_rows_that_the_disk_cannot_hold_are_refused_after_the_first_batch(
    free: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.validate.features.shutil.disk_usage", lambda path: Usage(0, 0, free))
    names, network, sizes = [f"{number}.png" for number in range(100)], Network(), []
    options = {"decode": decode, "stream": stream_of(network), "outputs": ("cls", "tokens")}
    if fits:
        extract(list(map(Path, names)), tmp_path, RECIPE, **options, sized=sizes.append)  # type: ignore[arg-type]
        assert sizes == [28 * 100]  # 1 + 6 numbers of 4 bytes
        return
    with pytest.raises(SaccadeError, match=r"100 images take 0.0 GB more and 0.0 GB are free; give --features on another"):
        extract(list(map(Path, names)), tmp_path, RECIPE, **options)  # type: ignore[arg-type]
    assert network.batches == [8]


def test_what_is_on_the_disk_already_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number}.png" for number in range(90)]
    with pytest.raises(KeyboardInterrupt):
        run(names, tmp_path, Network(fails_at=80), batch=8)
    monkeypatch.setattr("saccade.validate.features.shutil.disk_usage", lambda path: Usage(0, 0, 28 * 10))
    assert len(run(names, tmp_path, batch=8).names) == 90


def test_rows_written_after_the_last_save_do_not_count(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(30)]
    with pytest.raises(KeyboardInterrupt):
        run(names, tmp_path, Network(fails_at=16), batch=8)
    (rows,) = tmp_path.glob("*/cls.rows")
    with rows.open("ab") as file:
        file.write(b"\xff" * 10)  # what a killed process leaves
    np.testing.assert_array_equal(run(names, tmp_path).arrays["cls"][:, 0], np.arange(30))


def test_finished_features_are_not_extracted_again(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(10)]
    run(names, tmp_path)
    second = Network()
    assert run(names, tmp_path, second).names == names
    assert second.batches == []


def test_another_recipe_or_list_has_a_folder_of_its_own(tmp_path: Path) -> None:
    run(["1.png"], tmp_path)
    run(["1.png", "2.png"], tmp_path)
    extract([Path("1.png")], tmp_path, {"engine": "other"}, decode=decode, stream=stream_of(Network()), outputs=("cls",))
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3


def test_another_version_of_what_saccade_does_is_extracted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(["1.png"], tmp_path)
    monkeypatch.setattr("saccade.validate.features.FEATURES_VERSION", 10**6)
    later = Network()
    run(["1.png"], tmp_path, later)
    assert later.batches == [1]


def test_images_of_another_size_get_a_batch_of_their_own(tmp_path: Path) -> None:
    network = Network()
    extract(
        [Path(f"{number}.png") for number in range(6)], tmp_path, RECIPE,
        decode=lambda path: np.zeros((4 if int(path.stem) < 3 else 8, 4, 3), np.uint8),
        stream=stream_of(network), outputs=("cls",), batch=4,
    )  # fmt: skip
    assert network.batches == [3, 3]


def test_a_row_of_another_shape_is_refused_by_its_image(tmp_path: Path) -> None:
    def shapes(images: list[np.ndarray]) -> Mapping[str, np.ndarray]:
        return {"cls": np.zeros((len(images), images[0].shape[0]), np.float32)}

    with pytest.raises(SaccadeError, match=r"5\.png: its cls has shape \[8\], the others \[4\]; all must share one"):
        extract(
            [Path(f"{number}.png") for number in range(6)], tmp_path, RECIPE,
            decode=lambda path: np.zeros((8 if path.stem == "5" else 4, 4, 3), np.uint8),
            stream=stream_of(shapes), outputs=("cls",),
        )  # fmt: skip


def test_order_and_failures_are_kept_where_several_batches_are_under_way(tmp_path: Path) -> None:
    names = ["bad0.png", *(f"{number}.png" for number in range(20)), "bad1.png", "bad2.png", "20.png", "bad3.png"]

    def slowest_first(images: list[np.ndarray]) -> Mapping[str, np.ndarray]:
        time.sleep(0.02 if images[0].mean() % 2 else 0)
        return {"cls": np.array([[image.mean()] for image in images], np.float32)}

    found = extract(
        [Path(name) for name in names], tmp_path, RECIPE, decode=decode,
        stream=lambda batches: in_order(batches, [slowest_first] * 3), outputs=("cls",), batch=3,
    )  # fmt: skip
    np.testing.assert_array_equal(found.arrays["cls"][:, 0], np.arange(21))
    assert found.names == [name for name in names if "bad" not in name]
    assert list(found.failed) == ["bad0.png", "bad1.png", "bad2.png", "bad3.png"]


@pytest.mark.parametrize("names", [[], ["bad.png", "bad2.png"]])
def test_nothing_readable_is_an_error(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(SaccadeError, match=f"none of {len(names)} images can be read"):
        run(names, tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"recipe": {}}', '{"recipe": 3}', "[" * 10000])
def test_a_damaged_state_is_named_with_the_remedy(tmp_path: Path, text: str) -> None:
    run(["1.png"], tmp_path)
    (state,) = tmp_path.glob(f"*/{STATE}")
    state.write_text(text)
    with pytest.raises(SaccadeError, match=f"{STATE}: .*; delete {state.parent}"):
        run(["1.png"], tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"<f4"', '"zz"'), ('"<f4"', '"|O"'), ('"shape":[1]', '"shape":[-1]'), ('"shape":[1]', '"shape":[0,-3]'),
        ('"seen":3', '"seen":-3'), ('"seen":3', '"seen":4'), ('"cls"', '"../cls"'),
        ('"failed":{}', '"failed":{"3":"x"}'), ('"failed":{}', '"failed":{"-1":"x"}'),
    ],
)  # fmt: skip
def test_a_state_that_no_extraction_writes_is_refused(tmp_path: Path, old: str, new: str) -> None:
    names = ["1.png", "2.png", "3.png"]
    run(names, tmp_path)
    (state,) = tmp_path.glob(f"*/{STATE}")
    assert old in state.read_text()
    state.write_text(state.read_text().replace(old, new))
    with pytest.raises(SaccadeError, match=f"{STATE}: .*; delete {state.parent}"):
        run(names, tmp_path)


def test_a_state_or_rows_that_are_no_files_are_refused(tmp_path: Path) -> None:
    run(["1.png"], tmp_path)
    (rows,), (state,) = tmp_path.glob("*/cls.rows"), tmp_path.glob(f"*/{STATE}")
    rows.unlink()
    rows.mkdir()
    with pytest.raises(SaccadeError, match="does not belong to the rows beside it"):
        run(["1.png"], tmp_path)
    state.unlink()
    state.symlink_to(state.name)
    with pytest.raises(SaccadeError, match=f"{STATE}: not a state of an extraction; delete"):
        run(["1.png"], tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaccadeError, match=r"cannot write .*file/.*: a file stands where a folder is needed"):
        run(["1.png"], tmp_path / "file")


def test_a_full_disk_is_one_line_and_what_was_kept_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number}.png" for number in range(20)]
    with pytest.raises(KeyboardInterrupt):
        run(names, tmp_path, Network(fails_at=8), batch=4)
    with monkeypatch.context() as patch:
        patch.setattr(_Writer, "_opened", lambda writer, name: open("/dev/full", "ab"))  # noqa: PTH123, SIM115
        with pytest.raises(SaccadeError, match=r"cannot write .*: the disk is full; free some space and repeat"):
            run(names, tmp_path, batch=4)
    second = Network()
    np.testing.assert_array_equal(run(names, tmp_path, second, batch=4).arrays["cls"][:, 0], np.arange(20))
    assert sum(second.batches) == 12


def test_rows_that_are_not_one_for_each_image_are_refused(tmp_path: Path) -> None:
    def stream(batches: Iterable[list[np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
        return ({"cls": np.zeros((len(batch) - 1, 2), np.float32)} for batch in batches)

    with pytest.raises(SaccadeError, match=r"1\.png: 1 row of cls came of a batch of 2 images"):
        extract([Path("1.png"), Path("2.png")], tmp_path, {}, decode=decode, stream=stream, outputs=("cls",))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_engine_s_nan_is_never_kept(tmp_path: Path, bad: float) -> None:
    def stream(batches: Iterable[list[np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
        for batch in batches:
            values = np.ones((len(batch), 5, 2), np.float32)
            values[1, 3, 0] = bad
            yield {"tokens": values}

    with pytest.raises(SaccadeError, match=r"2\.png: its tokens holds NaN or infinity; look at the engine with"):
        extract([Path("1.png"), Path("2.png")], tmp_path, {}, decode=decode, stream=stream, outputs=("tokens",))
    assert not any(path.stat().st_size for path in tmp_path.glob("*/*.rows"))


def test_an_image_that_becomes_readable_is_not_left_out_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).touch()
    names, denied = [str(tmp_path / "1.png"), str(tmp_path / "2.png")], {str(tmp_path / "2.png")}
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) not in denied)

    def open_to_me(path: Path) -> np.ndarray:
        if str(path) in denied:
            raise SaccadeError(f"{path}: permission denied")
        return decode(path)

    def found() -> Features:
        paths = [Path(name) for name in names]
        return extract(paths, tmp_path / "f", {}, decode=open_to_me, stream=stream_of(Network()), outputs=("cls",))

    assert list(found().failed) == names[1:]
    denied.clear()
    assert found().names == names


def test_memory_stays_flat_over_thousands_of_images(tmp_path: Path) -> None:
    program = """
import resource, sys, numpy as np
from pathlib import Path
from saccade.validate.features import extract
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def stream(batches):
    for images in batches:
        yield {"tokens": np.zeros((len(images), 256, 16), np.float32)}
def run(count):
    extract([Path(f"{i}.png") for i in range(count)], Path(sys.argv[1]), {},
            decode=lambda path: np.zeros((8, 8, 3), np.uint8), stream=stream, outputs=("tokens",), batch=16)
run(500); first = peak(); run(5000); print(peak() - first)
"""
    grown = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 8 << 10, "KiB over 82 MB of rows"
