"""The C library reads bundles as Python does: it takes and refuses the same, in one line that names the file.

Where it differs, it does so on purpose: `golden`, `provenance` and `parity` are not its business, an array is read only as
NumPy writes it, and numbers have to fit into 64 bits. Each difference is a test below.
"""
from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from binding import Library, Status
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mutations import NOT_READ, mutated
from refusals import c_refuses, has_deliberate_difference, python_refuses, write

FUZZ = settings(max_examples=1500, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def manifest(exported: Path) -> dict[str, Any]:
    """The exported manifest as Python data. Copy it before changing it."""
    found: dict[str, Any] = json.loads((exported / "bundle.json").read_text())
    return found


# ---- bundle.json, changed at random


@FUZZ
@given(data=st.data())
def test_a_changed_manifest_is_taken_or_refused_by_both(
    library: Library, folder: Path, manifest: dict[str, Any], data: st.DataObject
) -> None:
    document = copy.deepcopy(manifest)
    for _ in range(data.draw(st.integers(1, 2))):
        mutated(data, document)
    assume(not has_deliberate_difference(document))
    write(folder, json.dumps(document, ensure_ascii=data.draw(st.booleans())).encode())
    python, c = python_refuses(folder), c_refuses(library, folder)
    assert (python is None) == (c is None), (python, c)
    if c is not None and c.status != Status.NOT_FOUND:
        assert c.status in (Status.INVALID_BUNDLE, Status.UNSUPPORTED)


@settings(max_examples=600, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_bytes_changed_anywhere_are_taken_or_refused_by_both(
    library: Library, folder: Path, manifest: dict[str, Any], data: st.DataObject
) -> None:
    content = bytearray(json.dumps({name: value for name, value in manifest.items() if name not in NOT_READ}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        width = data.draw(st.integers(0, 3))
        telling = st.sampled_from([b'"', b"{", b",", b"\\u", b"e9"])
        content[place : place + width] = data.draw(st.binary(max_size=3) | telling)
    write(folder, bytes(content))
    python, c = python_refuses(folder), c_refuses(library, folder)
    assert (python is None) == (c is None), (python, c)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"null", b"[]", b"{}", b'{"format": 1', b'{"format": 1e999}', b'{"format": NaN}',
     b'{"format": 1} more', b'{"format": 1, "task": "\xff\xfe"}', b'{"format": 1, "\xff": 1}',
     '{"format": 1}'.encode("utf-16"),
     b'{"format": 1, "task": ' + b"[" * 200_000, b'{"format": 1, "model": ' + b'{"a":' * 100_000,
     b'{"format": 1, "model": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", b'{"format": "1"}', b'{"format": 1.0}',
     b'{"format": 2, "news": []}', b'{"format": 0}', b'{"format": 1000000000000000000000000000000}',
     b'{"format": -9999999999999999999}',
     b'{"format": 1, "task": "\\ud800"}', b'{"format": 1,}', b'{"format": 01}', b"{'format': 1}", b"/**/{}"],
)  # fmt: skip
def test_what_is_no_manifest_is_refused_by_both(library: Library, folder: Path, content: bytes) -> None:
    write(folder, content)
    assert python_refuses(folder) is not None
    assert c_refuses(library, folder) is not None


def test_a_mark_of_byte_order_is_refused_by_both(library: Library, folder: Path, manifest: dict[str, Any]) -> None:
    write(folder, b"\xef\xbb\xbf" + json.dumps(manifest).encode())
    assert python_refuses(folder) is not None
    assert c_refuses(library, folder) is not None


@pytest.mark.parametrize("name", ["selector.xml", "selector.ort", "onnx", "selector.onnx.bin"])
def test_a_graph_that_is_not_called_onnx_is_refused_by_both(
    library: Library, folder: Path, manifest: dict[str, Any], name: str
) -> None:
    write(folder, json.loads(json.dumps(manifest).replace("selector.onnx", name)))
    assert "not a file that ends in .onnx" in str(python_refuses(folder))
    assert "'file' must end in .onnx; export the bundle again" in str(c_refuses(library, folder))


@pytest.mark.parametrize(("version", "remedy"), [(2, "upgrade libsaccade"), (0, "export the bundle again")])
def test_another_format_is_named_before_its_fields(library: Library, folder: Path, version: int, remedy: str) -> None:
    write(folder, {"format": version, "shape_of_things_to_come": []})
    refused = c_refuses(library, folder)
    assert refused is not None
    assert refused.status == Status.UNSUPPORTED
    assert str(refused) == f"{folder}/bundle.json: bundle format {version}, but this library reads format 1; {remedy}"


@pytest.mark.parametrize(("field", "value", "words"), [
    ("family", "mo\nre\0", r'family "mo\x0are\x00" is not one this library runs; use'),
    ("family", "ü" * 5000, r'family "' + r"\xc3\xbc" * 20),
    ("a\u2028b", 1, r"unknown field 'a\xe2\x80\xa8b'; export the bundle again"),
])  # fmt: skip
def test_what_is_quoted_from_a_file_is_printable_and_short(
    library: Library, folder: Path, manifest: dict[str, Any], field: str, value: object, words: str
) -> None:
    write(folder, manifest | {"model": manifest["model"] | {field: value}})
    refused = c_refuses(library, folder)
    assert words in str(refused)


# ---- where both differ on purpose


@pytest.mark.parametrize(("field", "value"), [
    ("golden", {"file": "../golden.npz", "sha256": ""}), ("golden", 1), ("provenance", []), ("parity", {}), ("parity", [1]),
])  # fmt: skip
def test_what_a_run_does_not_need_is_not_read_by_c(
    library: Library, folder: Path, manifest: dict[str, Any], field: str, value: object
) -> None:
    write(folder, manifest | {field: value})
    assert python_refuses(folder) is not None
    assert c_refuses(library, folder) is None


def test_brackets_too_deep_are_refused_by_both(library: Library, folder: Path, manifest: dict[str, Any]) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    write(folder, json.dumps(manifest | {"provenance": {"deep": 0}}).replace('"deep": 0', f'"deep": {deep}').encode())
    assert "recursion" in str(python_refuses(folder))
    assert "not a JSON object" in str(c_refuses(library, folder))


def test_k_has_64_bits_in_c(library: Library, folder: Path, manifest: dict[str, Any]) -> None:
    write(folder, manifest | {"defaults": {"size": manifest["defaults"]["size"], "k": 2**63}})
    assert python_refuses(folder) is None
    assert "'k' must be a whole number" in str(c_refuses(library, folder))


def test_of_a_tensor_named_twice_both_take_the_last(library: Library, folder: Path, manifest: dict[str, Any]) -> None:
    document = copy.deepcopy(manifest)
    inputs = document["graphs"]["selector"]["fp32"]["inputs"]
    inputs.insert(0, inputs[0] | {"shape": ["batch", 3, 7, 7]})
    write(folder, document)
    assert python_refuses(folder) is None
    assert c_refuses(library, folder) is None


def test_of_a_field_given_twice_c_checks_the_last(library: Library, folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest)
    write(folder, text.replace('"task":', '"task": 1, "task":').encode())
    assert python_refuses(folder) is not None
    assert c_refuses(library, folder) is None
    write(folder, text.replace('"task":', '"task": "features", "task":').encode())
    assert python_refuses(folder) is None
    assert c_refuses(library, folder) is None


# ---- positions.npy


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def with_header(text: str, array: np.ndarray) -> bytes:
    header = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + array.tobytes()


def give_positions(folder: Path, content: bytes) -> None:
    """Write the position table, and its hash where bundle.json has it, so that it is read at all."""
    (folder / "positions.npy").write_bytes(content)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["positions"]["sha256"] = hashlib.sha256(content).hexdigest()
    write(folder, manifest)


PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': (9, 9, 128), }"
TABLE = np.arange(9 * 9 * 128, dtype=np.float32).reshape(9, 9, 128)
POSITIONS = {
    "as exported": (npy(TABLE), True, True),
    "version 2": (npy(TABLE, (2, 0)), True, True),
    "version 3": (npy(TABLE, (3, 0)), True, True),
    "a header by hand": (with_header(PLAIN, TABLE), True, True),
    "cut short": (npy(TABLE)[:-1], False, False),
    "a header alone": (npy(TABLE)[:128], False, False),
    "half a header": (npy(TABLE)[:64], False, False),
    "nothing": (b"", False, False),
    "another type": (npy(TABLE.astype(np.float64)), False, False),
    "half as wide": (npy(TABLE.astype(np.float16)), False, False),
    "big-endian": (npy(TABLE.astype(">f4")), False, False),
    "integers": (npy(TABLE.astype(np.int32)), False, False),
    "another shape": (npy(TABLE.reshape(81, 128)), False, False),
    "another grid": (npy(TABLE.reshape(27, 3, 128)), False, False),
    "one number": (npy(np.float32(1)), False, False),
    "objects": (npy(np.array([{}, []], dtype=object)), False, False),
    "a record": (npy(np.zeros(9, [("x", "<f4")])), False, False),
    "an archive": (b"PK\x03\x04" + bytes(1000), False, False),
    "a huge header": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(1000), False, False),
    "version 9": (npy(TABLE).replace(b"NUMPY\x01", b"NUMPY\x09"), False, False),
    "version 1.1": (npy(TABLE).replace(b"NUMPY\x01\x00", b"NUMPY\x01\x01"), False, False),
    "more cells than bytes": (npy(TABLE).replace(b"(9, 9, 128)", b"(9, 9, 129)"), False, False),
    "fewer": (npy(TABLE).replace(b"(9, 9, 128)", b"(9, 9, 127)"), False, False),
    "a shape that overflows": (with_header(PLAIN.replace("9, 9, 128", "4294967296, 4294967296, 4"), TABLE), False, False),
    "a shape of 65 bits": (with_header(PLAIN.replace("9, 9,", "9, 36893488147419103241,"), TABLE), False, False),
    "no extent": (with_header(PLAIN.replace("9, 9,", "9, 0,"), TABLE), False, False),
    "no comma": (with_header(PLAIN.replace("9, 9,", "9 9,"), TABLE), False, False),
    "leading zeros": (with_header(PLAIN.replace("9, 9,", "9, 09,"), TABLE), False, False),
    "a negative extent": (with_header(PLAIN.replace("9, 9,", "-9, -9,"), TABLE), False, False),
    "code": (with_header("__import__('os').abort()", TABLE), False, False),
    "1000 brackets": (with_header("(" * 1000, TABLE), False, False),
    # C takes only what NumPy writes for a plain row-major array.
    "column-major": (npy(np.asfortranarray(TABLE)), True, False),
    "keys in another order": (
        with_header("{'shape': (9, 9, 128), 'descr': '<f4', 'fortran_order': False}", TABLE), True, False
    ),
    "something behind it": (npy(TABLE) + b"more", True, False),
}  # fmt: skip


@pytest.mark.parametrize("name", POSITIONS)
def test_a_position_table_is_taken_or_refused(library: Library, folder: Path, name: str) -> None:
    content, python_takes, c_takes = POSITIONS[name]
    give_positions(folder, content)
    assert (python_refuses(folder) is None) == python_takes
    refused = c_refuses(library, folder)
    assert (refused is None) == c_takes, refused
    if refused is not None:
        assert refused.status == Status.INVALID_BUNDLE
        assert str(refused).startswith(f"{folder}/positions.npy: ")


@settings(max_examples=600, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_c_takes_as_a_position_table_python_takes_too(library: Library, folder: Path, data: st.DataObject) -> None:
    content = bytearray(npy(TABLE))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 90) | st.integers(0, 127))
        width = data.draw(st.integers(0, 2))
        telling = st.sampled_from([b" ", b"1", b",", b"9", b"L", b"'"])
        content[place : place + width] = data.draw(st.binary(max_size=2) | telling)
    give_positions(folder, bytes(content))
    if c_refuses(library, folder) is None:
        assert python_refuses(folder) is None


def test_a_table_whose_hash_is_another_is_refused_by_both(library: Library, folder: Path) -> None:
    with (folder / "positions.npy").open("ab") as file:
        file.write(b"\0")
    assert "was changed or cut short: its SHA-256 is not the one in" in str(python_refuses(folder))
    refused = c_refuses(library, folder)
    assert f"{folder}/positions.npy was changed or cut short: its SHA-256 is not the one in bundle.json" in str(refused)


# ---- files that are not what they should be


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


DAMAGES = {
    "missing": (Path.unlink, Status.NOT_FOUND, "is missing; "),
    "a dangling link": (replaced(lambda path: path.symlink_to("nowhere")), Status.NOT_FOUND, "is missing; "),
    "a link to itself": (replaced(lambda path: path.symlink_to(path.name)), Status.IO_ERROR, "cannot read"),
    "a folder": (replaced(Path.mkdir), Status.INVALID_BUNDLE, "is not a regular file; "),
    "a pipe": (replaced(os.mkfifo), Status.INVALID_BUNDLE, "is not a regular file; "),
    "a device": (replaced(lambda path: path.symlink_to("/dev/zero")), Status.INVALID_BUNDLE, "is not a regular file; "),
    "empty": (lambda path: os.truncate(path, 0), Status.INVALID_BUNDLE, ""),
    "sparse and huge": (lambda path: os.truncate(path, 1 << 33), Status.INVALID_BUNDLE, ": larger than "),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["bundle.json", "positions.npy"])
def test_a_file_that_is_none_is_refused_by_both(library: Library, folder: Path, name: str, damage: str) -> None:
    do, status, words = DAMAGES[damage]
    do(folder / name)
    refused = c_refuses(library, folder)
    assert refused is not None
    assert refused.status == status
    assert f"{folder / name}" in str(refused)
    assert words in str(refused)
    if damage != "sparse and huge" or name == "bundle.json":  # Python hashes a table of 8 GiB before it is refused
        assert python_refuses(folder) is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads what nobody may")
@pytest.mark.parametrize("name", ["bundle.json", "positions.npy"])
def test_a_file_that_may_not_be_read_is_refused_by_both(library: Library, folder: Path, name: str) -> None:
    (folder / name).chmod(0)
    refused = c_refuses(library, folder)
    assert refused is not None
    assert refused.status == Status.IO_ERROR
    assert f"cannot read {folder / name}: Permission denied; " in str(refused)
    assert python_refuses(folder) is not None


@pytest.mark.parametrize("name", ["nowhere", "bundle.json", "bundle.json/inside"])
def test_a_path_that_is_no_folder_is_no_bundle(library: Library, folder: Path, name: str) -> None:
    refused = c_refuses(library, folder / name)
    assert refused is not None
    assert refused.status == Status.NOT_FOUND
    assert "is not a bundle folder; make one with 'saccade export CHECKPOINT -o FOLDER'" in str(refused)
    assert "is not a bundle folder" in str(python_refuses(folder / name))


def test_links_to_files_and_folders_are_followed_by_both(library: Library, folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "positions.npy", tmp_path / "elsewhere")
    (folder / "positions.npy").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "lïnk").symlink_to(folder)
    for path in (folder, tmp_path / "lïnk"):
        assert python_refuses(path) is None
        assert c_refuses(library, path) is None
