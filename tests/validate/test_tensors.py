"""Our engines are Polygraphy runners, our files are Polygraphy's files, and its numbers are NumPy's."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator, RunResults, SimpleCompareFunc
from polygraphy.json import load_json

from saccade.engines.engine import Engine
from saccade.export.checkpoint import read_checkpoint
from saccade.export.reference import Reference, reference_case
from saccade.golden import Case, read_cases
from saccade.runtime.chain import Pipeline
from saccade.runtime.loading import load
from saccade.validate.parity import CaseResult, measure_case
from saccade.validate.tensors import REFERENCE, EngineRunner, _quiet, compare_tensors, reference_feeds
from saccade.validate.tolerances import TOLERANCES

POLYGRAPHY = Path(sys.executable).with_name("polygraphy")


@pytest.fixture(scope="module")
def pipeline(small_bundle: Callable[[str], Path]) -> Pipeline:
    return load(small_bundle("dinov2"), engine="openvino", note=lambda line: None)


@pytest.fixture(scope="module")
def results(pipeline: Pipeline) -> list[CaseResult]:
    """The golden cases, measured."""
    cases = read_cases(pipeline.bundle.path / "golden.npz")
    return [measure_case(pipeline, case, TOLERANCES["fp32"]) for case in cases]


@pytest.fixture(scope="module")
def written(
    pipeline: Pipeline, results: list[CaseResult], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[str, float]]]:
    """The folder of files, and the numbers returned."""
    folder = tmp_path_factory.mktemp("results") / "new" / "folder"
    return folder, compare_tensors(pipeline, results, folder)


def truth_of(case: Case) -> dict[str, np.ndarray]:
    output = case.output
    names = ("selector.score_map", "selector.prefix", "extractor.tokens", "extractor.cls")
    return dict(zip(names, (output.raw_score_map, output.prefix, output.tokens, output.pooled), strict=True))


@pytest.mark.parametrize("role", ["selector", "extractor"])
def test_an_engine_runs_beside_polygraphys_own_runner_on_the_same_graph(
    role: str, pipeline: Pipeline, results: list[CaseResult]
) -> None:
    feeds = reference_feeds(pipeline, [result.case for result in results])[role]
    ours = EngineRunner(pipeline.engines[role], "ours")
    theirs = OnnxrtRunner(SessionFromOnnx(str(pipeline.bundle.path / f"{role}.onnx")), "theirs")
    runs = Comparator.run([ours, theirs], data_loader=feeds)
    assert [len(iterations) for _, iterations in runs] == [2, 2]
    accuracy = Comparator.compare_accuracy(runs, compare_func=SimpleCompareFunc(rtol=0, atol=1e-4))
    assert bool(accuracy)
    assert not Comparator.compare_accuracy(runs, compare_func=SimpleCompareFunc(rtol=0, atol=1e-9))


@pytest.mark.parametrize("role", ["selector", "extractor"])
def test_a_runner_describes_its_inputs_as_polygraphys_own_does(role: str, pipeline: Pipeline) -> None:
    with OnnxrtRunner(SessionFromOnnx(str(pipeline.bundle.path / f"{role}.onnx"))) as theirs:
        expected = theirs.get_input_metadata(use_numpy_dtypes=False)
    with EngineRunner(pipeline.engines[role], "ours") as ours:
        found = ours.get_input_metadata(use_numpy_dtypes=False)
    assert list(found) == list(expected)
    for name, (dtype, shape) in expected.items():
        assert found[name].dtype == dtype
        assert list(found[name].shape) == [extent if isinstance(extent, int) else None for extent in shape]


def test_a_runners_outputs_outlive_its_next_run(pipeline: Pipeline, results: list[CaseResult]) -> None:
    feed = reference_feeds(pipeline, [results[0].case])["selector"][0]
    with EngineRunner(pipeline.engines["selector"], "ours") as runner:
        first = runner.infer(feed)
        kept = {name: array.copy() for name, array in first.items()}
        runner.infer({"lowres": feed["lowres"] + 1})
        assert all((first[name] == kept[name]).all() for name in kept)
        assert runner.last_inference_time() > 0


@pytest.mark.parametrize("role", ["selector", "extractor"])
def test_files_load_again_with_both_runners_and_the_very_numbers(
    role: str, written: tuple[Path, dict[str, dict[str, float]]], pipeline: Pipeline, results: list[CaseResult]
) -> None:
    loaded = RunResults.load(str(written[0] / f"{role}.outputs.json"))
    assert list(loaded.keys()) == [REFERENCE, "openvino-fp32"]
    feeds = load_json(str(written[0] / f"{role}.inputs.json"))
    for index, result in enumerate(results):
        truth, engine = truth_of(result.case), pipeline.engines[role].run(feeds[index])
        for name, array in engine.items():
            np.testing.assert_array_equal(loaded[REFERENCE][index][name], truth[f"{role}.{name}"])
            np.testing.assert_array_equal(loaded["openvino-fp32"][index][name], array)


def test_feeds_are_the_references_own_selection_and_prefix(pipeline: Pipeline, results: list[CaseResult]) -> None:
    case = results[1].case
    feed = reference_feeds(pipeline, [case])["extractor"][0]
    np.testing.assert_array_equal(feed["prefix"], case.output.prefix)
    image, columns = case.images[2], case.output.score_map.shape[2]
    row, column = divmod(int(case.output.indices[2, 3]), columns)
    patch = image[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14].transpose(2, 0, 1) / 255
    expected = (patch - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    np.testing.assert_allclose(feed["patches"][2, 3], expected.ravel(), atol=1e-5)


def test_numbers_equal_numpys_over_the_worst_case(
    written: tuple[Path, dict[str, dict[str, float]]], pipeline: Pipeline, results: list[CaseResult]
) -> None:
    feeds = reference_feeds(pipeline, [result.case for result in results])
    numbers = written[1]
    assert sorted(numbers) == sorted(truth_of(results[0].case))
    for output, found in numbers.items():
        role, name = output.split(".")
        pairs = [
            (pipeline.engines[role].run(feeds[role][i])[name].astype(np.float64).ravel().copy(),
             truth_of(result.case)[output].astype(np.float64).ravel())
            for i, result in enumerate(results)
        ]  # fmt: skip
        assert found["max_abs_error"] == pytest.approx(max(np.abs(a - b).max() for a, b in pairs), rel=1e-3)
        assert found["l2"] == pytest.approx(max(np.linalg.norm(a - b) for a, b in pairs), rel=1e-3)
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
        assert found["cosine"] == pytest.approx(min(cosines), abs=1e-6)
        ratios = [b.max() ** 2 / np.mean((a - b) ** 2) for a, b in pairs]
        assert found["psnr_db"] == pytest.approx(10 * np.log10(min(ratios)), abs=0.01)


def test_views_as_torch_gives_them_are_taken(
    pipeline: Pipeline, small_checkpoint: Callable[[str], Path], results: list[CaseResult], tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(small_checkpoint("dinov2"))
    references = (Reference(checkpoint, "features"), Reference(checkpoint, "features", torch.float64))
    case = reference_case(*references, list(results[1].case.images), 5)
    assert not case.output.tokens.flags.c_contiguous
    numbers = compare_tensors(pipeline, [measure_case(pipeline, case, TOLERANCES["fp32"])], tmp_path)
    assert numbers["extractor.tokens"]["max_abs_error"] < 1e-4


def test_nothing_is_printed_on_stdout(
    pipeline: Pipeline, results: list[CaseResult], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = replace(results[0].case.output, tokens=results[0].case.output.tokens + 1)
    worse = replace(results[0], case=replace(results[0].case, output=broken))
    compare_tensors(pipeline, [worse, results[1]], tmp_path)
    with _quiet():
        print("as Polygraphy does where 'colored' is not installed")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("broken", [0, 1])
def test_a_nan_in_any_case_is_in_the_numbers(broken: int, pipeline: Pipeline, results: list[CaseResult]) -> None:
    class Spoilt(Engine):
        def __init__(self, engine: Engine) -> None:
            self.role, self.inputs, self.outputs = engine.role, engine.inputs, engine.outputs

        def _run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            outputs = {name: array.copy() for name, array in pipeline.engines["extractor"].run(feed).items()}
            if len(feed["patches"]) == len(results[broken].case.images):
                outputs["tokens"][0, 0, 0] = np.nan
            return outputs

    engines = pipeline.engines | {"extractor": Spoilt(pipeline.engines["extractor"])}
    numbers = compare_tensors(Pipeline(pipeline.bundle, engines, pipeline.receipt), results)
    assert np.isnan([numbers["extractor.tokens"][name] for name in ("max_abs_error", "cosine", "l2")]).all()
    assert np.isfinite(list(numbers["extractor.cls"].values())).all()


def check_accuracy(file: Path, threshold: float) -> subprocess.CompletedProcess[str]:
    metric = ["--compare", "cosine_similarity", "--cosine-similarity-threshold", str(threshold)]
    return subprocess.run([POLYGRAPHY, "check", "accuracy", file, *metric], capture_output=True, text=True, check=False)


def test_polygraphys_own_tool_passes_our_files_and_fails_an_altered_one(
    pipeline: Pipeline, results: list[CaseResult], written: tuple[Path, dict[str, dict[str, float]]], tmp_path: Path
) -> None:
    ours = check_accuracy(written[0] / "extractor.accuracy.json", 0.999)
    assert ours.returncode == 0, ours.stdout + ours.stderr
    assert "Passed: 2/2 iterations" in ours.stdout
    rng, output = np.random.default_rng(0), results[0].case.output
    noisy = replace(output, tokens=output.tokens + 0.1 * rng.standard_normal(output.tokens.shape, np.float32))
    compare_tensors(pipeline, [replace(results[0], case=replace(results[0].case, output=noisy))], tmp_path)
    altered = check_accuracy(tmp_path / "extractor.accuracy.json", 0.99999)
    assert altered.returncode == 1
    assert "Passed: 0/1 iterations" in altered.stdout


def test_polygraphy_inspects_our_files(written: tuple[Path, dict[str, dict[str, float]]]) -> None:
    command = [POLYGRAPHY, "inspect", "data", written[0] / "selector.outputs.json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(word in said for word in (REFERENCE, "openvino-fp32", "score_map", "prefix"))
