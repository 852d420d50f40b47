"""A thorough build mends a damaged engine; a file that is not what its receipt says is refused."""
from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from kept_engines import OPENVINO, edit_receipt, engines_in, ensure, load

from saccade import Bundle, SaccadeError
from saccade.bundle import sha256_of_file
from saccade.engines import store
from saccade.engines.store import RECEIPT


def damage_receipt(folder: Path) -> None:
    (folder / RECEIPT).write_text("{")


def drop_receipt(folder: Path) -> None:
    (folder / RECEIPT).unlink()


def unreadable_receipt(folder: Path) -> None:
    drop_receipt(folder)
    (folder / RECEIPT).mkdir()


def drop_file(folder: Path) -> None:
    (folder / "selector.blob").unlink()


def cut_file(folder: Path) -> None:
    os.truncate(folder / "selector.blob", 100)


def file_for_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def dangling_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def link_outside(folder: Path) -> None:
    place = folder.parents[2] / "elsewhere"
    folder.rename(place)
    folder.symlink_to(place)
    damage_receipt(place)


DAMAGES: dict[Callable[[Path], None], str] = {
    damage_receipt: "Input data was truncated",
    drop_receipt: "receipt.json is missing",
    unreadable_receipt: "receipt.json: not a receipt",
    drop_file: "selector.blob is missing, but",
    cut_file: "selector.blob was changed or cut short",
    file_for_folder: "receipt.json: Not a directory",
    dangling_link: "receipt.json is missing",
    link_outside: "Input data was truncated",
}


@pytest.mark.parametrize("spoil", DAMAGES, ids=lambda spoil: spoil.__name__)
def test_a_thorough_build_mends_a_damaged_engine_and_says_why(
    bundle: Bundle, built: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(built)
    around = sorted(path for path in bundle.path.parent.rglob("*") if bundle.engines_path not in path.parents)
    with pytest.raises(SaccadeError, match="build again"):
        load(bundle)
    notes: list[str] = []
    assert ensure(bundle, OPENVINO, notes.append, thorough=True) == built
    (note,) = notes
    assert DAMAGES[spoil] in note
    assert note.endswith(": building it")
    load(bundle, build=False).close()
    assert engines_in(bundle) == [built.name]
    assert not built.is_symlink()
    assert around == sorted(path for path in bundle.path.parent.rglob("*") if bundle.engines_path not in path.parents)


@pytest.mark.parametrize("kind", ["a file", "a dangling link"])
def test_what_stands_where_engines_go_is_left_and_named(bundle: Bundle, kind: str) -> None:
    if kind == "a file":
        bundle.engines_path.write_text("mine")
    else:
        bundle.engines_path.symlink_to("nowhere")
    message = f"^cannot write {bundle.engines_path}: something else stands there; move it away first$"
    with pytest.raises(SaccadeError, match=message):
        ensure(bundle, OPENVINO, thorough=True)
    assert bundle.engines_path.is_symlink() or bundle.engines_path.read_text() == "mine"


def test_a_thorough_build_keeps_what_is_whole(bundle: Bundle, built: Path) -> None:
    before = built.stat().st_ino
    assert ensure(bundle, OPENVINO, pytest.fail, thorough=True) == built
    assert built.stat().st_ino == before


# ---- what is refused


def test_an_edited_blob_is_refused_by_its_hash(bundle: Bundle, built: Path) -> None:
    blob = built / "extractor.blob"
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    with pytest.raises(SaccadeError, match=r"extractor\.blob was changed or cut short: .*; delete .* and build again"):
        load(bundle)


def test_a_truncated_and_a_missing_blob_are_refused(bundle: Bundle, built: Path) -> None:
    os.truncate(built / "selector.blob", 1000)
    with pytest.raises(SaccadeError, match=r"selector\.blob was changed or cut short"):
        load(bundle)
    (built / "selector.blob").unlink()
    with pytest.raises(SaccadeError, match=r"selector\.blob is missing, but .*receipt\.json names it; delete"):
        load(bundle)


def test_a_blob_that_only_looks_right_is_refused_by_the_engine(bundle: Bundle, built: Path) -> None:
    """With a hash to fit it is OpenVINO that refuses, still in one line."""
    (built / "selector.blob").write_bytes(b"not a blob" * 100)
    edit_receipt(built, lambda receipt: receipt["sha256"].update({"selector.blob": sha256_of_file(built / "selector.blob")}))
    with pytest.raises(SaccadeError, match=r"openvino cannot import .*selector\.blob: .*; delete .* and build again"):
        load(bundle)


def test_a_changed_graph_file_is_refused_before_its_engine_is_used(bundle: Bundle, built: Path) -> None:
    os.truncate(bundle.path / "selector.onnx", 100)
    with pytest.raises(SaccadeError, match=r"selector\.onnx was changed or cut short: .*export the bundle again"):
        load(bundle)


def test_an_unknown_engine_and_a_precision_without_graphs_are_refused(bundle: Bundle) -> None:
    with pytest.raises(SaccadeError, match="unknown engine 'tvm'; choose from: openvino, onnxruntime, tensorrt"):
        store.backend("tvm")
    remedy = r"no int8 graphs \(it has: fp32\); make them with 'saccade convert .* --precision int8 --calibration IMAGES'"
    with pytest.raises(SaccadeError, match=remedy):
        ensure(bundle, msgspec.structs.replace(OPENVINO, precision="int8"))
