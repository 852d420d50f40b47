"""The test of an engine right after its build, on the GPU it was built on: good, or quarantined."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from saccade.bundle import Bundle
from saccade.engines import quarantine
from saccade.engines.engine import EngineRequest
from saccade.engines.store import Receipt
from saccade.errors import SaccadeError
from saccade.golden import Case, cases_of
from saccade.runtime.chain import Pipeline
from saccade.runtime.launch import read_fatbin
from saccade.runtime.loading import open_built
from saccade.validate.parity import measure_parity

Opened = Callable[[Bundle, EngineRequest, Path, Receipt], Pipeline]


def check_testable(bundle: Bundle, request: EngineRequest) -> None:
    """Refuse what could not be tested, before a build that takes minutes."""
    read_fatbin()
    if not any(_fits(case, request) for case in cases_of(bundle)):
        most = f"batch {request.max_batch}, k {request.max_k}"
        raise SaccadeError(f"{bundle.path}: no golden case fits an engine for {most}; give a larger --max-k or --max-batch")


def self_test(
    bundle: Bundle, request: EngineRequest, folder: Path, receipt: Receipt, opened: Opened = open_built
) -> dict[str, Any]:
    """Return the verdict on a built engine by the bundle's goldens, as JSON-able data.

    Raises SaccadeError where it differs from PyTorch, or does not run at all; it lies in quarantine then.
    """
    try:
        with opened(bundle, request, folder, receipt) as pipeline:
            result = measure_parity(pipeline, [case for case in cases_of(bundle) if _fits(case, request)])
    except SaccadeError as error:
        place = quarantine.put(folder, f"it does not run: {error}")
        raise SaccadeError(f"the engine was built and does not run ({error}); it is kept in {place} and not used") from error
    if not result.passed:
        failed = ", ".join(measure.name for measure in result.measures if not measure.passed)
        place = quarantine.put(folder, f"it differs from PyTorch in {failed}")
        raise SaccadeError(
            f"the engine was built and differs from PyTorch in {failed}; it is kept in {place} and not used: "
            "choose another --precision, or another version of the engine"
        )
    quarantine.release(folder)
    return result.summary()


def _fits(case: Case, request: EngineRequest) -> bool:
    """Tell whether an engine of these limits takes a case."""
    return len(case.images) <= request.max_batch and case.output.indices.shape[1] <= request.max_k
