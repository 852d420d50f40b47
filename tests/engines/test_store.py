"""Built engines on disk: the key, what makes one stale, what is refused, and what a build leaves where it ends badly."""
from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import onnx
import pytest

import saccade
from saccade import Bundle, SaccadeError, atomic, locks, read_bundle
from saccade.bundle import GraphFile, sha256_of_file, write_manifest
from saccade.cli.main import main
from saccade.contract import LOOKWHERE_ROLES as ROLES
from saccade.engines import openvino as openvino_module
from saccade.engines import store
from saccade.engines.engine import Backend, Built, Capabilities, Engine, EngineRequest, Progress, load_roles
from saccade.engines.openvino import OpenVINOBackend
from saccade.engines.store import RECEIPT, key_of

OPENVINO = EngineRequest(engine="openvino", device="cpu")
ONNXRUNTIME = EngineRequest(engine="onnxruntime", device="cpu")
STATIC = EngineRequest(engine="openvino", device="cpu", static_k=9)
BOTH = pytest.mark.parametrize("request_", [OPENVINO, ONNXRUNTIME], ids=["openvino", "onnxruntime"])


def quiet(line: str) -> None:
    """Take a note or a phase."""


def ensure(bundle: Bundle, request: EngineRequest, note: Callable[[str], None] = quiet, **options: bool) -> Path:
    return store.ensure(bundle, request, quiet, note, **options)[0]


def engines_in(bundle: Bundle) -> list[str]:
    """Return every name in the folder of engines, hidden ones included."""
    return sorted(path.name for path in bundle.engines_path.iterdir()) if bundle.engines_path.exists() else []


def edit_receipt(folder: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads((folder / RECEIPT).read_text())
    edit(content)
    (folder / RECEIPT).write_text(json.dumps(content))


@pytest.fixture
def bundle(small_bundle: Callable[[str], Path], tmp_path: Path) -> Bundle:
    """Return a copy of the small bundle without engines."""
    copy = shutil.copytree(small_bundle("dinov2"), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    return read_bundle(copy)


@pytest.fixture
def built(bundle: Bundle) -> Path:
    """Return the folder of a fresh OpenVINO engine of `bundle`."""
    return ensure(bundle, OPENVINO)


@pytest.fixture
def other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make OpenVINO another version than the one engines were built with."""
    original = OpenVINOBackend.conditions
    monkeypatch.setattr(OpenVINOBackend, "conditions", lambda *given: original(*given) | {"version": "2099.1"})


def load(bundle: Bundle, **options: bool) -> saccade.Pipeline:
    return saccade.load(bundle, note=quiet, **options)


# ---- the key


@BOTH
def test_the_key_changes_with_every_condition(bundle: Bundle, request_: EngineRequest) -> None:
    fields = store.conditions(bundle, request_)
    assert {"engine", "precision", "version", "selector_sha256", "extractor_sha256"} <= fields.keys()
    keys = {key_of(fields | {name: "another"}) for name in fields} | {key_of(fields | {"new": ""})}
    keys |= {key_of({other: value for other, value in fields.items() if other != name}) for name in fields}
    assert len(keys | {key_of(fields)}) == 2 * len(fields) + 2


def test_the_key_does_not_change_with_the_order_of_conditions(bundle: Bundle) -> None:
    fields = store.conditions(bundle, OPENVINO)
    assert key_of(dict(reversed(fields.items()))) == key_of(fields)


def test_the_key_cannot_be_confused_by_moving_text_between_fields() -> None:
    assert key_of({"a": "b c", "d": "e"}) != key_of({"a": "b", "c d": "e"})


def test_the_folder_is_named_by_engine_precision_and_key(bundle: Bundle, built: Path) -> None:
    key = key_of(store.conditions(bundle, OPENVINO))
    assert built == bundle.engines_path / f"openvino-fp32-{key}"
    assert len(key) == 16


def test_threads_do_not_make_another_engine(bundle: Bundle, built: Path) -> None:
    assert ensure(bundle, msgspec.structs.replace(OPENVINO, threads=1), build=False) == built


def test_static_and_cls_only_are_conditions_that_other_engines_do_not_have(bundle: Bundle) -> None:
    plain = store.conditions(bundle, OPENVINO)
    assert not {"static_k", "cls_only"} & plain.keys()
    assert store.conditions(bundle, STATIC) == plain | {"static_k": "9"}
    both = msgspec.structs.replace(STATIC, cls_only=True)
    assert store.conditions(bundle, both) == plain | {"static_k": "9", "cls_only": "yes"}


# ---- building once


@BOTH
def test_a_missing_engine_is_built_with_one_note(bundle: Bundle, request_: EngineRequest) -> None:
    notes: list[str] = []
    folder = ensure(bundle, request_, notes.append)
    assert notes == [f"no {request_.engine} fp32 engine is built yet: building it"]
    assert engines_in(bundle) == [folder.name]


def test_a_fresh_engine_is_used_again_and_not_touched(bundle: Bundle, built: Path) -> None:
    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in [built, *built.iterdir()]}

    before, notes = times(), []
    for _ in range(2):
        assert ensure(bundle, OPENVINO, notes.append) == built
        load(bundle).close()
    assert (times(), notes) == (before, [])


@BOTH
def test_the_receipt_says_what_was_built_under_which_conditions(bundle: Bundle, request_: EngineRequest) -> None:
    folder = ensure(bundle, request_)
    receipt = store.read_receipt(folder)
    assert receipt.conditions == store.conditions(bundle, request_)
    assert (receipt.engine, receipt.precision, receipt.saccade) == (request_.engine, "fp32", saccade.__version__)
    assert receipt.sha256 == {name: sha256_of_file(folder / name) for name in receipt.files.values()}
    assert sorted(path.name for path in folder.iterdir()) == sorted([RECEIPT, *receipt.files.values()])
    assert str(bundle.path) not in (folder / RECEIPT).read_text()  # a bundle travels


def test_engines_of_several_kinds_lie_side_by_side(bundle: Bundle, built: Path) -> None:
    other = ensure(bundle, ONNXRUNTIME)
    assert [folder for folder, _ in store.receipts(bundle)] == sorted([built, other])
    assert ensure(bundle, OPENVINO, build=False) == built


def test_no_engine_of_one_shape_stands_in_for_another(bundle: Bundle) -> None:
    other = msgspec.structs.replace(STATIC, static_k=8)
    alone = msgspec.structs.replace(OPENVINO, cls_only=True)
    ensure(bundle, STATIC)
    notes: list[str] = []
    for request in (OPENVINO, other, alone):
        with pytest.raises(SaccadeError, match=f"no {request.title} engine is built yet; 'saccade build .*' builds it"):
            ensure(bundle, request, build=False)
        ensure(bundle, request, notes.append)
    assert notes == [f"no openvino fp32{form} engine is built yet: building it" for form in ("", " static k=8", " cls-only")]
    assert len(engines_in(bundle)) == 4


def test_the_command_that_builds_a_static_engine_names_its_k(bundle: Bundle) -> None:
    request = msgspec.structs.replace(STATIC, cls_only=True)
    with pytest.raises(SaccadeError) as error:
        ensure(bundle, request, build=False)
    (command,) = re.findall(r"'saccade (build .*)' builds it", str(error.value))
    assert main(command.split()) == 0
    assert ensure(bundle, request, build=False)


def test_static_engines_of_older_graphs_are_removed_whatever_their_k(bundle: Bundle) -> None:
    ensure(bundle, STATIC)
    changed = change_graph(bundle, "selector")
    folder = ensure(changed, OPENVINO)
    assert engines_in(bundle) == [folder.name]


def test_a_copied_bundle_takes_its_engines_along(bundle: Bundle, built: Path, tmp_path: Path) -> None:
    copy = read_bundle(shutil.copytree(bundle.path, tmp_path / "copy"))
    assert ensure(copy, OPENVINO, build=False).name == built.name
    load(copy, build=False).close()


@BOTH
def test_without_building_a_missing_engine_is_refused_in_one_line(bundle: Bundle, request_: EngineRequest) -> None:
    name = request_.engine
    message = rf"no {name} fp32 engine is built yet; 'saccade build .*bundle --engine {name}' builds it$"
    with pytest.raises(SaccadeError, match=message):
        ensure(bundle, request_, build=False)
    assert engines_in(bundle) == []


# ---- staleness


def test_another_version_makes_an_engine_stale_and_is_named(
    bundle: Bundle, built: Path, request: pytest.FixtureRequest
) -> None:
    version = store.conditions(bundle, OPENVINO)["version"]
    request.getfixturevalue("other_version")
    notes: list[str] = []
    assert ensure(bundle, OPENVINO, notes.append) != built
    (note,) = notes
    assert note.startswith("the built openvino fp32 engine is for other conditions (version ")
    assert f"{version[:12]}… -> 2099.1): building it" in note
    assert ensure(bundle, OPENVINO, notes.append) != built
    assert len(notes) == 1


def test_a_stale_engine_is_refused_where_nothing_may_be_built(
    bundle: Bundle, built: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("other_version")
    with pytest.raises(SaccadeError, match=r"is for other conditions \(version .* -> 2099\.1\); 'saccade build"):
        ensure(bundle, OPENVINO, build=False)
    assert engines_in(bundle) == [built.name]


def change_graph(bundle: Bundle, role: str) -> Bundle:
    """Give one graph other bytes, as another export would, and return the bundle read again."""
    graph = bundle.graph(role, "fp32")
    path = bundle.path / graph.file
    model = onnx.load(path)
    model.doc_string = "another"
    onnx.save(model, path)
    changed = msgspec.structs.replace(graph, sha256=sha256_of_file(path))
    graphs = bundle.manifest.graphs | {role: bundle.manifest.graphs[role] | {"fp32": changed}}
    write_manifest(bundle.path, msgspec.structs.replace(bundle.manifest, graphs=graphs))
    return read_bundle(bundle.path)


@pytest.mark.parametrize("role", ["selector", "extractor"])
def test_a_changed_graph_makes_an_engine_stale_and_is_named(bundle: Bundle, built: Path, role: str) -> None:
    before = bundle.graph(role, "fp32").sha256
    changed = change_graph(bundle, role)
    notes: list[str] = []
    assert ensure(changed, OPENVINO, notes.append) != built
    after = changed.graph(role, "fp32").sha256
    change = f"{role}_sha256 {before[:12]}… -> {after[:12]}…"
    assert notes == [
        f"the built openvino fp32 engine is for other conditions ({change}): building it",
        f"removed {built}, which an older version or graph explains",
    ]


def test_the_nearest_engine_explains_a_rebuild(bundle: Bundle, built: Path, request: pytest.FixtureRequest) -> None:
    """Of two stale engines the one with fewer differences is compared: here the graph, not graph and version."""
    request.getfixturevalue("other_version")
    ensure(bundle, OPENVINO)
    changed = change_graph(bundle, "selector")
    reason = store.why_stale(changed, OPENVINO, store.conditions(changed, OPENVINO))
    assert reason is not None
    assert reason.startswith("selector_sha256")
    assert "version" not in reason


def test_engines_of_another_kind_explain_nothing(bundle: Bundle) -> None:
    ensure(bundle, ONNXRUNTIME)
    assert store.why_stale(bundle, OPENVINO, store.conditions(bundle, OPENVINO)) is None


def test_superseded_engines_are_removed_and_those_of_other_machines_kept(bundle: Bundle, built: Path) -> None:
    receipt = store.read_receipt(built)

    def other(**conditions: str) -> store.Receipt:
        return msgspec.structs.replace(receipt, conditions=receipt.conditions | conditions)

    for kept in (
        other(),
        other(cpu="another"),
        other(version="2099.1", cpu="another"),
        other(version="2099.1", engine="onnxruntime"),
        other(selector_sha256="0" * 64, precision="fp16"),
    ):
        assert store.remove_superseded(bundle, kept) == []
    for newer in (other(version="2099.1"), other(allocation="user")):
        assert store.remove_superseded(bundle, newer, other_versions=False) == []
    assert store.remove_superseded(bundle, other(version="2099.1")) == [built]
    assert engines_in(bundle) == []


def test_an_engine_built_before_saccade_asked_for_its_allocation_is_superseded(bundle: Bundle, built: Path) -> None:
    receipt = store.read_receipt(built)
    newer = msgspec.structs.replace(receipt, conditions=receipt.conditions | {"allocation": "user"})
    assert store.remove_superseded(bundle, newer) == [built]


def test_a_build_removes_what_it_replaces_while_it_holds_the_lock(
    bundle: Bundle, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = change_graph(bundle, "selector")
    original, held = store.remove_superseded, []

    def remove(*arguments: object, **options: object) -> list[Path]:
        with pytest.raises(BlockingIOError):
            locks.lock(bundle.engines_path)
        held.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(store, "remove_superseded", remove)
    folder = ensure(changed, OPENVINO)
    assert (held, engines_in(bundle)) == ([1], [folder.name])


def test_a_run_keeps_the_engine_of_another_environment(
    bundle: Bundle, built: Path, request: pytest.FixtureRequest
) -> None:
    """Two environments that share a bundle would else build in turns; 'saccade build' says which one is meant."""
    request.getfixturevalue("other_version")
    theirs = ensure(bundle, OPENVINO)
    assert engines_in(bundle) == sorted([built.name, theirs.name])


# ---- engines with limits


class LimitedBackend(Backend):
    """An engine that takes batches up to its limit, as TensorRT's does, and is a text file."""

    def capabilities(self) -> Capabilities:
        return Capabilities(engine="tensorrt", version="1", can_build=True, can_run=True)

    def conditions(self, request: EngineRequest) -> dict[str, str]:
        return {"version": "1", "max_batch": str(request.max_batch)}

    def serves(self, built: Mapping[str, str], wanted: Mapping[str, str], request: EngineRequest) -> bool:
        same = {**built, "max_batch": ""} == {**wanted, "max_batch": ""}
        return same and (request.any_limits or int(built["max_batch"]) >= request.max_batch)

    def build(self, bundle: Bundle, request: EngineRequest, folder: Path, progress: Progress) -> Built:
        for role in ROLES:
            (folder / f"{role}.txt").write_text(str(request.max_batch))
        return Built(files={role: f"{role}.txt" for role in ROLES}, realised="text")

    def load(self, bundle: Bundle, request: EngineRequest, folder: Path, built: Built) -> dict[str, Engine]:
        return load_roles(ROLES, lambda role: Text(role, bundle.graph(role, "fp32"), folder / built.files[role]))


class Text(Engine):
    """A loaded text; its file must not be empty."""

    loaded: ClassVar[list[Text]] = []

    def __init__(self, role: str, graph: GraphFile, path: Path) -> None:
        super().__init__(role, graph)
        if not path.read_text():
            raise SaccadeError(f"{path} is empty")
        self.loaded.append(self)

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise AssertionError


@pytest.fixture
def limited(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Return a function that builds an engine for a largest batch, each newer than the last."""
    monkeypatch.setattr(store, "backend", lambda name: LimitedBackend())
    Text.loaded.clear()

    def build(max_batch: int) -> Path:
        folder = ensure(bundle, limits(max_batch))
        for age, path in enumerate(sorted(bundle.engines_path.iterdir(), key=lambda path: path != folder)):
            times = (path / RECEIPT).stat().st_mtime_ns - age * 10**9
            os.utime(path / RECEIPT, ns=(times, times))
        return folder

    return build


def limits(max_batch: int) -> EngineRequest:
    return EngineRequest(engine="tensorrt", device="0", max_batch=max_batch)


ANY_LIMITS = EngineRequest(engine="tensorrt", device="0", any_limits=True)


def test_a_run_takes_the_engine_that_was_built_whatever_its_limits(
    bundle: Bundle, limited: Callable[[int], Path]
) -> None:
    small = limited(2)
    assert ensure(bundle, ANY_LIMITS, build=False) == small
    large = limited(32)
    assert ensure(bundle, ANY_LIMITS, build=False) == large


def test_a_build_keeps_an_engine_that_covers_what_is_asked(bundle: Bundle, limited: Callable[[int], Path]) -> None:
    large = limited(32)
    assert ensure(bundle, limits(16)) == large
    assert engines_in(bundle) == [large.name]


def test_the_engine_of_just_these_limits_comes_before_others_that_cover_them(
    bundle: Bundle, limited: Callable[[int], Path]
) -> None:
    small, large = limited(2), limited(32)
    assert ensure(bundle, limits(2), build=False) == small
    assert ensure(bundle, ANY_LIMITS, build=False) == small  # it was asked for last
    assert ensure(bundle, limits(3), build=False) == large
    assert ensure(bundle, ANY_LIMITS, build=False) == large
    with pytest.raises(SaccadeError, match=r"\(max_batch \d+ -> 33\); 'saccade build .* tensorrt' builds it$"):
        ensure(bundle, limits(33), build=False)


def test_limits_explain_no_rebuild_of_a_run(
    bundle: Bundle, limited: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(2)
    monkeypatch.setattr(LimitedBackend, "conditions", lambda *_: {"version": "2", "max_batch": "8"})
    with pytest.raises(SaccadeError, match=r"for other conditions \(version 1 -> 2\);"):
        ensure(bundle, ANY_LIMITS, build=False)


def test_where_one_role_cannot_be_loaded_the_other_is_closed(bundle: Bundle, limited: Callable[[int], Path]) -> None:
    folder = limited(2)
    (folder / "extractor.txt").write_text("")
    empty = sha256_of_file(folder / "extractor.txt")
    edit_receipt(folder, lambda receipt: receipt["sha256"].update({"extractor.txt": empty}))
    with pytest.raises(SaccadeError, match=r"extractor\.txt is empty"):
        store.load(bundle, ANY_LIMITS, folder, store.read_receipt(folder))
    (selector,) = Text.loaded
    with pytest.raises(SaccadeError, match="the engine is closed"):
        selector.run({"lowres": np.zeros((1, *selector.inputs["lowres"].shape[1:]), np.float32)})


# ---- what a thorough build mends


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


# ---- builds that end badly


@pytest.fixture
def failing_build(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Return a function that makes OpenVINO's build raise once its first graph is written."""

    def fail_with(error: BaseException) -> None:
        original, calls = openvino_module._compiled, []

        def compiled(*arguments: object) -> object:
            calls.append(1)
            if len(calls) == 2:
                raise error
            return original(*arguments)

        monkeypatch.setattr(openvino_module, "_compiled", compiled)

    return fail_with


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), SaccadeError("no")], ids=["ctrl-c", "memory", "ours"])
def test_an_interrupted_build_leaves_nothing(
    bundle: Bundle, failing_build: Callable[[BaseException], None], error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_build(error)
    with pytest.raises(type(error)):
        ensure(bundle, OPENVINO)
    assert engines_in(bundle) == []
    monkeypatch.undo()
    with load(bundle) as pipe:
        assert engines_in(bundle) == [f"openvino-fp32-{pipe.receipt.key}"]


def test_a_failed_rebuild_leaves_the_older_engine(
    bundle: Bundle, built: Path, failing_build: Callable[[BaseException], None], request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("other_version")
    failing_build(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ensure(bundle, OPENVINO)
    assert engines_in(bundle) == [built.name]
    store.read_receipt(built)


KILLED = """
    import os, signal, sys
    import saccade
    from saccade import atomic

    def kill(pending, target):
        os.kill(os.getpid(), signal.SIGKILL)

    atomic._replace_folder = kill  # the last step: blobs and receipt are written, the name is not given
    saccade.load(sys.argv[1])
"""


def test_a_killed_build_is_no_engine_to_later_runs(bundle: Bundle) -> None:
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), bundle.path], check=False, capture_output=True)
    assert run.returncode == -signal.SIGKILL
    (left,) = engines_in(bundle)
    assert left.startswith(atomic.PENDING_PREFIX)
    assert (bundle.engines_path / left / RECEIPT).exists()
    assert store.receipts(bundle) == []
    notes: list[str] = []
    folder = ensure(bundle, OPENVINO, notes.append)
    assert notes == ["no openvino fp32 engine is built yet: building it"]
    load(bundle, build=False).close()
    assert engines_in(bundle) == [folder.name]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EROFS, "the file system is read-only; copy the bundle to a place that can be written"),
        (errno.EACCES, "permission denied; run it as a user who may write there, or copy the bundle"),
        (errno.ENOSPC, "the disk is full; free some space and repeat"),
    ],
)
def test_a_bundle_that_cannot_be_written_is_one_line(
    bundle: Bundle, code: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SaccadeError, match=f"^cannot write {bundle.engines_path}: {reason}$"):
        ensure(bundle, OPENVINO)


@pytest.mark.parametrize("file", ["extractor.blob", RECEIPT])
def test_a_disk_that_fills_up_during_a_build_is_one_line(bundle: Bundle, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def full(path: Path, mode: str = "r", *rest: object, **options: object) -> object:
        if path.name.endswith(file) and "w" in mode:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return original(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(SaccadeError, match=r"^cannot write .*: the disk is full; free some space and repeat$"):
        ensure(bundle, OPENVINO)
    assert engines_in(bundle) == []


def mounted(*arguments: str) -> None:
    """Run mount, or skip where a test may not mount (it needs root and the capability for it)."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting needs root")
    if subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets no one mount")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a real disk of 5 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted("-t", "tmpfs", "-o", "size=5m", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def read_only_bundle(bundle: Bundle, tmp_path: Path) -> Iterator[Bundle]:
    """Return the bundle on a file system that really cannot be written."""
    place = tmp_path / "read-only"
    place.mkdir()
    mounted("--bind", str(bundle.path), str(place))
    subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
    yield read_bundle(place)
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full_is_one_line(bundle: Bundle, small_disk: Path) -> None:
    full = read_bundle(shutil.copytree(bundle.path, small_disk / "bundle"))  # 3.5 MB; both blobs need as much
    with pytest.raises(SaccadeError, match=r"^cannot write .*: the disk is full; free some space and repeat$"):
        ensure(full, OPENVINO)
    assert engines_in(full) == []


def test_a_disk_that_is_really_read_only_is_one_line(read_only_bundle: Bundle) -> None:
    with pytest.raises(SaccadeError, match=r"^cannot write .*engines: the file system is read-only"):
        ensure(read_only_bundle, OPENVINO)


def test_a_built_engine_runs_from_a_read_only_disk(
    bundle: Bundle, built: Path, request: pytest.FixtureRequest, photographs: list[np.ndarray]
) -> None:
    with load(request.getfixturevalue("read_only_bundle"), build=False) as pipe:
        assert pipe(photographs[0]).tokens.shape == (1, 8, 128)


# ---- two at once


@pytest.mark.parametrize("shared", [True, False], ids=["a build", "an export"])
def test_a_build_shares_the_bundle_with_builds_and_not_with_an_export(bundle: Bundle, shared: bool) -> None:
    """The lock is another process's as far as the system is concerned: it belongs to the open file."""
    with locks.reserved(bundle.path, "busy", shared=shared):
        if shared:
            assert ensure(bundle, OPENVINO).is_dir()
            return
        with pytest.raises(SaccadeError, match=r"bundle is being exported or converted by another process;"):
            ensure(bundle, OPENVINO)


def test_a_bundle_that_is_exported_again_just_before_a_build_is_not_built(bundle: Bundle) -> None:
    def export_again(line: str) -> None:
        change_graph(bundle, "selector")

    with pytest.raises(SaccadeError, match=r"bundle was exported or converted again meanwhile; repeat$"):
        ensure(bundle, OPENVINO, export_again)


def test_a_path_that_is_not_utf8_is_refused(bundle: Bundle) -> None:
    place = bundle.path.rename(os.fsdecode(os.fsencode(bundle.path) + b"\xff"))
    for request_ in (OPENVINO, ONNXRUNTIME):
        with pytest.raises(SaccadeError, match="its path is not UTF-8, which engines cannot open; rename its folder"):
            ensure(read_bundle(place), request_)


LOAD_AND_RUN = """
    import sys, numpy, saccade
    with saccade.load(sys.argv[1], engine=sys.argv[2]) as pipe:
        print(pipe.receipt.key, float(abs(pipe(numpy.zeros((126, 126, 3), numpy.uint8)).cls).sum()))
"""


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_processes_that_build_at_once_end_well_with_one_engine(bundle: Bundle, engine: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(LOAD_AND_RUN), bundle.path, engine]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], answers
    assert len({out for out, _ in answers}) == 1
    assert engines_in(bundle) == [f"{engine}-fp32-{answers[0][0].split()[0]}"]


def test_an_engine_built_while_another_waited_is_taken_as_it_is(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is held by a build that ends while the second one waits for it."""
    original, builds = store.build_into, []

    def build_into(*arguments: object) -> store.Receipt:
        builds.append(1)
        return original(*arguments)

    real = store.sole_builder

    def slow(*arguments: object) -> object:
        monkeypatch.setattr(store, "sole_builder", real)
        ensure(bundle, OPENVINO)  # the other process, just before this one gets the lock
        return real(*arguments)

    monkeypatch.setattr(store, "build_into", build_into)
    monkeypatch.setattr(store, "sole_builder", slow)
    folder = ensure(bundle, OPENVINO)
    assert (builds, engines_in(bundle)) == ([1], [folder.name])


def test_a_file_system_without_locks_is_no_obstacle(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert ensure(bundle, OPENVINO).is_dir()


def test_every_engine_answers_what_it_can_do_without_raising() -> None:
    for name in store.ENGINE_NAMES:
        found = store.backend(name).capabilities()
        assert isinstance(found, Capabilities)
        assert found.engine == name
        assert found.can_run or found.missing


def test_a_receipt_whose_audit_is_no_audit_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder, receipt = store.ensure(bundle, OPENVINO, lambda phase: None, lambda line: None)
    copy = Path(shutil.copytree(folder, tmp_path / folder.name))
    changed = msgspec.structs.replace(receipt, audit={"selector": {"kernels": "many"}})
    (copy / store.RECEIPT).write_bytes(msgspec.json.encode(changed))
    with pytest.raises(SaccadeError, match=r"receipt\.json: .*; delete .* and build again"):
        store.read_receipt(copy)
