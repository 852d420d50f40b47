"""Features of files from one source: what is kept is not done again, what is missing is said."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.errors import SaccadeError
from saccade.validate.extraction import Extractor
from saccade.validate.preparation import Squash

SQUASH = Squash((8, 8))


class Bar:
    """A progress bar that remembers how far it came."""

    def __init__(self) -> None:
        self.totals: list[tuple[int, str]] = []
        self.n = 0

    @contextlib.contextmanager
    def __call__(self, total: int, label: str) -> Iterator[Any]:
        self.totals.append((total, label))
        self.n = 0
        yield self

    def update(self, count: int) -> None:
        self.n += count

    def set_postfix_str(self, text: str) -> None:
        self.postfix = text


class Means:
    """A source of mean colours, which may be interrupted after some images."""

    label, k, patch = "means", None, 8
    outputs = ("cls", "tokens")

    def __init__(self, engine: str = "means", images: int = 10**9) -> None:
        self.recipe = {"engine": engine}
        self.images, self.done = images, 0

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        if self.done >= self.images:
            raise KeyboardInterrupt
        self.done += len(images)
        cls = np.array([image.mean(axis=(0, 1)) for image in images], np.float32)
        return {"cls": cls, "tokens": np.repeat(cls[:, None], 4, axis=1)}


class Broken(Means):
    """A source that overflows."""

    label = "engine fp16"

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: array * np.nan for name, array in super().run(images, outputs).items()}


def doubled(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"twice": 2 * outputs["cls"]}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number:02}.png" for number in range(20)]
    for number, path in enumerate(paths):
        Image.new("RGB", (12, 10), (number, 2 * number, 3 * number)).save(path)
    return paths


def extractor(source: Means, tmp_path: Path, **options: Any) -> Extractor:
    return Extractor(source, tmp_path / "features", Bar(), **options)


def test_rows_are_those_of_the_files_and_the_bar_ends_at_the_last(files: list[Path], tmp_path: Path) -> None:
    extract = extractor(Means(), tmp_path, batch=3)
    found = extract(files, SQUASH, ["cls"], label="train")
    np.testing.assert_array_equal(found.arrays["cls"][:, 1], 2 * np.arange(20))
    assert list(found.arrays) == ["cls"]
    assert isinstance(extract.bar, Bar)
    assert (extract.bar.totals, extract.bar.n) == ([(20, "means: train")], 20)
    assert extract.bar.postfix == "0.00 GB on disk"


def test_an_interrupted_extraction_goes_on_where_it_stopped(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extractor(Means(images=8), tmp_path, batch=4)(files, SQUASH, ["cls"])
    second = Means()
    found = extractor(second, tmp_path, batch=4)(files, SQUASH, ["cls"])
    assert second.done == 12
    np.testing.assert_array_equal(found.arrays["cls"][:, 0], np.arange(20))


def test_what_is_kept_is_taken_again_and_anything_else_is_not(files: list[Path], tmp_path: Path) -> None:
    extractor(Means(), tmp_path)(files, SQUASH, ["cls"])
    again = Means()
    extractor(again, tmp_path)(files, SQUASH, ["cls"], label="another label")
    assert again.done == 0
    for source, prepare, outputs in (
        (Means("other"), SQUASH, ["cls"]), (Means(), Squash((8, 16)), ["cls"]), (Means(), SQUASH, ["tokens"]),
    ):  # fmt: skip
        extractor(source, tmp_path)(files, prepare, outputs)
        assert source.done == 20
    Image.new("RGB", (12, 10), "white").save(files[3])
    changed = Means()
    found = extractor(changed, tmp_path)(files, SQUASH, ["cls"])
    assert (changed.done, found.arrays["cls"][3, 0]) == (20, 255)


def test_another_pillow_may_resize_otherwise_so_features_are_extracted_anew(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor(Means(), tmp_path)(files, SQUASH, ["cls"])
    monkeypatch.setattr("PIL.__version__", "0.0.1")
    later = Means()
    extractor(later, tmp_path)(files, SQUASH, ["cls"])
    assert later.done == 20


def test_reduced_outputs_alone_are_kept_and_known_by_the_function(files: list[Path], tmp_path: Path) -> None:
    source = Means()
    found = extractor(source, tmp_path)(files, SQUASH, ["cls"], reduce=doubled)
    assert list(found.arrays) == ["twice"]
    np.testing.assert_array_equal(found.arrays["twice"][:, 0], 2 * np.arange(20))
    extractor(source, tmp_path)(files, SQUASH, ["cls"])
    assert source.done == 40


def test_the_timed_call_is_one_image_of_the_last_extraction(files: list[Path], tmp_path: Path) -> None:
    files[0].write_bytes(b"no picture")
    extract = extractor(Means(), tmp_path)
    assert extract.timed_call is None
    extract(files, SQUASH, ["cls", "tokens"])
    assert extract.timed_call is not None
    timed: Any = extract.timed_call()
    np.testing.assert_array_equal(timed["cls"], [[1, 2, 3]])  # the first that can be read


def test_outputs_that_a_source_lacks_are_named(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"means gives no attention; it gives cls, tokens"):
        extractor(Means(), tmp_path)(files, SQUASH, ["cls", "attention"])


def test_an_engine_whose_numbers_are_none_is_named(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=f"^engine fp16: {files[0]}: its cls holds NaN or infinity"):
        extractor(Broken(), tmp_path)(files, SQUASH, ["cls"])


def test_unreadable_images_have_no_row_and_none_at_all_is_an_error(files: list[Path], tmp_path: Path) -> None:
    files[4].unlink()
    found = extractor(Means(), tmp_path)(files, SQUASH, ["cls"])
    assert found.failed == {str(files[4]): f"{files[4]}: no such image file"}
    assert len(found.names) == len(found.arrays["cls"]) == 19
    with pytest.raises(SaccadeError, match=r"none of 1 image can be read \(.*04.png: no such image file\)"):
        extractor(Means(), tmp_path)([files[4]], SQUASH, ["cls"])


def test_what_no_extraction_could_read_is_remembered(files: list[Path], tmp_path: Path) -> None:
    for path in (files[3], files[12]):
        path.write_bytes(b"no picture")
    extract = extractor(Means(), tmp_path)
    extract(files[:10], SQUASH, ["cls"])
    extract(files[10:], SQUASH, ["cls"])
    assert list(extract.failed) == [str(files[3]), str(files[12])]
