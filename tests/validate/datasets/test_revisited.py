"""The ground truth of revisited Oxford and Paris, read from files like the official ones and from wrong ones."""
from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade.errors import SaccadeError
from saccade.validate.datasets.revisited import read_revisited


def truth() -> dict[str, Any]:
    """Return four images and two queries, as the official file has them: lists in one entry, arrays in the other."""
    return {
        "imlist": ["all_souls_000013", "b", "c", "d"],
        "qimlist": ["all_souls_000001", "q"],
        "gnd": [
            {"bbx": [136.5, 34.1, 648.5, 955.7], "easy": [1], "hard": [], "junk": [0, 3]},
            {"bbx": [0.0, 0.0, 1.0, 1.0], "easy": np.array([2]), "hard": np.array([0]), "junk": np.array([], np.int64)},
        ],
    }


def write(root: Path, content: Any) -> Path:
    (root / "roxford5k/jpg").mkdir(parents=True, exist_ok=True)
    path = root / "roxford5k/gnd_roxford5k.pkl"
    path.write_bytes(pickle.dumps(content, 2))
    return path


def test_files_and_rows_are_those_of_the_ground_truth(tmp_path: Path) -> None:
    write(tmp_path, truth())
    found = read_revisited(tmp_path, "roxford5k")
    assert found.database[0] == tmp_path / "roxford5k/jpg/all_souls_000013.jpg"
    assert [path.name for path in found.queries] == ["all_souls_000001.jpg", "q.jpg"]
    rows = [[getattr(entry, kind).tolist() for kind in ("easy", "hard", "junk")] for entry in found.relevance]
    assert rows == [[[1], [], [0, 3]], [[2], [0], []]]
    assert all(entry.easy.dtype == entry.hard.dtype == entry.junk.dtype == np.int64 for entry in found.relevance)
    assert found.notes == ("2 queries and 4 images; the published roxford5k has 70 and 4993",)


def test_the_published_size_needs_no_note(tmp_path: Path) -> None:
    entry = {"easy": [0], "hard": [], "junk": []}
    names = [str(number) for number in range(4993)]
    write(tmp_path, {"imlist": names, "qimlist": names[:70], "gnd": [entry] * 70})
    assert read_revisited(tmp_path, "roxford5k").notes == ()


def changed(entry: int | None, key: str, value: Any) -> dict[str, Any]:
    content = truth()
    (content if entry is None else content["gnd"][entry])[key] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds a list, not the dict with imlist, qimlist and gnd"),
        (changed(None, "imlist", []), "has no list imlist"),
        (changed(None, "gnd", None), "has no list gnd"),
        (changed(None, "qimlist", ["q"]), "gnd has 2 entries for 1 query"),
        (changed(None, "imlist", ["../../etc/passwd"]), "imlist 0 is '../../etc/passwd', no plain file name"),
        (changed(None, "imlist", ["a", "b\0"]), r"imlist 1 is 'b\x00', no plain file name"),
        (changed(None, "qimlist", ["q", 7]), "qimlist 1 is '7', no plain file name"),
        (changed(None, "gnd", [{"easy": [1]}, 5]), "gnd 0, hard: is no list of rows"),
        (changed(None, "gnd", [5, 5]), "gnd 0 is a int, not a dict with easy, hard and junk"),
        (changed(0, "easy", [4]), "gnd 0, easy: row 4 is out of range; the database has 4 images, so 0..3"),
        (changed(1, "junk", np.array([-1])), "gnd 1, junk: row -1 is out of range"),
        (changed(1, "hard", np.array([0.5])), "gnd 1, hard: rows are float64 [1]; a list of whole numbers is expected"),
        (changed(1, "hard", np.array([[1]])), "gnd 1, hard: rows are int64 [1, 1]"),
        (changed(0, "easy", [[1]]), "gnd 0, easy: is no list of rows"),
        (changed(0, "easy", [1 << 80]), "gnd 0, easy: is no list of rows"),
        (changed(0, "hard", [1]), "gnd 0 names row 1 more than once"),
    ],
)
def test_wrong_ground_truth_is_refused_by_what_is_wrong(content: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    with pytest.raises(SaccadeError) as caught:
        read_revisited(tmp_path, "roxford5k")
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"rparis6k/gnd_rparis6k.pkl: no such file"):
        read_revisited(tmp_path, "rparis6k")
    write(tmp_path, truth()).parent.joinpath("jpg").rmdir()
    with pytest.raises(SaccadeError, match=r"roxford5k/jpg: no such folder; the images are expected there"):
        read_revisited(tmp_path, "roxford5k")
