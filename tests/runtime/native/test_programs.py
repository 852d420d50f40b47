"""The programs beside this file, each a proof of something that saccade.h promises."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

release_and_asan = pytest.mark.parametrize("build", ["release", "asan"])
all_builds = pytest.mark.parametrize("build", ["release", "asan", "tsan"])

Run = Callable[..., str]


@release_and_asan
@pytest.mark.parametrize("kind", ["dinov2", "classify", "segment"])
def test_every_function_refuses_what_it_cannot_take_and_touches_nothing(run: Run, build: str, kind: str) -> None:
    run(build, "arguments", kind=kind)


@all_builds
def test_handles_may_be_freed_in_any_order(run: Run, build: str) -> None:
    run(build, "lifetimes")


@all_builds
def test_threads_share_models_are_refused_in_busy_sessions_and_cancel_each_other(run: Run, build: str) -> None:
    run(build, "threads")


def test_threads_may_be_cancelled_and_the_program_may_end_while_bundles_are_opened(run: Run) -> None:
    for _ in range(5):
        run("release", "endings")


@release_and_asan
def test_a_bundle_that_changes_on_disk_is_noticed_or_makes_no_difference(run: Run, build: str, tmp_path: Path) -> None:
    run(build, "changes", tmp_path)


@pytest.mark.parametrize(("build", "stride"), [("asan", 7), ("release", 4)])
def test_running_out_of_memory_anywhere_is_an_error_that_loses_nothing(run: Run, build: str, stride: int) -> None:
    run(build, "faults", str(stride))


def test_runs_after_a_warm_up_allocate_nothing_of_ours(run: Run) -> None:
    run("release", "allocations")


def test_rounds_of_open_load_run_and_free_leak_nothing(run: Run) -> None:
    run("asan", "rounds", "10")  # what one round loses is found at its end


@release_and_asan
@pytest.mark.parametrize("kind", ["dinov2", "classify", "segment"])
def test_the_chain_on_a_device_is_the_chain_on_the_host_to_the_last_bit(run: Run, build: str, kind: str) -> None:
    run(build, "device_chain", kind=kind)
