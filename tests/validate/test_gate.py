"""The judge of converted graphs: its own references are the chain's, and good and bad graphs are told apart."""
from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import saccade
from saccade import SaccadeError, read_bundle
from saccade.export.variants import write_variant
from saccade.golden import Case, cases_of
from saccade.validate.gate import DECIDING, TOLD, Judge, Trial

KINDS = ("dinov2", "franca", "classify", "segment")
ROLES = ("selector", "extractor")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def judge(small_bundle: Callable[[str], Path], kind: str) -> Iterator[Judge]:
    with Judge(read_bundle(small_bundle(kind))) as judge:
        yield judge


@pytest.fixture
def cases(small_bundle: Callable[[str], Path], kind: str) -> list[Case]:
    return cases_of(read_bundle(small_bundle(kind)))


def spoil(source: Path, target: Path, block: int = 0) -> Path:
    """Write a graph with one norm of a block scaled wrongly."""
    model = ir.load(source)
    name = f"backbone.blocks.{block}.norm1.weight"
    weight = np.array(model.graph.initializers[name].const_value.numpy())
    weight[::2] *= 2
    model.graph.initializers[name].const_value = ir.tensor(weight, name=name)
    ir.save(model, target)
    return target


def test_the_fp32_graphs_hold_their_own_tolerance(judge: Judge, cases: list[Case]) -> None:
    result = judge.judge({role: judge.graph_path(role) for role in ROLES}, cases, "fp32")
    assert result.passed, result.measures


def test_a_case_of_an_image_is_what_the_chain_gives_on_it(
    judge: Judge, kind: str, small_bundle: Callable[[str], Path], photo_folder: Path
) -> None:
    path = photo_folder / "03.png"
    case = judge.case(path)
    with saccade.load(small_bundle(kind), engine="onnxruntime", note=lambda line: None) as pipe:
        expected = pipe(path)
    assert case.images.shape == (1, 126, 126, 3)
    np.testing.assert_array_equal(case.output.indices, expected.indices)
    pairs = {"raw_score_map": expected.raw_score_map, "score_map": expected.score_map, "prefix": expected.prefix}
    pairs |= {"tokens": expected.tokens}
    pairs |= {"pooled": np.empty((1, 0)) if kind == "segment" else expected.logits if kind == "classify" else expected.cls}
    for name, array in pairs.items():
        np.testing.assert_allclose(getattr(case.output, name), array, rtol=1e-4, atol=2e-5, err_msg=name)
    result = judge.judge({role: judge.graph_path(role) for role in ROLES}, [case], "fp32")
    assert result.passed
    assert result.measures[0].value < 1e-6


def test_a_feed_is_what_the_chain_gives_each_graph(judge: Judge, photo_folder: Path) -> None:
    path = photo_folder / "05.png"
    seen: dict[str, dict[str, np.ndarray]] = {}

    def watched(role: str, run: Callable[..., dict[str, np.ndarray]]) -> Callable[..., dict[str, np.ndarray]]:
        def watch(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            seen[role] = {name: np.array(array) for name, array in feed.items()}
            return run(feed)

        return watch

    feeds = {role: judge.feed(role, path) for role in ROLES}
    for role, engine in judge.reference.engines.items():
        engine.run = watched(role, engine.run)  # type: ignore[method-assign]
    judge.reference(path)
    assert seen.keys() == feeds.keys()
    for role in ROLES:
        assert seen[role].keys() == feeds[role].keys()
        for name, array in seen[role].items():
            np.testing.assert_array_equal(feeds[role][name], array, err_msg=name)


@pytest.mark.parametrize("role", ROLES)
def test_a_faithful_candidate_scores_better_than_a_rounded_and_that_better_than_a_broken_one(
    role: str, judge: Judge, cases: list[Case], tmp_path: Path
) -> None:
    source = judge.graph_path(role)
    write_variant(source, tmp_path / "bf16.onnx", "bf16")
    paths = {"same": source, "bf16": tmp_path / "bf16.onnx", "broken": spoil(source, tmp_path / "broken.onnx")}
    trials = [judge.try_one(role, name, path, cases, "bf16") for name, path in paths.items()]
    scores = [trial.score for trial in trials]
    assert scores == sorted(scores)
    assert scores[0] < 1e-3 * scores[1] < 1e-2 * scores[2]
    assert [trial.name for trial in trials] == list(paths)
    for trial in trials:
        assert list(trial.measures) == [name for name in TOLD[role] if name != "cls" or judge_has_cls(judge)]
        assert trial.score == trial.measures[DECIDING[role]]


def judge_has_cls(judge: Judge) -> bool:
    return bool(judge.reference.bundle.manifest.task != "segment")


@pytest.mark.parametrize("role", ROLES)
def test_one_broken_graph_of_the_two_is_seen(role: str, judge: Judge, cases: list[Case], tmp_path: Path) -> None:
    files = {each: judge.graph_path(each) for each in ROLES}
    files[role] = spoil(files[role], tmp_path / "broken.onnx")
    result = judge.judge(files, cases, "fp8")
    assert not result.passed
    failed = {measure.name for measure in result.measures if not measure.passed}
    assert ("score_error" in failed) == (role == "selector")
    assert ("patches_p1" in failed) == (role == "extractor")


def test_a_number_that_is_none_is_the_worst() -> None:
    values = {"a": float("nan"), "b": 7.0, "c": 1.0}
    trials = [Trial("selector", name, {"score_error": value}) for name, value in values.items()]
    assert [trial.name for trial in sorted(trials, key=lambda trial: trial.score)] == ["c", "b", "a"]


def test_a_changed_fp32_graph_is_not_judged_by(small_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    path = shutil.copytree(small_bundle("dinov2"), tmp_path / "bundle")
    spoil(path / "extractor.onnx", path / "extractor.onnx")
    with pytest.raises(SaccadeError, match=r"extractor\.onnx was changed or cut short"):
        Judge(read_bundle(path))


def test_a_file_that_is_no_graph_is_one_line(judge: Judge, cases: list[Case], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(SaccadeError, match=r"^openvino cannot compile .*text.onnx: "):
        judge.try_one("selector", "text", tmp_path / "text.onnx", cases, "fp16")
