"""The bundle's reader refuses, in one line, whatever the exporter would not have written."""
from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from saccade import bundle as bundle_module
from saccade.bundle import (
    FORMAT_VERSION,
    MAX_MANIFEST_BYTES,
    Bundle,
    check_hash,
    read_bundle,
    read_manifest,
    read_npy,
    sha256_of_file,
    write_manifest,
)
from saccade.errors import SaccadeError

FUZZ = settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
DIM, GRID = 64, (3, 3)


def tensor(name: str, *shape: int | str) -> dict[str, Any]:
    return {"name": name, "dtype": "float32", "shape": list(shape)}


GRAPHS = {
    "selector": (
        [tensor("lowres", "batch", 3, 154, 154)],
        [tensor("score_map", "batch", 44, 44), tensor("prefix", "batch", 5, DIM)],
    ),
    "extractor": (
        [tensor("patches", "batch", "k", 588), tensor("positions", "batch", "k", DIM), tensor("prefix", "batch", 5, DIM)],
        [tensor("cls", "batch", DIM), tensor("tokens", "batch", "k", DIM)],
    ),
}
MODEL = {
    "family": "lookwhere", "dim": DIM, "heads": 1, "depth": 1, "selector_depth": 1, "ffn": "gelu", "hidden": 256,
    "map_hidden": 256, "prefix": 5, "patch": 14, "selector_size": 154, "map_size": 44, "base_grid": list(GRID),
}  # fmt: skip


def written(folder: Path) -> Path:
    """Write a bundle by hand, with stand-ins for graphs, and return its folder."""
    folder.mkdir()
    np.save(folder / "positions.npy", np.arange(GRID[0] * GRID[1] * DIM, dtype=np.float32).reshape(*GRID, DIM))
    graphs = {}
    for role, (inputs, outputs) in GRAPHS.items():
        (folder / f"{role}.onnx").write_bytes(f"the {role}".encode() * 100)
        entry = {"file": f"{role}.onnx", "sha256": digest(folder / f"{role}.onnx"), "inputs": inputs, "outputs": outputs}
        graphs[role] = {"fp32": entry}
    manifest = {
        "format": FORMAT_VERSION, "model": MODEL, "task": "features", "defaults": {"size": [42, 42], "k": 2},
        "image": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}, "graphs": graphs,
        "positions": {"file": "positions.npy", "sha256": digest(folder / "positions.npy")},
        "provenance": {"tools": {"torch": "2.13.0"}}, "parity": [{"passed": True}],
    }  # fmt: skip
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "bundle")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The hand-written manifest as Python data. Copy it before changing it."""
    found: dict[str, Any] = json.loads((written(tmp_path_factory.mktemp("hand") / "bundle") / "bundle.json").read_text())
    return found


def changed(manifest: dict[str, Any], dotted: str, value: object) -> dict[str, Any]:
    """Return a copy with one field set; numbers in the path are places in a list, `...` as value deletes."""
    data = copy.deepcopy(manifest)
    node: Any = data
    *parents, last = [int(part) if part.isdigit() else part for part in dotted.split(".")]
    for part in parents:
        node = node[part]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return data


def refusal(folder: Path, data: object) -> str:
    """Write `data` as bundle.json and return the one line with which it is refused."""
    path = folder / "bundle.json"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    with pytest.raises(SaccadeError) as caught:
        read_bundle(folder)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.endswith(("export the bundle again", "export again", "upgrade saccade"))
    return message


def test_a_hand_written_bundle_reads(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert (bundle.model.dim, bundle.manifest.defaults.k, bundle.model.classes) == (DIM, 2, 0)
    assert bundle.manifest.graphs["extractor"]["fp32"].inputs[0].shape == ("batch", "k", 588)
    np.testing.assert_array_equal(bundle.positions(), np.arange(576, dtype=np.float32).reshape(3, 3, 64))


@pytest.mark.parametrize("kind", ["dinov2", "franca", "classify", "segment"])
def test_an_exported_bundle_reads_and_names_its_files_with_their_hashes(
    small_bundle: Callable[[str], Path], kind: str
) -> None:
    bundle = read_bundle(small_bundle(kind))
    entries = [graphs["fp32"] for graphs in bundle.manifest.graphs.values()]
    entries += [entry for entry in (bundle.manifest.positions, bundle.manifest.golden) if entry]
    assert {entry.file: entry.sha256 for entry in entries} == {
        path.name: digest(path) for path in bundle.path.iterdir() if path.is_file() and path.name != "bundle.json"
    }


def test_writing_a_manifest_and_reading_it_gives_the_same(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder / "bundle.json")
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path / "bundle.json") == manifest


def test_writing_a_manifest_twice_gives_the_same_bytes(folder: Path) -> None:
    manifest = read_manifest(folder / "bundle.json")
    write_manifest(folder, manifest)
    first = (folder / "bundle.json").read_bytes()
    write_manifest(folder, manifest)
    assert (folder / "bundle.json").read_bytes() == first
    assert first.startswith(b'{\n  "format": 1,\n')


def test_a_failed_write_of_the_manifest_keeps_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "bundle.json").read_bytes()

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(folder, read_manifest(folder / "bundle.json"))
    assert (folder / "bundle.json").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_renamed_bundle_reads_alike(folder: Path, tmp_path: Path) -> None:
    before = read_bundle(folder).manifest
    shutil.move(folder, tmp_path / "lookwhere_franca_int8")
    assert read_bundle(tmp_path / "lookwhere_franca_int8").manifest == before


@pytest.mark.parametrize(("version", "remedy"), [(2, "upgrade saccade"), (10**30, "upgrade saccade")])
def test_a_newer_format_asks_for_a_newer_saccade(folder: Path, version: int, remedy: str) -> None:
    message = refusal(folder, {"format": version, "shape_of_things_to_come": []})
    assert message.endswith(f": bundle format {version}, but this saccade reads format 1; {remedy}")


@pytest.mark.parametrize("version", [0, -1])
def test_an_older_format_asks_for_another_export(folder: Path, manifest: dict[str, Any], version: int) -> None:
    message = refusal(folder, manifest | {"format": version})
    assert message.endswith(f"bundle format {version}, but this saccade reads format 1; export the bundle again")


@pytest.mark.parametrize("version", ["1", 1.5, True, None, [1]])
def test_a_format_that_is_no_number_is_refused(folder: Path, manifest: dict[str, Any], version: object) -> None:
    assert "Expected `int`" in refusal(folder, manifest | {"format": version})


@pytest.mark.parametrize(
    "field",
    ["format", "model", "task", "defaults", "image", "positions", "graphs", "model.family", "model.dim", "model.base_grid",
     "defaults.size", "image.mean", "positions.file", "positions.sha256", "graphs.selector.fp32.file",
     "graphs.selector.fp32.sha256", "graphs.extractor.fp32.outputs", "graphs.extractor.fp32.inputs.0.dtype"],
)  # fmt: skip
def test_a_missing_field_is_named(folder: Path, manifest: dict[str, Any], field: str) -> None:
    message = refusal(folder, changed(manifest, field, ...))
    assert f"missing required field `{field.rsplit('.', 1)[-1]}`" in message


@pytest.mark.parametrize(
    "place", ["", "model", "defaults", "image", "positions", "graphs.selector.fp32", "graphs.selector.fp32.inputs.0"]
)
def test_an_unknown_field_is_named(folder: Path, manifest: dict[str, Any], place: str) -> None:
    message = refusal(folder, changed(manifest, f"{place}.surprise".lstrip("."), 1))
    assert "contains unknown field `surprise`" in message


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model.dim", "64", "Expected `int`, got `str`"),
        ("model.dim", 64.5, "Expected `int`, got `float`"),
        ("model.dim", 0, "Expected `int` >= 1"),
        ("model.dim", -64, "Expected `int` >= 1"),
        ("model.dim", 1 << 17, "Expected `int` <= 65536"),
        ("model.dim", 1 << 70, "<= 65536"),
        ("model.family", "resnet", "Invalid value 'resnet' - at `$.model.family`"),
        ("model.ffn", "relu", "Invalid enum value 'relu'"),
        ("model.prefix", 0, "Expected `int` >= 1"),
        ("model.patch", 1000, "Expected `int` <= 64"),
        ("model.base_grid", [3], "Expected `array` of length 2"),
        ("model.base_grid", [3, 0], "Expected `int` >= 1"),
        ("model.classes", -1, "Expected `int` >= 0"),
        ("task", "detect", "Invalid enum value 'detect'"),
        ("defaults.size", 42, "Expected `array`, got `int`"),
        ("defaults.k", 0, "Expected `int` >= 1"),
        ("defaults.k_ratio", 1.5, "Expected `float` <= 1.0"),
        ("image.mean", [0.5, 0.5], "Expected `array` of length 3"),
        ("image.mean", [0.5, 0.5, None], "Expected `float`, got `null`"),
        ("image.color", "BGR", "Invalid enum value 'BGR'"),
        ("graphs", [], "Expected `object`, got `array`"),
        ("graphs.selector", {"fp64": {}}, "Invalid enum value 'fp64'"),
        ("graphs.selector.fp32.inputs", None, "Expected `array`, got `null`"),
        ("graphs.selector.fp32.inputs.0.shape", [None], "Expected `int | str`"),
        ("graphs.selector.fp32.inputs.0.shape", [0, 3], "Expected `int` >= 1"),
        ("graphs.selector.fp32.inputs.0.dtype", "string", "Invalid enum value 'string'"),
        ("positions.sha256", "A" * 64, "regex"),
        ("positions.sha256", "a" * 63, "regex"),
        ("parity", {}, "Expected `array`, got `object`"),
        ("provenance", [], "Expected `object`, got `array`"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_place(
    folder: Path, manifest: dict[str, Any], field: str, value: object, words: str
) -> None:
    message = refusal(folder, changed(manifest, field, value))
    assert words in message
    assert f"`$.{re.sub(r'[.]?[0-9]+', '', field).split('.')[0]}" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.heads": 2}, "dim 64 is not heads x 64"),
        ({"model.selector_size": 155}, "selector_size 155 is no multiple of the patch"),
        ({"defaults.size": [42, 43]}, "the default size is no multiple of the patch"),
        ({"defaults.k": None}, "defaults need either k or k_ratio"),
        ({"defaults.k_ratio": 0.1}, "defaults need either k or k_ratio"),
        ({"task": "classify"}, "task classify with 0 classes"),
        ({"model.classes": 7}, "task features with 7 classes"),
        ({"image.std": [0.25, 0.0, 0.25]}, "image.std must lie between 0.001 and 1000"),
        ({"graphs.selector.fp32.inputs.0.name": "image"}, "the tensors of the fp32 selector do not fit"),
        ({"graphs.selector.fp32.outputs.1": ...}, "the tensors of the fp32 selector do not fit"),
        ({"graphs.extractor.fp32.outputs.0.name": "logits"}, "the tensors of the fp32 extractor do not fit"),
        ({"graphs.extractor.fp32.inputs.0.shape": ["batch", 9, 588]}, "the tensors of the fp32 extractor do not fit"),
        ({"graphs.extractor.fp32.inputs": []}, "the tensors of the fp32 extractor do not fit"),
        ({"model.map_size": 40}, "the tensors of the fp32 selector do not fit the model's sizes"),
        ({"model.prefix": 1}, "the tensors of the fp32 selector do not fit the model's sizes"),
        ({"graphs.extractor": ...}, "graphs must be ['extractor', 'selector']"),
        ({"graphs.third": {}}, "graphs must be ['extractor', 'selector']"),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    folder: Path, manifest: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    data = manifest
    for field, value in changes.items():
        data = changed(data, field, value)
    assert words in refusal(folder, data)


@pytest.mark.parametrize(
    "name",
    ["../positions.npy", "/etc/passwd", "sub/positions.npy", "..", ".", "", ".pending-1", "sub\\positions.npy",
     "positions.npy\n", "positions.npy\0", "C:positions.npy", "~", "-rf", "engines/", "p" * 129, "pösitions.npy"],
)  # fmt: skip
@pytest.mark.parametrize("field", ["positions.file", "graphs.selector.fp32.file", "golden"])
def test_a_file_name_that_leaves_the_folder_is_refused(
    folder: Path, manifest: dict[str, Any], field: str, name: str
) -> None:
    value = {"file": name, "sha256": "0" * 64} if field == "golden" else name
    message = refusal(folder, changed(manifest, field, value))
    assert "regex" in message
    assert f"at `$.{field.split('.', maxsplit=1)[0]}" in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated"),
        (b"\0" * 100, "malformed"),
        (b"not JSON", "malformed"),
        (b"null", "Expected `object`, got `null`"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `format`"),
        (b'{"format": 1', "truncated"),
        (b'{"format": 1e999}', "out of range"),
        (b'{"format": NaN}', "malformed"),
        (b'{"format": 1} trailing', "malformed"),
        (b'{"format": 1, "task": "\xff\xfe"}', "utf-8"),
        (b'{"format": 1, "\xff": 1}', "utf-8"),
        ('{"format": 1}'.encode("utf-16"), "malformed"),
        (b'{"format": 1, "provenance": ' + b"[" * 200_000, "recursion"),
        (b'{"format": 1, "provenance": ' + b'{"a":' * 100_000, "recursion"),
    ],
)
def test_bytes_that_are_no_json_of_ours_are_refused(folder: Path, data: bytes, words: str) -> None:
    assert words in refusal(folder, data)


def test_every_truncation_of_a_manifest_is_refused(folder: Path) -> None:
    data = (folder / "bundle.json").read_bytes()
    for length in range(0, len(data), 37):
        refusal(folder, data[:length])


def test_a_huge_manifest_is_refused_before_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(folder / "bundle.json", MAX_MANIFEST_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read"))
    with pytest.raises(SaccadeError, match=r"bundle\.json: larger than 4 MiB, so not a manifest; export again"):
        read_bundle(folder)


def test_a_manifest_that_cannot_be_read_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(SaccadeError, match=r"^cannot read .*bundle\.json: Permission denied; export or copy it again$"):
        read_bundle(folder)


def test_a_folder_without_manifest_is_no_bundle(folder: Path) -> None:
    (folder / "bundle.json").unlink()
    with pytest.raises(SaccadeError, match=r"bundle\.json is missing: .* is not a bundle, or its export did not finish"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["bundle.json", "nowhere", "bundle\0"])
def test_a_path_that_is_no_folder_is_no_bundle(folder: Path, name: str) -> None:
    with pytest.raises(SaccadeError, match="is not a bundle folder; make one with 'saccade export CHECKPOINT -o"):
        read_bundle(folder / name)


def test_an_absent_precision_says_which_there_are_and_how_to_make_it(folder: Path) -> None:
    with pytest.raises(SaccadeError) as caught:
        read_bundle(folder).graph("selector", "bf16")
    assert str(caught.value) == (
        f"{folder}: no bf16 graphs (it has: fp32); make them with 'saccade convert {folder} --precision bf16'"
    )


def entry_of(bundle: Bundle, name: str) -> Any:
    return bundle.manifest.positions if name == "positions.npy" else bundle.graph(name.removesuffix(".onnx"), "fp32")


def edit_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["positions.npy", "selector.onnx", "extractor.onnx"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edit_byte, "was changed or cut short: its SHA-256 is not the one in"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "was changed or cut short"),
        (lambda path: path.write_bytes(b""), "was changed or cut short"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "was changed or cut short"),
        (Path.unlink, "is missing, but"),
        (lambda path: (path.unlink(), path.mkdir()), "is missing, but"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "is missing, but"),
    ],
    ids=["edited", "cut", "emptied", "grown", "deleted", "folder", "dangling"],
)
def test_a_damaged_file_is_refused(folder: Path, name: str, damage: Callable[[Path], object], words: str) -> None:
    bundle = read_bundle(folder)
    assert bundle.checked_path(entry_of(bundle, name)) == folder / name
    damage(folder / name)
    with pytest.raises(SaccadeError) as caught:
        bundle.checked_path(entry_of(bundle, name))
    assert str(caught.value).startswith(f"{folder / name} {words}")
    assert str(caught.value).endswith("export the bundle again")
    assert "bundle.json" in str(caught.value)


def test_the_file_hash_is_sha256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 10_000)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(bytes(range(256)) * 10_000).hexdigest()


def test_python_3_10_hashes_in_pieces_to_the_same(tmp_path: Path) -> None:
    data = os.urandom((3 << 20) + 5)
    assert bundle_module._digest(io.BytesIO(data)) == hashlib.sha256(data).hexdigest()


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"^cannot read .*none: No such file or directory; export or copy it again$"):
        sha256_of_file(tmp_path / "none")


def test_the_hash_check_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    check_hash(tmp_path / "file", hashlib.sha256(b"x").hexdigest(), "here", "do this")
    with pytest.raises(SaccadeError, match=r"its SHA-256 is not the one in here; do this$"):
        check_hash(tmp_path / "file", "0" * 64, "here", "do this")


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


TABLE = npy(np.zeros((*GRID, DIM), np.float32))


def with_header(old: bytes, new: bytes) -> bytes:
    """Replace a part of the .npy header, keeping its length."""
    assert old in TABLE[:128]
    wide = old + b" " * (len(new) - len(old))
    return TABLE.replace(wide, new + b" " * (len(wide) - len(new)), 1)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(npy(np.array([{"code": 1}], dtype=object), allow_pickle=True), id="pickled objects"),
        pytest.param(pickle.dumps([1, 2]), id="a pickle"),
        pytest.param(b"", id="empty"),
        pytest.param(b"some text", id="text"),
        pytest.param(TABLE[:20], id="cut header"),
        pytest.param(TABLE[:-4], id="cut data"),
        pytest.param(with_header(b"(3, 3, 64), }", b"(3, 3, 9999999999), }"), id="more than memory"),
        pytest.param(with_header(b"(3, 3, 64)", b"((3, 3, 64"), id="open bracket"),
        pytest.param(with_header(b"(3, 3, 64)", b"'''3, 3, 6"), id="open string"),
        pytest.param(with_header(b"(3, 3, 64)", b"(3, 03, 64"), id="no Python"),
        pytest.param(with_header(b"'<f4'", b"'<z9'"), id="no dtype"),
        pytest.param(with_header(b"'<f4'", b"'|O4'"), id="objects"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="broken zip"),
    ],
)
def test_anything_but_a_plain_array_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "positions.npy"
    path.write_bytes(data)
    with pytest.raises(SaccadeError, match=r"^[^\n]*positions\.npy: not a plain \.npy array [^\n]*export the bundle again$"):
        read_npy(path)


def test_a_collection_of_arrays_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "positions.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(SaccadeError, match=r"positions\.npy: a NpzFile, not a plain \.npy array"):
        read_npy(tmp_path / "positions.npy")


def test_a_table_larger_than_any_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "positions.npy").write_bytes(TABLE)
    os.truncate(tmp_path / "positions.npy", bundle_module.MAX_POSITIONS_BYTES + 1)  # sparse: takes no disk
    with pytest.raises(SaccadeError, match=r"positions\.npy: larger than any position table; export the bundle again"):
        read_npy(tmp_path / "positions.npy")


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (np.zeros((*GRID, DIM), np.float64), r"float64 \(3, 3, 64\)"),
        (np.zeros((9, DIM), np.float32), r"float32 \(9, 64\)"),
        (np.zeros((3, 3, 32), np.float32), r"float32 \(3, 3, 32\)"),
        (np.zeros((*GRID, DIM), ">f4"), r">f4 \(3, 3, 64\)"),
    ],
)
def test_a_table_of_another_kind_than_the_manifest_says_is_refused(
    folder: Path, manifest: dict[str, Any], table: np.ndarray, found: str
) -> None:
    np.save(folder / "positions.npy", table)
    data = changed(manifest, "positions.sha256", digest(folder / "positions.npy"))
    (folder / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(SaccadeError, match=rf"expected float32 \(3, 3, 64\), found {found}; export again"):
        read_bundle(folder).positions()


def test_a_position_table_that_lies_column_by_column_is_handed_out_row_by_row(
    folder: Path, manifest: dict[str, Any]
) -> None:
    table = read_bundle(folder).positions()
    np.save(folder / "positions.npy", np.asfortranarray(table))
    data = changed(manifest, "positions.sha256", digest(folder / "positions.npy"))
    (folder / "bundle.json").write_text(json.dumps(data))
    found = read_bundle(folder).positions()
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, table)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8),
    st.sampled_from(["../x", "fp32", "fp16", "batch", "features", 0, 1, 64, 1 << 16, (1 << 16) + 1, -0.0, 1e308]),
)  # fmt: skip
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def places(node: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path to a value inside the manifest."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, child in children for found in places(child, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, manifest: dict[str, Any]) -> object:
    """The manifest with one to three values replaced, deleted or added anywhere in its tree."""
    root: Any = [copy.deepcopy(manifest)]
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from([path for path in places(root) if path]))
        node = root
        for key in parents:
            node = node[key]
        match draw(st.sampled_from(["replace", "delete", "add"])):
            case "replace":
                node[last] = draw(values)
            case "delete" if len(parents):
                del node[last]
            case "add" if isinstance(node[last], dict):
                node[last][draw(st.text(max_size=5))] = draw(values)
    return root[0] if root else None


def assert_reads_safely_or_is_refused(path: Path) -> None:
    """The reader either raises SaccadeError, or every file it names lies in the folder."""
    try:
        found = read_manifest(path)
    except SaccadeError as error:
        assert "\n" not in str(error)
        return
    entries = [entry for graphs in found.graphs.values() for entry in graphs.values()]
    for entry in [*entries, found.positions, *([found.golden] if found.golden else [])]:
        assert (path.parent / entry.file).parent == path.parent
        assert (path.parent / entry.file).name == entry.file
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


@FUZZ
@given(data=st.data())
def test_a_manifest_changed_anywhere_reads_or_is_refused(tmp_path: Path, manifest: dict[str, Any], data) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(data.draw(mutated(manifest))))
    assert_reads_safely_or_is_refused(path)


@FUZZ
@given(edits=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_manifest_with_bytes_changed_reads_or_is_refused(
    tmp_path: Path, manifest: dict[str, Any], edits: list[tuple[int, int]]
) -> None:
    data = bytearray(json.dumps(manifest).encode())
    for place, value in edits:
        data[place % len(data)] = value
    (tmp_path / "bundle.json").write_bytes(data)
    assert_reads_safely_or_is_refused(tmp_path / "bundle.json")


@FUZZ
@given(data=st.binary(max_size=64))
@example(b"[" * sys.getrecursionlimit() * 10)
def test_bytes_of_any_kind_are_refused_as_a_manifest(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bundle.json").write_bytes(data)
    with pytest.raises(SaccadeError):
        read_manifest(tmp_path / "bundle.json")


@pytest.mark.filterwarnings("ignore")  # NumPy parses a damaged header as Python, which warns of odd escapes
@FUZZ
@given(edits=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_table_with_header_bytes_changed_reads_or_is_refused(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    data = bytearray(TABLE)
    for place, value in edits:
        data[place] = value
    path = tmp_path / "positions.npy"
    path.write_bytes(data)
    try:
        assert isinstance(read_npy(path), np.ndarray)
    except SaccadeError as error:
        assert str(error).endswith("export the bundle again")
