"""The test right after a build: what equals PyTorch stays, what does not or cannot run goes into quarantine."""
from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import saccade
from saccade.cli import create
from saccade.cli.main import main
from saccade.engines import quarantine, store
from saccade.engines.engine import EngineRequest, default_request
from saccade.errors import SaccadeError
from saccade.runtime.loading import open_built
from saccade.validate import self_test as module
from saccade.validate.self_test import check_testable, self_test


class Built:
    """An OpenVINO engine, just built, in the part of TensorRT's; `spoil` changes what it says."""

    def __init__(self, path: Path) -> None:
        assert main(["build", str(path), "--engine", "openvino"]) == 0
        self.bundle = saccade.read_bundle(path)
        self.request = default_request(self.bundle, "openvino", "fp32")
        ((self.folder, self.receipt),) = store.receipts(self.bundle)
        self.cases = 0

    def test(self, spoil: Callable[[np.ndarray], np.ndarray] = lambda cls: cls) -> dict[str, Any]:
        def opened(*arguments: Any) -> saccade.Pipeline:
            pipeline = open_built(*arguments)
            extractor = pipeline.engines["extractor"]
            run = extractor._run

            def spoilt(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                found = dict(run(feed))
                return found | {"cls": spoil(found["cls"])}

            extractor._run = spoilt  # type: ignore[method-assign, assignment]
            return pipeline

        return self_test(self.bundle, self.request, self.folder, self.receipt, opened)


@pytest.fixture
def built(small_bundle: Callable[[str], Path], tmp_path: Path) -> Built:
    shutil.copytree(small_bundle("dinov2"), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    return Built(tmp_path / "bundle")


def test_an_engine_that_equals_pytorch_stays_and_an_older_failure_is_forgotten(built: Built) -> None:
    shutil.copytree(built.folder, quarantine.place_of(built.folder))
    verdict = built.test()
    assert (verdict["passed"], verdict["images"]) == (True, 4)
    assert built.folder.is_dir()
    assert not quarantine.place_of(built.folder).exists()


def test_an_engine_that_differs_is_quarantined_with_the_numbers_it_differs_in(built: Built) -> None:
    message = "differs from PyTorch in cls, free_running; it is kept in .*quarantined-openvino-fp32-.* and not used"
    with pytest.raises(SaccadeError, match=message):
        built.test(lambda cls: cls + np.float32(0.1))
    assert not built.folder.exists()
    reason = (quarantine.place_of(built.folder) / "reason.txt").read_text()
    assert reason == "it differs from PyTorch in cls, free_running\n"


def test_an_engine_that_does_not_run_is_quarantined_with_the_reason(built: Built) -> None:
    def fail(cls: np.ndarray) -> np.ndarray:
        raise SaccadeError("the run failed")

    with pytest.raises(SaccadeError, match=r"built and does not run \(the run failed\)"):
        built.test(fail)
    assert (quarantine.place_of(built.folder) / "reason.txt").read_text() == "it does not run: the run failed\n"


def test_only_the_cases_that_the_engine_takes_are_run(built: Built) -> None:
    built.request = msgspec.structs.replace(built.request, max_batch=1)
    assert built.test()["images"] == 1


def test_an_engine_that_no_golden_case_fits_is_refused_before_its_build(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "read_fatbin", lambda: b"")
    check_testable(built.bundle, built.request)
    too_small = msgspec.structs.replace(built.request, max_k=2, max_batch=4)
    with pytest.raises(SaccadeError, match=r"no golden case fits an engine for batch 4, k 2; give a larger --max-k"):
        check_testable(built.bundle, too_small)


def test_build_tests_what_it_built_and_not_what_was_there(
    built: Built, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tested: list[EngineRequest] = []

    def passed(bundle: Any, request: EngineRequest, folder: Path, receipt: Any) -> dict[str, Any]:
        tested.append(request)
        return {"passed": True, "images": 4}

    monkeypatch.setattr(create, "SELF_TESTED", ("openvino",))
    monkeypatch.setattr(module, "read_fatbin", lambda: b"")
    monkeypatch.setattr(module, "self_test", passed)
    arguments = ["build", str(built.bundle.path), "--engine", "openvino"]
    shutil.rmtree(built.folder)
    assert main(arguments) == 0
    assert re.search("equal to PyTorch on 4 images", capsys.readouterr().out)
    assert main(arguments) == 0
    assert len(tested) == 1
