"""The test of an engine on the GPU it was built on, before it is put to use: good, or quarantined.

It runs in a process of its own, `python -m saccade.validate.self_test`, since an engine that is wrong may crash.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from saccade import atomic
from saccade.backbone_golden import BackboneCase, backbone_cases_of
from saccade.bundle import Bundle, Model, read_bundle
from saccade.engines import quarantine, store
from saccade.engines.child import Death, run_child, take_job
from saccade.engines.engine import EngineRequest
from saccade.engines.store import Receipt
from saccade.errors import EngineError, SaccadeError
from saccade.golden import Case, cases_of
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.chain import Pipeline
from saccade.runtime.launch import read_fatbin
from saccade.runtime.loading import open_built
from saccade.validate.backbone_parity import measure_backbone
from saccade.validate.parity import Verdict, measure_parity

VERDICT = "self-test.json"  # in the folder of an engine that has passed
FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")  # signals that no crash sends

Opened = Callable[[Bundle, EngineRequest, Path, Receipt], Pipeline | BackbonePipeline]


class Job(Struct, frozen=True, kw_only=True):
    """What the child is to test."""

    bundle: str
    request: EngineRequest
    folder: str  # where the engine lies
    receipt: Receipt
    parent: int


class Passed(Struct, frozen=True, tag="passed"):
    """The engine equals PyTorch."""

    verdict: dict[str, Any]


class Wrong(Struct, frozen=True, tag="wrong"):
    """It does not, or does not load or run, and that is its own doing."""

    reason: str


class Untested(Struct, frozen=True, tag="untested"):
    """The machine did not let it be tested: its memory, its driver, a file."""

    message: str


Outcome = Passed | Wrong | Untested


def check_testable(bundle: Bundle, request: EngineRequest) -> None:
    """Refuse what could not be tested, before a build that takes minutes."""
    if isinstance(bundle.manifest.model, Model):
        read_fatbin()
        fits = any(_fits(case, request) for case in cases_of(bundle))
        most, larger = f"k {request.max_k}", "--max-k"
    else:
        fits = any(_backbone_fits(case, request) for case in backbone_cases_of(bundle))
        most, larger = "{}x{} px".format(*request.max_size or ("any", "any")), "--max-size"
    if not fits:
        problem = f"no golden case fits an engine for batch {request.max_batch}, {most}"
        raise SaccadeError(f"{bundle.path}: {problem}; give a larger {larger} or --max-batch")


def verdict_in(folder: Path) -> dict[str, Any] | None:
    """Return the verdict that an engine's folder holds, None where the engine was not tested yet."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((folder / VERDICT).read_bytes(), type=dict[str, Any])
    return None


def self_test(bundle: Bundle, request: EngineRequest, lies: Path, receipt: Receipt) -> None:
    """Test the engine that lies in a folder, not yet in its own place perhaps, and write the verdict into it.

    Raises SaccadeError where it differs from PyTorch or does not run, and lies in quarantine then; and where it could not
    be tested, which is not its fault.
    """
    outcome = _outcome(
        Job(bundle=str(bundle.path), request=request, folder=str(lies), receipt=receipt, parent=os.getpid())
    )
    folder = store.folder_of(bundle, request, receipt.conditions)
    if isinstance(outcome, Untested):
        raise SaccadeError(f"the engine could not be tested: {outcome.message}; then build again")
    if isinstance(outcome, Wrong):
        place = quarantine.put(lies, folder, outcome.reason)
        raise SaccadeError(
            f"the engine was built, and {outcome.reason}; it is kept in {place} and not used: "
            "choose another --precision, or another version of the engine"
        )
    atomic.write_bytes(lies / VERDICT, msgspec.json.format(msgspec.json.encode(outcome.verdict), indent=2) + b"\n")
    quarantine.release(folder)


def _outcome(job: Job) -> Outcome:
    """Test in a child; one that crashes was the engine's doing."""
    outcome = run_child(__name__, job, Outcome, lambda message: False)
    if not isinstance(outcome, Death):
        found: Outcome = outcome
        return found
    if outcome.signal is None:
        raise RuntimeError(f"the process testing the engine stopped with status {outcome.status}:\n{outcome.stderr}")
    if outcome.signal in FROM_OUTSIDE:
        return Untested(f"its process was ended by {outcome.signal}, mostly for want of memory: close other programs")
    return Wrong(f"it ended its process by {outcome.signal}")


def judge(job: Job, opened: Opened = open_built) -> Outcome:
    """Run the bundle's golden images and compare."""
    bundle = read_bundle(Path(job.bundle))
    try:
        with opened(bundle, job.request, Path(job.folder), job.receipt) as pipeline:
            result = _measured(pipeline, job.request)
    except EngineError as error:
        return Wrong(f"it does not run: {error}")
    except SaccadeError as error:
        return Untested(str(error))
    if not result.passed:
        return Wrong(f"it differs from PyTorch in {', '.join(each.name for each in result.measures if not each.passed)}")
    return Passed(result.summary())


def _measured(pipeline: Pipeline | BackbonePipeline, request: EngineRequest) -> Verdict[Any]:
    """Compare with the golden cases that the engine takes, by the numbers of the kind of model."""
    if isinstance(pipeline, BackbonePipeline):
        plain = [case for case in backbone_cases_of(pipeline.bundle) if _backbone_fits(case, request)]
        return measure_backbone(pipeline, plain)
    return measure_parity(pipeline, [case for case in cases_of(pipeline.bundle) if _fits(case, request)])


def _backbone_fits(case: BackboneCase, request: EngineRequest) -> bool:
    """Tell whether an engine of these limits takes a case of a plain backbone."""
    batch, height, width, _ = case.images.shape
    most = request.max_size
    return batch <= request.max_batch and (most is None or (height <= most[0] and width <= most[1]))


def _fits(case: Case, request: EngineRequest) -> bool:
    """Tell whether an engine of these limits takes a case."""
    return len(case.images) <= request.max_batch and case.output.indices.shape[1] <= request.max_k


def main() -> None:
    """Do the one job on stdin."""
    job, send = take_job(Job)
    send(judge(job))


if __name__ == "__main__":
    main()
