"""An engine's key is all that it was built under; one build serves every later run."""
from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest
from kept_engines import BOTH, ONNXRUNTIME, OPENVINO, STATIC, change_graph, engines_in, ensure, load

import saccade
from saccade import Bundle, SaccadeError, read_bundle
from saccade.bundle import sha256_of_file
from saccade.cli.main import main
from saccade.engines import store
from saccade.engines.engine import Capabilities, EngineRequest
from saccade.engines.store import RECEIPT, key_of


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


def test_every_engine_answers_what_it_can_do_without_raising() -> None:
    for name in store.ENGINE_NAMES:
        found = store.backend(name).capabilities()
        assert isinstance(found, Capabilities)
        assert found.engine == name
        assert found.can_run or found.missing
