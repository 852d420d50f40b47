"""Pickles of plain data read as pickle reads them; whatever else one holds is refused and never run."""
from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.datasets import plain_pickle
from saccade.validate.datasets.plain_pickle import PlainArray, read_plain_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.lists(inner).map(tuple),
    max_leaves=30,
)


def read(content: bytes, folder: Path) -> Any:
    path = folder / "data.pkl"
    path.write_bytes(content)
    return read_plain_pickle(path)


def refusal(content: bytes, folder: Path) -> str:
    with pytest.raises(SaccadeError) as caught:
        read(content, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder / 'data.pkl'}: ")


@given(PLAIN, st.sampled_from(range(6)))
def test_plain_data_come_back_as_pickle_reads_them(
    tmp_path_factory: pytest.TempPathFactory, data: Any, protocol: int
) -> None:
    assert read(pickle.dumps(data, protocol), tmp_path_factory.getbasetemp()) == data


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<i8", ">i4", "u1", "<f4", "?"])
def test_arrays_of_numbers_keep_values_type_and_order(protocol: int, dtype: str, tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6).reshape(2, 3)).astype(dtype)
    found = read(pickle.dumps({"a": array, "b": [array, array.reshape(-1)[:0]]}, protocol), tmp_path)
    assert isinstance(found["a"], PlainArray)
    assert found["a"].values.dtype == array.dtype
    np.testing.assert_array_equal(found["a"].values, array)
    assert found["b"][0] is found["a"]
    assert found["b"][1].values.shape == (0,)


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_of_numpy_become_numbers(protocol: int, tmp_path: Path) -> None:
    found = read(pickle.dumps([np.float64(2.5), np.int32(-3)], protocol), tmp_path)
    assert found == [2.5, -3]
    assert [type(value) for value in found] == [float, int]


def test_arrays_that_python_2_wrote_as_text_are_read(tmp_path: Path) -> None:
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x01\x00\x00\x00\xff\x00\x00\x00tb."
    )
    np.testing.assert_array_equal(read(content, tmp_path).values, [1, 255])
    np.testing.assert_array_equal(pickle.loads(content, encoding="latin-1"), [1, 255])


class Shell:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


class Evaluated:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1 + 1",)


class Loaded:
    def __reduce__(self) -> tuple[Any, ...]:
        return np.load, ("other.npy",)


@pytest.mark.parametrize(("thing", "name"), [(Shell(), "system"), (Evaluated(), "eval"), (Loaded(), "load")])
@pytest.mark.parametrize("protocol", range(6))
def test_what_a_pickle_wants_to_run_is_named_and_not_run(
    thing: Any, name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal(pickle.dumps([1, thing], protocol), tmp_path)
    assert said.startswith("names '")
    assert f" {name}', which plain data do not need; get the official file" in said
    assert not Path("owned").exists()


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    assert "array of 'O8', and only numbers are read" in refusal(pickle.dumps(np.array([{}, None]), 2), tmp_path)


def test_other_steps_are_refused_by_name(tmp_path: Path) -> None:
    assert refusal(pickle.dumps({1}, 4), tmp_path).startswith("holds the step EMPTY_SET, which plain data do not need")
    assert refusal(b"Pname\n.", tmp_path).startswith("holds the step PERSID")


def test_calls_of_what_is_no_function_are_refused(tmp_path: Path) -> None:
    assert refusal(b"K\x01)R.", tmp_path).startswith("calls a int")
    assert refusal(b"cnumpy\nndarray\n)R.", tmp_path).startswith("calls numpy ndarray, which plain data do not")
    assert refusal(b"](b.", tmp_path).startswith("damaged, or not a pickle")
    assert refusal(b"]}b.", tmp_path).startswith("damaged, or not a pickle")
    assert refusal(b"])b.", tmp_path).startswith("damaged, or not a pickle")
    assert refusal(b"]K\x01\x85b.", tmp_path).startswith("sets the state of a list")


def test_a_key_that_would_exhaust_the_stack_when_hashed_is_refused(tmp_path: Path) -> None:
    assert refusal(b"}" + b")" + b"\x85" * 300_000 + b"Ns.", tmp_path).startswith("holds a dict with a tuple for a key")


def test_bytes_named_many_times_do_not_fill_the_memory(tmp_path: Path) -> None:
    text = b"X" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x00\x85q\x01c_codecs\nencode\nq\x02"
    assert refusal(b"(" + text + b"h\x02h\x01R" * 17 + b"l.", tmp_path).startswith(
        "grows beyond its own size"
    )


def test_a_huge_place_in_the_memory_costs_nothing(tmp_path: Path) -> None:
    assert read(b"K\x07r\xff\xff\xff\x7f.", tmp_path) == 7


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gnd.pkl")
    with pytest.raises(SaccadeError, match=r"gnd.pkl is no file; give the official one"):
        read_plain_pickle(tmp_path / "gnd.pkl")


def test_files_that_are_too_large_missing_or_no_file_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SaccadeError, match=r"none.pkl: no such file"):
        read_plain_pickle(tmp_path / "none.pkl")
    with pytest.raises(SaccadeError, match=r"is no file; give the official one"):
        read_plain_pickle(tmp_path)
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 9)
    with pytest.raises(SaccadeError, match=r"data.pkl has 10 bytes, and at most 9 are read; is it the right file\?"):
        read(bytes(10), tmp_path)


CUT = pickle.dumps({"imlist": ["a", "b"], "gnd": [{"easy": np.arange(3)}]}, 2)


@given(st.integers(0, len(CUT) - 1), st.integers(0, 255))
def test_a_damaged_pickle_is_refused_in_one_line_or_read(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert "get the official file" in refusal(CUT[:place], folder)
    try:
        read(CUT[:place] + bytes([byte]) + CUT[place + 1 :], folder)
    except SaccadeError as error:
        assert "\n" not in str(error)
