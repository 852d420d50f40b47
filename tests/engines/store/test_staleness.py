"""Another version or graph makes an engine stale, is named as the reason, and the old one leaves."""
from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from kept_engines import ONNXRUNTIME, OPENVINO, change_graph, engines_in, ensure

from saccade import Bundle, SaccadeError, locks
from saccade.engines import store


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
