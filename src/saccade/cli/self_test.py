"""The self-test that is part of `saccade build`: of what, and when. The test itself is `validate/self_test.py`."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from saccade.bundle import Bundle
from saccade.cli.console import Phases
from saccade.engines import store
from saccade.engines.engine import EngineRequest


def check_of(bundle: Bundle, request: EngineRequest, phases: Phases) -> store.Check | None:
    """Return the test of what is built here, None where there is none; refuses what it could not test."""
    if not _is_tested(request):
        return None
    from saccade.validate.self_test import check_testable, self_test

    check_testable(bundle, request)

    def check(lies: Path, receipt: store.Receipt) -> None:
        phases("self-test on the bundle's golden images")
        self_test(bundle, request, lies, receipt)

    return check


def verdict_on(folder: Path, receipt: store.Receipt, check: store.Check) -> dict[str, Any] | None:
    """Return the verdict on an engine; one that a run built, or whose test was interrupted, is tested now."""
    from saccade.validate.self_test import verdict_in

    if verdict_in(folder) is None:
        check(folder, receipt)
    return verdict_in(folder)


def _is_tested(request: EngineRequest) -> bool:
    """Tell whether what is built here can be run here."""
    return request.engine in store.SELF_TESTED and store.backend(request.engine).capabilities().can_build
