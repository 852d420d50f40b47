"""An .npz of as many rows as there are: appended to files as they come, so that memory holds no more than one call's."""
from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from saccade import atomic


class NpzRows:
    """Arrays that grow by rows, each in a file of its own in `folder` until they are written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, np.ndarray] = {}  # an empty array of each name, for its type and the shape of a row
        self._count = 0

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add rows; every call brings the same names, types and shapes of a row, and as many rows of each."""
        for name, array in arrays.items():
            self._rows[name] = array[:0].copy()
            with (self._folder / name).open("ab") as file:
                file.write(np.ascontiguousarray(array).data)
        self._count += len(next(iter(arrays.values())))

    def write(self, path: Path, names: np.ndarray) -> None:
        """Write the .npz with one more array, `images`: the name of each row."""
        with atomic.pending_file(path) as pending, zipfile.ZipFile(pending, "w") as archive:
            with archive.open("images.npy", "w") as member:
                np.lib.format.write_array(member, names, allow_pickle=False)
            for name, empty in self._rows.items():
                shape = (self._count, *empty.shape[1:])
                header = {"descr": np.lib.format.dtype_to_descr(empty.dtype), "fortran_order": False, "shape": shape}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member, (self._folder / name).open("rb") as rows:
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(rows, member)
