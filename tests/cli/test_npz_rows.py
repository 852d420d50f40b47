"""Rows appended one after the other are the arrays that NumPy would have written at once."""
from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.cli.npz_rows import NpzRows
from saccade.errors import SaccadeError


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(["<f4", "<i4", "|u1"]),
)
def test_parts_are_read_as_their_concatenation(counts: list[int], row: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 255, (count, *row)).astype(dtype) for count in counts]
    names = np.array([f"image {i}" for i in range(sum(counts))])
    with tempfile.TemporaryDirectory() as folder:
        rows = NpzRows(Path(folder))
        for part in parts:
            rows.append({"plain": part, "turned": np.asfortranarray(part), "one": np.ones(len(part))})
        rows.write(Path(folder) / "out.npz", names)
        with np.load(Path(folder) / "out.npz", allow_pickle=False) as stored:
            assert stored.files == ["images", "plain", "turned", "one"]
            for name in ("plain", "turned"):
                np.testing.assert_array_equal(stored[name], np.concatenate(parts))
                assert stored[name].dtype == np.dtype(dtype)
            assert stored["images"].tolist() == names.tolist()


def test_what_cannot_be_written_names_the_output(tmp_path: Path) -> None:
    rows = NpzRows(tmp_path)
    rows.append({"cls": np.zeros((1, 4), np.float32)})
    with pytest.raises(SaccadeError, match=r"cannot write .*/gone/out.npz: its folder does not exist; create it first"):
        rows.write(tmp_path / "gone/out.npz", np.array(["image"]))
