"""The programs of test_programs.py that any bundle can run, on a plain backbone's."""
from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import saccade
from saccade.cli.main import main

BUILDS = Path(__file__).parents[3] / "build" / "native"

release_and_asan = pytest.mark.parametrize("build", ["release", "asan"])

Run = Callable[..., str]


@pytest.fixture(scope="module")
def built_bundle(
    tmp_path_factory: pytest.TempPathFactory, small_backbone: Callable[[str], Path]
) -> Callable[[str], Path]:
    """Return a function to one backbone with its fp32 engine; what `run` asks for by kind is that one."""
    path = tmp_path_factory.mktemp("built") / "neco"
    shutil.copytree(small_backbone("neco"), path, ignore=shutil.ignore_patterns("engines"))
    assert main(["build", str(path), "--engine", "openvino"]) == 0
    return lambda kind: path


@release_and_asan
def test_every_function_refuses_what_a_backbone_cannot_do_and_touches_nothing(run: Run, build: str) -> None:
    run(build, "backbone")


def test_threads_share_models_are_refused_in_busy_sessions_and_cancel_each_other(run: Run) -> None:
    run("tsan", "threads")


def test_a_bundle_that_changes_on_disk_is_noticed_or_makes_no_difference(run: Run, tmp_path: Path) -> None:
    run("release", "changes", tmp_path)


def test_running_out_of_memory_in_a_run_is_an_error_that_loses_nothing(run: Run) -> None:
    run("asan", "faults", "50")  # a load's allocations are mostly LookWhere's too


def test_runs_after_a_warm_up_allocate_nothing_of_ours(run: Run) -> None:
    run("release", "allocations")


def test_the_example_writes_dense_features_that_are_pythons(
    built_bundle: Callable[[str], Path], engine_library: Path, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    program, bundle, out = BUILDS / "release" / "examples" / "features", built_bundle("neco"), tmp_path / "out.npy"
    images = [photographs[0][:200, :300], photographs[1]]
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.ppm")
    subprocess.run([program, bundle, tmp_path, out, engine_library], check=True, timeout=60)
    with saccade.load(bundle) as pipe:
        expected = np.concatenate([pipe(image).dense for image in images])
    np.testing.assert_array_equal(np.load(out), expected)
