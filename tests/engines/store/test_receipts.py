"""A receipt that was edited, damaged or is another machine's is refused or passed over."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from kept_engines import ONNXRUNTIME, OPENVINO, edit_receipt, engines_in, ensure, load

import saccade
from saccade import Bundle, SaccadeError
from saccade.engines import store
from saccade.engines.store import RECEIPT, key_of

EDITS: dict[str, tuple[Callable[[dict], object], str]] = {
    "condition": (lambda receipt: receipt["conditions"].update(version="0"), "is not this engine's receipt"),
    "key": (lambda receipt: receipt.update(key="0" * 16), "is not this engine's receipt"),
    "precision": (lambda receipt: receipt.update(precision="int8"), "contradicts itself, so somebody changed it"),
    "engine": (lambda receipt: receipt.update(engine="onnxruntime"), "contradicts itself"),
    "hash left out": (lambda receipt: receipt["sha256"].pop("selector.blob"), "contradicts itself"),
    "another role": (lambda receipt: receipt["files"].update(head="selector.blob"), "contradicts itself"),
    "no files": (lambda receipt: receipt.update(files={}, sha256={}), "holds no selector and no extractor; delete it"),
    "field missing": (lambda receipt: receipt.pop("realised"), "Object missing required field `realised`"),
    "field unknown": (lambda receipt: receipt.update(surprise=1), "Object contains unknown field `surprise`"),
    "file elsewhere": (lambda receipt: receipt["files"].update(selector="../selector.onnx"), "matching regex"),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_receipt_is_refused(bundle: Bundle, built: Path, case: str) -> None:
    edit, message = EDITS[case]
    edit_receipt(built, edit)
    with pytest.raises(SaccadeError, match=message) as error:
        load(bundle)
    assert str(built) in str(error.value)
    assert "build again" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (1 << 20) + b"{}"])
def test_a_receipt_that_is_none_is_refused(bundle: Bundle, built: Path, content: bytes) -> None:
    (built / RECEIPT).write_bytes(content)
    with pytest.raises(SaccadeError, match=r"receipt\.json.*; delete .* and build again"):
        load(bundle)


def test_an_engine_without_its_receipt_is_refused(bundle: Bundle, built: Path) -> None:
    (built / RECEIPT).unlink()
    with pytest.raises(SaccadeError, match=r"receipt\.json is missing; delete .* and build again"):
        load(bundle)
    (built / RECEIPT).mkdir()
    with pytest.raises(SaccadeError, match=r"receipt\.json: not a receipt; delete"):
        load(bundle)


def test_unreadable_engines_are_passed_over_when_others_are_listed(bundle: Bundle, built: Path) -> None:
    ensure(bundle, ONNXRUNTIME)
    (built / RECEIPT).write_text("{")
    assert [receipt.engine for _, receipt in store.receipts(bundle)] == ["onnxruntime"]


def elsewhere(bundle: Bundle, built: Path) -> Path:
    """Turn an engine into one that another CPU built, receipt and name in agreement, and return its folder."""
    conditions = store.conditions(bundle, OPENVINO) | {"cpu": "Another CPU"}
    edit_receipt(built, lambda receipt: receipt.update(conditions=conditions, key=key_of(conditions)))
    return built.rename(built.with_name(f"openvino-fp32-{key_of(conditions)}"))


def test_an_engine_for_other_hardware_is_not_used_but_kept(bundle: Bundle, built: Path) -> None:
    foreign = elsewhere(bundle, built)
    notes: list[str] = []
    with saccade.load(bundle, note=notes.append) as pipe:
        assert pipe.receipt.conditions["cpu"] != "Another CPU"
    assert len(notes) == 1
    assert "cpu Another CPU -> " in notes[0]
    assert engines_in(bundle) == sorted([foreign.name, built.name])


def test_an_engine_for_other_hardware_under_our_name_is_refused(bundle: Bundle, built: Path) -> None:
    elsewhere(bundle, built).rename(built)
    with pytest.raises(SaccadeError, match="is not this engine's receipt"):
        load(bundle)


def test_a_receipt_whose_audit_is_no_audit_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder, receipt = store.ensure(bundle, OPENVINO, lambda phase: None, lambda line: None)
    copy = Path(shutil.copytree(folder, tmp_path / folder.name))
    changed = msgspec.structs.replace(receipt, audit={"selector": {"kernels": "many"}})
    (copy / store.RECEIPT).write_bytes(msgspec.json.encode(changed))
    with pytest.raises(SaccadeError, match=r"receipt\.json: .*; delete .* and build again"):
        store.read_receipt(copy)
