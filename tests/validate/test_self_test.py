"""The test of what was built: what equals PyTorch is put to use, what does not or cannot run goes into quarantine."""
from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import saccade
from saccade.backbone_golden import backbone_cases_of
from saccade.cli.main import main
from saccade.engines import quarantine, store
from saccade.engines.child import Death
from saccade.engines.engine import default_request
from saccade.errors import EngineError, OutOfMemoryError, SaccadeError
from saccade.runtime.loading import open_built
from saccade.validate import self_test as module
from saccade.validate.self_test import VERDICT, Passed, check_testable, judge, self_test, verdict_in

Spoil = Callable[[np.ndarray], np.ndarray]


class Built:
    """An OpenVINO engine, just built, in the part of TensorRT's."""

    def __init__(self, path: Path) -> None:
        assert main(["build", str(path), "--engine", "openvino"]) == 0
        self.bundle = saccade.read_bundle(path)
        self.request = default_request(self.bundle, "openvino", "fp32")
        ((self.folder, self.receipt),) = store.receipts(self.bundle)

    def test(self) -> dict[str, Any] | None:
        self_test(self.bundle, self.request, self.folder, self.receipt)
        return verdict_in(self.folder)

    @property
    def reason(self) -> str:
        return (quarantine.place_of(self.folder) / "reason.txt").read_text().strip()


@pytest.fixture
def built(small_bundle: Callable[[str], Path], tmp_path: Path) -> Built:
    shutil.copytree(small_bundle("dinov2"), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    return Built(tmp_path / "bundle")


@pytest.fixture
def plain(small_backbone: Callable[[str], Path], tmp_path: Path) -> Built:
    """Return a plain backbone's engine."""
    shutil.copytree(small_backbone("neco"), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    return Built(tmp_path / "bundle")


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Spoil], None]:
    """Return a function that lets engines be tested in this process, and says what they answer."""

    def spoil(change: Spoil) -> None:
        def opened(*arguments: Any) -> Any:
            pipeline = open_built(*arguments)
            (*_, extractor) = pipeline.engines.values()
            run = extractor._run

            def spoilt(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                found = dict(run(feed))
                return found | {"cls": change(found["cls"])}

            extractor._run = spoilt  # type: ignore[method-assign, assignment]
            return pipeline

        monkeypatch.setattr(module, "run_child", lambda name, job, *more: judge(job, opened))

    return spoil


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that lets the testing process end with a status instead of testing."""
    return lambda status: monkeypatch.setattr(module, "run_child", lambda *given: Death(status, "a traceback"))


def raising(error: Exception) -> Spoil:
    def fail(cls: np.ndarray) -> np.ndarray:
        raise error

    return fail


# ---- the verdict


def test_an_engine_that_equals_pytorch_stays_with_its_verdict_and_an_older_failure_is_forgotten(built: Built) -> None:
    shutil.copytree(built.folder, quarantine.place_of(built.folder))
    verdict = built.test()  # in a process of its own
    assert verdict is not None
    assert (verdict["passed"], verdict["images"]) == (True, 4)
    assert json.loads((built.folder / VERDICT).read_text()) == verdict
    assert not quarantine.place_of(built.folder).exists()


def test_an_engine_that_differs_is_quarantined_with_the_numbers_it_differs_in(
    built: Built, spoil: Callable[[Spoil], None]
) -> None:
    spoil(lambda cls: cls + np.float32(0.1))
    message = "differs from PyTorch in cls, free_running; it is kept in .*quarantined-openvino-fp32-.* and not used"
    with pytest.raises(SaccadeError, match=message):
        built.test()
    assert not built.folder.exists()
    assert built.reason == "it differs from PyTorch in cls, free_running"


def test_a_plain_backbone_is_tested_by_its_own_numbers(plain: Built, spoil: Callable[[Spoil], None]) -> None:
    verdict = plain.test()  # in a process of its own
    assert verdict is not None
    assert verdict["passed"]
    assert {"cls", "patches", "attention"} <= set(verdict["measures"])
    spoil(lambda cls: cls + np.float32(0.1))
    with pytest.raises(SaccadeError, match=r"built, and it differs from PyTorch in cls, .*; it is kept in"):
        plain.test()
    assert not plain.folder.exists()


def test_a_plain_backbone_s_cases_are_those_of_the_sizes_that_its_engine_takes(plain: Built) -> None:
    check_testable(plain.bundle, plain.request)
    sizes = [case.images.shape[1:3] for case in backbone_cases_of(plain.bundle)]
    largest = max(sizes)
    assert len(set(sizes)) > 1
    job = module.Job(
        bundle=str(plain.bundle.path), request=msgspec.structs.replace(plain.request, max_size=min(sizes)),
        folder=str(plain.folder), receipt=plain.receipt, parent=os.getpid(),
    )  # fmt: skip
    outcome = judge(job)
    assert isinstance(outcome, Passed)
    assert 0 < outcome.verdict["images"] < sum(len(case.images) for case in backbone_cases_of(plain.bundle))
    too_small = msgspec.structs.replace(plain.request, max_size=(14, largest[1]))
    with pytest.raises(SaccadeError, match=rf"fits an engine for batch \d+, 14x{largest[1]} px; give a larger --max-size"):
        check_testable(plain.bundle, too_small)


def test_an_engine_that_does_not_run_is_quarantined_with_the_reason(built: Built, spoil: Callable[[Spoil], None]) -> None:
    spoil(raising(EngineError("the run failed")))
    with pytest.raises(SaccadeError, match=r"built, and it does not run: the run failed; it is kept in"):
        built.test()
    assert built.reason == "it does not run: the run failed"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_an_engine_that_crashes_is_quarantined_with_the_signal(
    built: Built, dies: Callable[[int], None], number: signal.Signals
) -> None:
    dies(-number)
    with pytest.raises(SaccadeError, match=f"built, and it ended its process by {number.name}"):
        built.test()
    assert built.reason == f"it ended its process by {number.name}"


@pytest.mark.parametrize("error", [OutOfMemoryError("8 MiB are not to be had"), SaccadeError("the driver is too old")])
def test_what_the_machine_lacks_is_not_the_engines_fault(
    built: Built, spoil: Callable[[Spoil], None], error: SaccadeError
) -> None:
    spoil(raising(error))
    with pytest.raises(SaccadeError, match=f"^the engine could not be tested: {error}; then build again$"):
        built.test()
    assert built.folder.is_dir()
    assert not quarantine.place_of(built.folder).exists()


def test_a_test_that_was_killed_says_nothing_of_the_engine(built: Built, dies: Callable[[int], None]) -> None:
    dies(-signal.SIGKILL)
    with pytest.raises(SaccadeError, match="could not be tested: its process was ended by SIGKILL"):
        built.test()
    dies(1)
    with pytest.raises(RuntimeError, match="stopped with status 1:\na traceback"):
        built.test()
    assert verdict_in(built.folder) is None
    assert not quarantine.place_of(built.folder).exists()


def test_only_the_cases_that_the_engine_takes_are_run(built: Built) -> None:
    request = msgspec.structs.replace(built.request, max_batch=1)
    job = module.Job(
        bundle=str(built.bundle.path), request=request, folder=str(built.folder), receipt=built.receipt, parent=os.getpid()
    )
    outcome = judge(job)
    assert isinstance(outcome, Passed)
    assert outcome.verdict["images"] == 1


def test_an_engine_that_no_golden_case_fits_is_refused_before_its_build(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "read_fatbin", lambda: b"")
    check_testable(built.bundle, built.request)
    too_small = msgspec.structs.replace(built.request, max_k=2, max_batch=4)
    with pytest.raises(SaccadeError, match=r"no golden case fits an engine for batch 4, k 2; give a larger --max-k"):
        check_testable(built.bundle, too_small)


# ---- saccade build


class Examiner:
    """What `saccade build` tests: where it lies, and whether it is in use meanwhile."""

    def __init__(self, built: Built) -> None:
        self.built, self.seen = built, list[tuple[str, bool]]()
        self.outcome: Exception | None = None

    def __call__(self, bundle: Any, request: Any, lies: Path, receipt: Any) -> None:
        self.seen.append((lies.name, bool(store.receipts(self.built.bundle))))
        if self.outcome is not None:
            raise self.outcome
        (lies / VERDICT).write_text('{"passed": true, "images": 4}')

    def build(self) -> int:
        return main(["build", str(self.built.bundle.path), "--engine", "openvino"])


@pytest.fixture
def examiner(built: Built, monkeypatch: pytest.MonkeyPatch) -> Examiner:
    found = Examiner(built)
    monkeypatch.setattr(store, "SELF_TESTED", ("openvino",))
    monkeypatch.setattr(module, "read_fatbin", lambda: b"")
    monkeypatch.setattr(module, "self_test", found)
    shutil.rmtree(built.folder)
    return found


def test_what_is_built_is_tested_before_it_is_put_to_use_and_not_again(
    examiner: Examiner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert examiner.build() == 0
    ((lies, in_use),) = examiner.seen
    assert lies.startswith(".pending-")
    assert not in_use
    for _ in range(2):
        assert re.search("equal to PyTorch on 4 images", capsys.readouterr().out)
        assert examiner.build() == 0
    assert len(examiner.seen) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), SaccadeError("no memory")])
def test_an_engine_whose_test_died_is_not_in_use_and_is_tested_by_the_next_build(
    examiner: Examiner, error: BaseException
) -> None:
    examiner.outcome = error  # type: ignore[assignment]
    try:
        assert examiner.build() != 0
    except BaseException as raised:
        assert raised is error
    assert store.receipts(examiner.built.bundle) == []
    examiner.outcome = None
    assert examiner.build() == 0
    assert len(examiner.seen) == 2


def test_a_plain_backbone_is_tested_by_build_too(
    plain: Built, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Examiner(plain)
    monkeypatch.setattr(store, "SELF_TESTED", ("openvino",))
    monkeypatch.setattr(module, "self_test", found)
    shutil.rmtree(plain.folder)
    assert found.build() == 0
    assert "equal to PyTorch on 4 images" in capsys.readouterr().out
    assert [lies.startswith(".pending-") for lies, _ in found.seen] == [True]


def test_an_engine_that_a_run_built_is_said_to_be_untested_and_tested_by_the_next_build(
    examiner: Examiner, capsys: pytest.CaptureFixture[str]
) -> None:
    saccade.load(examiner.built.bundle, engine="openvino").close()
    command = f"'saccade build {examiner.built.bundle.path} --engine openvino'"
    assert f"building it, untested; {command} tests it" in capsys.readouterr().err
    assert examiner.build() == 0
    assert examiner.seen == [(examiner.built.folder.name, True)]
