"""Engines with limits: a run takes what was built, a build what covers the request."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from kept_engines import edit_receipt, engines_in, ensure

from saccade import Bundle, SaccadeError
from saccade.bundle import GraphFile, sha256_of_file
from saccade.contract import LOOKWHERE_ROLES as ROLES
from saccade.engines import store
from saccade.engines.engine import Backend, Built, Capabilities, Engine, EngineRequest, Progress, load_roles
from saccade.engines.store import RECEIPT


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
