"""A faithful engine passes, each kind of broken one fails by the number that should see it, and near ties are no fault."""
from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from saccade.engines.engine import Engine
from saccade.errors import SaccadeError
from saccade.export import checkpoint as checkpoints
from saccade.export import modules
from saccade.export.reference import Reference, reference_case
from saccade.golden import Case, read_cases, relative_difference
from saccade.runtime import kernels
from saccade.runtime.chain import Pipeline
from saccade.runtime.loading import load
from saccade.validate.parity import ParityResult, Tolerance, cosine_distances, measure_case, measure_parity, worst
from saccade.validate.tolerances import FLOOR_FACTOR, TOLERANCES

FP32 = TOLERANCES["fp32"]
CPU_ENGINES = ("openvino", "onnxruntime")
KINDS = ("dinov2", "franca", "classify", "segment")
TASKS = {"classify": "classify", "segment": "segment"}
Feed = dict[str, np.ndarray]


class Altered(Engine):
    """An engine whose inputs or outputs are changed on their way."""

    def __init__(
        self,
        engine: Engine,
        before: Callable[[Feed], Feed] = lambda feed: feed,
        after: Callable[[Feed], Feed] = lambda outputs: outputs,
    ) -> None:
        self.role, self.inputs, self.outputs = engine.role, engine.inputs, engine.outputs
        self._engine, self._before, self._after = engine, before, after

    def _run(self, feed: Any) -> Feed:
        outputs = self._engine.run(self._before(dict(feed)))
        return self._after({name: array.copy() for name, array in outputs.items()})


class TorchEngine(Engine):
    """One of the checkpoint's modules, run in PyTorch."""

    def __init__(self, module: nn.Module, engine: Engine) -> None:
        self.role, self.inputs, self.outputs = engine.role, engine.inputs, engine.outputs
        self._module = module

    @torch.inference_mode()
    def _run(self, feed: Any) -> Feed:
        results = self._module(*(torch.from_numpy(feed[name]) for name in self.inputs))
        return dict(zip(self.outputs, (tensor.contiguous().numpy() for tensor in results), strict=True))


@pytest.fixture(scope="session")
def opened(small_bundle: Callable[[str], Path]) -> Callable[..., Pipeline]:
    """Return a function that opens a small bundle, once per kind and engine."""
    found: dict[tuple[str, str], Pipeline] = {}

    def open_pipeline(kind: str, engine: str = "onnxruntime") -> Pipeline:
        if (kind, engine) not in found:
            found[kind, engine] = load(small_bundle(kind), engine=engine, note=lambda line: None)
        return found[kind, engine]

    return open_pipeline


@pytest.fixture(scope="session")
def golden(small_bundle: Callable[[str], Path]) -> Callable[[str], list[Case]]:
    """Return a function from a kind to its bundle's golden cases: one image of 9x9 cells, three of 3x5."""
    return lambda kind: read_cases(small_bundle(kind) / "golden.npz")


@pytest.fixture(scope="session")
def photo_case(
    small_checkpoint: Callable[[str], Path], photographs: list[np.ndarray]
) -> Callable[[str, int, tuple[int, int]], Case]:
    """Return a function that runs the PyTorch reference on both photographs, resized to a grid of patches. Read only."""

    @functools.cache
    def make(kind: str, k: int, grid: tuple[int, int] = (9, 14)) -> Case:
        checkpoint = checkpoints.read_checkpoint(small_checkpoint(kind))
        references = (
            Reference(checkpoint, TASKS.get(kind, "features"), kind_) for kind_ in (torch.float32, torch.float64)
        )
        size = (14 * grid[1], 14 * grid[0])
        images = [np.array(Image.fromarray(photo).resize(size)) for photo in photographs]
        return reference_case(*references, images, k)

    return make


def altered(pipeline: Pipeline, **changes: Callable[[Engine], Engine]) -> Pipeline:
    """Return the pipeline with engines replaced by role; both share what is loaded."""
    engines = {role: changes.get(role, lambda engine: engine)(engine) for role, engine in pipeline.engines.items()}
    return Pipeline(pipeline.bundle, engines, pipeline.receipt)


def changing(role: str, name: str, change: Callable[[np.ndarray], np.ndarray], side: str = "after") -> Any:
    """Return what `altered` needs to change one tensor."""
    return {role: lambda engine: Altered(engine, **{side: lambda arrays: arrays | {name: change(arrays[name])}})}


def failed(result: ParityResult) -> set[str]:
    return {measure.name for measure in result.measures if not measure.passed}


def values(result: ParityResult) -> dict[str, float]:
    return {measure.name: measure.value for measure in result.measures}


@pytest.mark.parametrize("engine", CPU_ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_faithful_engine_passes_with_room_to_spare(
    kind: str, engine: str, opened: Callable[..., Pipeline], golden: Callable[[str], list[Case]]
) -> None:
    result = measure_parity(opened(kind, engine), golden(kind))
    assert result.passed, values(result)
    assert {"score_error", "unexplained_swaps", "regret", "prefix", "patches", "patches_p1", "free_running"} <= set(
        values(result)
    )
    assert ("cls" in values(result)) == (kind != "segment")
    assert all(3 * measure.value <= measure.bound for measure in result.measures), values(result)


@pytest.mark.parametrize("k", [1, 4, 5, 20, 126], ids="k={}".format)
@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_a_faithful_engine_passes_on_photographs_of_any_shape_and_with_any_k(
    engine: str, k: int, opened: Callable[..., Pipeline], photo_case: Callable[..., Case]
) -> None:
    result = measure_parity(opened("dinov2", engine), [photo_case("dinov2", k)])
    assert result.passed, values(result)
    assert values(result)["regret"] == 0


def shifted_scores(maps: np.ndarray, share: float) -> np.ndarray:
    return (maps + share * maps.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def with_nan_in_the_last_image(array: np.ndarray) -> np.ndarray:
    array[-1, ..., 0] = np.nan
    return array


rolled = partial(np.roll, shift=1, axis=0)
FORCED = {"cls", "patches", "patches_p1"}
# name -> (what to change, the numbers that must fail, whether no other may)
BREAKAGES: dict[str, tuple[Any, set[str], bool]] = {
    "scores shifted beyond the bound": (
        changing("selector", "score_map", partial(shifted_scores, share=2 * FP32.score_error)), {"score_error"}, True),
    "scores negated": (changing("selector", "score_map", np.negative), {"score_error", "regret"}, False),
    "scores of another image": (changing("selector", "score_map", rolled), {"score_error", "regret"}, False),
    "prefix of another image": (changing("selector", "prefix", rolled), {"prefix", "free_running"}, True),
    "prefix rows swapped": (
        changing("selector", "prefix", lambda rows: rows[:, ::-1].copy()), {"prefix", "free_running"}, True),
    "prefix scaled": (changing("selector", "prefix", lambda rows: rows * np.float32(1.0001)), {"free_running"}, True),
    "prefix rows swapped in the extractor": (
        changing("extractor", "prefix", lambda rows: rows[:, ::-1].copy(), "before"), {"cls", "free_running"}, True),
    "positions of the next patch": (
        changing("extractor", "positions", lambda rows: np.roll(rows, 1, axis=1), "before"), FORCED, False),
    "cls of another image": (changing("extractor", "cls", rolled), {"cls", "free_running"}, True),
    "cls scaled": (changing("extractor", "cls", lambda cls: cls * np.float32(1.0001)), {"free_running"}, True),
    "tokens scaled": (changing("extractor", "tokens", lambda rows: rows * np.float32(1.0001)), {"free_running"}, True),
    "tokens of another image": (
        changing("extractor", "tokens", rolled), {"patches", "patches_p1", "free_running"}, True),
    "tokens of two patches swapped": (
        changing("extractor", "tokens", lambda rows: rows[:, [1, 0, *range(2, rows.shape[1])]].copy()),
        {"patches", "patches_p1", "free_running"}, True),
    "one token off": (
        changing("extractor", "tokens", lambda rows: rows + 1e-2 * (np.arange(rows.size) == 7).reshape(rows.shape)
                 .astype(np.float32)), {"patches", "free_running"}, False),
    "batch in another order": (
        changing("extractor", "patches", rolled, "before"), FORCED | {"free_running"}, True),
    "NaN in the tokens": (
        changing("extractor", "tokens", with_nan_in_the_last_image), {"patches", "patches_p1", "free_running"}, True),
    "NaN in cls": (changing("extractor", "cls", with_nan_in_the_last_image), {"cls", "free_running"}, True),
    "NaN in the prefix": (changing("selector", "prefix", with_nan_in_the_last_image), {"prefix", "free_running"}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_engine_is_caught_by_the_numbers_that_should_see_it(
    name: str, opened: Callable[..., Pipeline], golden: Callable[[str], list[Case]]
) -> None:
    changes, expected, no_other = BREAKAGES[name]
    result = measure_parity(altered(opened("dinov2"), **changes), golden("dinov2"))
    assert not result.passed
    assert failed(result) == expected if no_other else failed(result) >= expected, values(result)


def test_nan_scores_stop_parity_with_the_reason(
    opened: Callable[..., Pipeline], golden: Callable[[str], list[Case]]
) -> None:
    broken = altered(opened("dinov2"), **changing("selector", "score_map", with_nan_in_the_last_image))
    with pytest.raises(SaccadeError, match="score map holds NaN"):
        measure_parity(broken, golden("dinov2"))


@pytest.mark.parametrize("kind", ["classify", "segment"])
def test_a_wrong_head_is_caught(
    kind: str, opened: Callable[..., Pipeline], golden: Callable[[str], list[Case]]
) -> None:
    output, number = {"classify": ("logits", "cls"), "segment": ("tokens", "patches")}[kind]
    biased = np.float32([0.01, *[0] * 6, *[0] * 3])
    shifted = changing("extractor", output, lambda scores: scores + biased[: scores.shape[-1]])
    assert failed(measure_parity(altered(opened(kind), **shifted), golden(kind))) >= {number, "free_running"}


def torch_modules(
    pipeline: Pipeline, checkpoint: Path, task: str, change: Callable[[nn.Module], None] = lambda module: None
) -> Pipeline:
    """Return the pipeline with both engines replaced by the checkpoint's modules, each changed before."""
    found = checkpoints.load_modules(checkpoints.read_checkpoint(checkpoint), task)
    for module in found:
        change(module)
    return altered(pipeline, **{
        role: partial(TorchEngine, module) for role, module in zip(("selector", "extractor"), found, strict=True)
    })  # fmt: skip


def coarse_norms(module: nn.Module) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = 1e-5


@pytest.mark.parametrize("role", [modules.Selector, modules.Extractor])
@pytest.mark.parametrize("kind", KINDS)
def test_layer_norms_with_torchs_default_eps_are_caught_in_either_graph(
    kind: str,
    role: type[nn.Module],
    opened: Callable[..., Pipeline],
    small_checkpoint: Callable[[str], Path],
    golden: Callable[[str], list[Case]],
) -> None:
    def only_in_role(module: nn.Module) -> None:
        if isinstance(module, role):
            coarse_norms(module)

    broken = torch_modules(opened(kind), small_checkpoint(kind), TASKS.get(kind, "features"), only_in_role)
    assert "free_running" in failed(measure_parity(broken, golden(kind)))


@pytest.mark.parametrize("kind", ["dinov2", "classify", "segment"])
def test_tanh_gelu_is_caught(
    kind: str,
    opened: Callable[..., Pipeline],
    small_checkpoint: Callable[[str], Path],
    golden: Callable[[str], list[Case]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = torch_modules(opened(kind), small_checkpoint(kind), TASKS.get(kind, "features"))
    assert measure_parity(pipeline, golden(kind)).passed
    monkeypatch.setattr(modules.F, "gelu", partial(F.gelu, approximate="tanh"))
    assert failed(measure_parity(pipeline, golden(kind))) >= {"score_error", "prefix", "patches", "free_running"}


def test_a_gather_that_is_one_patch_off_is_caught(
    opened: Callable[..., Pipeline], golden: Callable[[str], list[Case]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = kernels.gather_patches

    def off_by_one(image: Any, table: Any, indices: Any, patch: int, grid: Any, *, out: Any) -> Any:
        return gather(image, table, (indices + 1) % (grid[0] * grid[1]), patch, grid, out=out)

    monkeypatch.setattr(kernels, "gather_patches", off_by_one)
    assert failed(measure_parity(opened("dinov2"), golden("dinov2"))) == FORCED | {"free_running"}


def test_positions_that_are_not_interpolated_are_caught_off_the_base_grid(
    opened: Callable[..., Pipeline], golden: Callable[[str], list[Case]]
) -> None:
    pipeline = altered(opened("dinov2"))
    table = pipeline.bundle.positions()
    pipeline._positions_on = lambda grid: table.reshape(-1, table.shape[2])[: grid[0] * grid[1]]  # type: ignore[method-assign]
    on_base, off_base = golden("dinov2")
    assert measure_parity(pipeline, [on_base]).passed
    assert failed(measure_parity(pipeline, [off_base])) == FORCED | {"free_running"}


def ranking(
    monkeypatch: pytest.MonkeyPatch, rerank: Callable[[np.ndarray, np.ndarray], Iterable[int]]
) -> None:
    """Replace the ranking: `rerank` may change the scores of one image, and returns its kept cells."""
    select = kernels.select

    def wrapped(score_map: Any, grid: Any, k: int, *, out: Any) -> Any:
        select(score_map, grid, k, out=out)
        indices, scores = out
        indices[:] = list(rerank(scores.reshape(-1), indices))
        return out

    monkeypatch.setattr(kernels, "select", wrapped)


def best(scores: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-scores, kind="stable")[:k]


def test_a_top_k_that_drops_the_last_is_caught(
    opened: Callable[..., Pipeline], photo_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranking(monkeypatch, lambda scores, kept: [*kept[:-1], best(scores, len(kept) + 1)[-1]])
    case = photo_case("dinov2", 20)
    result = measure_parity(opened("dinov2"), [case])
    assert failed(result) >= {"unexplained_swaps"}
    assert result.summary()["swaps"] == 4


def test_a_top_k_in_the_wrong_order_is_caught(
    opened: Callable[..., Pipeline], photo_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranking(monkeypatch, lambda scores, kept: kept[::-1].copy())
    assert failed(measure_parity(opened("dinov2"), [photo_case("dinov2", 20)])) == {"unexplained_swaps"}


def test_noise_that_explains_every_swap_is_caught_by_its_size_and_by_the_regret(
    opened: Callable[..., Pipeline], photo_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(scores: np.ndarray, kept: np.ndarray) -> np.ndarray:
        scores += scores.std() * np.random.default_rng(0).standard_normal(scores.size).astype(np.float32)
        return best(scores, len(kept))

    ranking(monkeypatch, noisy)
    result = measure_parity(opened("dinov2"), [photo_case("dinov2", 20)])
    assert failed(result) == {"score_error", "regret"}
    assert 0.1 < values(result)["regret"] < 1.5


def nearest_ranks(scores: np.ndarray) -> int:
    """Return the 0-based rank whose score lies nearest to the next one's."""
    return int(np.argmin(-np.diff(np.sort(scores.ravel().astype(np.float64))[::-1])))


def trading(case: Case, rank: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a ranking after a score error just large enough to trade the cells at `rank` and `rank` + 1."""
    truth = case.output.score_map.ravel()
    upper, lower = best(truth, rank + 2)[-2:]
    step = np.float32(0.6) * (truth[upper] - truth[lower])

    def rerank(scores: np.ndarray, kept: np.ndarray) -> np.ndarray:
        scores[upper] -= step
        scores[lower] += step
        return best(scores, len(kept))

    return rerank


def one_photo(case: Case) -> Case:
    output = replace(case.output, **{name: array[:1].copy() for name, array in vars(case.output).items()})
    return replace(case, images=case.images[:1], output=output)


@pytest.fixture
def near_tie(
    photo_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Case]:
    """Return a function that makes a case whose cut runs between the two nearest scores, which the engine trades."""

    def make() -> Case:
        rank = nearest_ranks(photo_case("dinov2", 5, (12, 17)).output.score_map[0])
        assert 5 < rank < 190
        case = one_photo(photo_case("dinov2", rank + 1, (12, 17)))
        ranking(monkeypatch, trading(case, rank))
        return case

    return make


def test_a_near_tie_at_the_cut_passes_and_its_swap_is_reported(
    opened: Callable[..., Pipeline], near_tie: Callable[[], Case]
) -> None:
    result = measure_parity(opened("dinov2"), [near_tie()])
    assert result.passed, values(result)
    summary = result.summary()
    assert summary["swaps"] == 2
    assert summary["swap_effect"] > 10 * FP32.free_running  # the features did move, and by no fault of the engine
    (selection,) = result.cases[0].selections
    assert 0 < selection.regret < FP32.regret
    assert all(0 <= distance <= 2 for _, distance in selection.swaps)


def rank_that_decides_the_fill(case: Case) -> int:
    """Return a rank whose trade with the next changes the dense output: both patches are equally far from some cell."""
    (kept,), (tokens,), (score_map,) = case.output.indices, case.output.tokens, case.output.score_map
    for rank in range(len(kept) - 1):
        order = np.arange(len(kept))
        order[[rank, rank + 1]] = rank + 1, rank
        pair = [kernels.fill(tokens[rows], kept[rows], score_map.shape)[None] for rows in (order, slice(None))]
        if relative_difference(*pair) > 1e-3:
            return rank
    raise AssertionError("no such rank; take another grid")


def test_a_near_tie_inside_the_selection_passes_although_it_moves_ties_of_the_fill(
    opened: Callable[..., Pipeline], photo_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = one_photo(photo_case("dinov2", 20, (12, 17)))
    rank, truth = rank_that_decides_the_fill(case), case.output.score_map.reshape(-1)
    upper, lower = case.output.indices[0, rank : rank + 2]
    truth[lower] = truth[upper] - np.float32(1e-4) * truth.std()  # as if the checkpoint had given this map
    trade = trading(case, rank)

    def rerank(scores: np.ndarray, kept: np.ndarray) -> np.ndarray:
        scores[[upper, lower]] = truth[[upper, lower]]
        return trade(scores, kept)

    ranking(monkeypatch, rerank)
    result = measure_parity(opened("dinov2"), [case])
    assert result.passed, values(result)
    assert result.summary()["swaps"] == 0
    assert result.summary()["swap_effect"] > 1e-3


@pytest.mark.parametrize("breakage", ["cls scaled", "tokens scaled"])
def test_a_swap_hides_no_wrong_scale(
    breakage: str, opened: Callable[..., Pipeline], near_tie: Callable[[], Case]
) -> None:
    case, changes = near_tie(), BREAKAGES[breakage][0]
    assert failed(measure_parity(altered(opened("dinov2"), **changes), [case])) == {"free_running"}


def test_a_swap_in_one_image_excuses_no_other_image_of_the_batch(
    opened: Callable[..., Pipeline], photo_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = nearest_ranks(photo_case("dinov2", 5, (12, 17)).output.score_map[0])
    both = photo_case("dinov2", rank + 1, (12, 17))
    trade, is_first = trading(one_photo(both), rank), iter([True, False])
    ranking(monkeypatch, lambda scores, kept: trade(scores, kept) if next(is_first) else kept.copy())
    scaled = changing("extractor", "cls", lambda cls: cls * np.array([[1], [1.0001]], np.float32))
    result = measure_parity(altered(opened("dinov2"), **scaled), [both])
    assert [len(selection.swaps) for selection in result.cases[0].selections] == [2, 0]
    assert failed(result) == {"free_running"}


def test_the_floor_is_recorded_and_is_float32s_distance_from_float64(
    golden: Callable[[str], list[Case]], small_checkpoint: Callable[[str], Path]
) -> None:
    checkpoint = checkpoints.read_checkpoint(small_checkpoint("dinov2"))
    case = golden("dinov2")[1]
    exact = Reference(checkpoint, "features", torch.float64)(case.images, 5, indices=case.output.indices)
    for name in ("pooled", "tokens"):
        ours, truth = (np.asarray(getattr(output, name), np.float64) for output in (case.output, exact))
        norms = [np.linalg.norm(ours[i] - truth[i]) / np.linalg.norm(truth[i]) for i in range(3)]
        assert case.floor[name] == pytest.approx(max(norms), rel=1e-3)
        assert 1e-8 < case.floor[name] < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_every_golden_case_has_a_floor_for_what_its_task_gives(kind: str, golden: Callable[[str], list[Case]]) -> None:
    expected = {"tokens"} if kind == "segment" else {"tokens", "pooled"}
    assert all(case.floor.keys() == expected and min(case.floor.values()) > 0 for case in golden(kind))


def test_the_floor_widens_the_bound_of_its_own_feature_only(
    opened: Callable[..., Pipeline], golden: Callable[[str], list[Case]]
) -> None:
    noisy = [replace(case, floor=case.floor | {"pooled": 1e-4}) for case in golden("dinov2")]
    (case, _), off = noisy, {"cls": np.float32(1.0005), "tokens": np.float32(1.0005)}
    verdicts = {}
    for name, factor in off.items():
        changes = changing("extractor", name, lambda array, factor=factor: array * factor)
        verdicts[name] = measure_case(altered(opened("dinov2"), **changes), case, FP32)
    assert verdicts["cls"].free_bound == pytest.approx(FLOOR_FACTOR * 1e-4)
    assert verdicts["cls"].measures["free_running"] == pytest.approx(5e-4, rel=0.01)
    assert verdicts["tokens"].free_bound == FP32.free_running


@pytest.mark.parametrize("broken", [0, 1])
def test_a_nan_is_found_in_whichever_case_it_is(
    broken: int, opened: Callable[..., Pipeline], golden: Callable[[str], list[Case]]
) -> None:
    size = golden("dinov2")[broken].output.indices.shape

    def spoil(cls: np.ndarray) -> np.ndarray:
        return np.full_like(cls, np.nan) if len(cls) == size[0] else cls

    result = measure_parity(altered(opened("dinov2"), **changing("extractor", "cls", spoil)), golden("dinov2"))
    assert failed(result) == {"cls", "free_running"}
    measured = result.summary()["measures"]
    assert measured["cls"] == {"value": None, "bound": FP32.cls, "passed": False}  # JSON has no NaN


def test_a_wrong_fill_is_caught(
    opened: Callable[..., Pipeline], golden: Callable[[str], list[Case]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = kernels.fill
    monkeypatch.setattr(kernels, "fill", lambda tokens, indices, grid: fill(tokens, indices[::-1].copy(), grid))
    assert failed(measure_parity(opened("segment"), golden("segment"))) == {"free_running"}


def test_the_worst_of_values_with_a_nan_is_nan() -> None:
    assert np.isnan(worst([1.0, float("nan"), 2.0]))
    assert worst([1.0, 3.0, 2.0]) == 3.0


def test_cosine_distances_are_exact_where_one_minus_cosine_is_not() -> None:
    truth = np.array([[3.0, 4.0]])
    turned = truth @ np.array([[1, 1e-7], [-1e-7, 1]])
    assert cosine_distances(5 * turned, truth) == pytest.approx(0.5e-14, rel=1e-6)
    assert cosine_distances(-truth, truth) == pytest.approx(2)


def test_a_vector_of_zeros_equals_another_and_is_far_from_everything_else() -> None:
    zero, other = np.zeros((2, 3)), np.array([[0.0, 0.0, 5.0], [1e-30, 0.0, 0.0]])
    assert cosine_distances(zero, zero).tolist() == [0, 0]
    assert cosine_distances(zero, other).tolist() == cosine_distances(other, zero).tolist() == [1, 1]
    assert np.isnan(cosine_distances(zero, other * np.nan)).all()


def blank(case: Case, *names: str) -> Case:
    """Return the case as a model would give it that says nothing: these outputs are zero throughout."""
    return replace(case, output=replace(case.output, **{name: 0 * getattr(case.output, name) for name in names}))


@pytest.mark.filterwarnings("error")
def test_a_reference_of_zeros_equals_an_engine_that_gives_zeros(
    opened: Callable[..., Pipeline], golden: Callable[[str], list[Case]]
) -> None:
    case = blank(golden("dinov2")[0], "raw_score_map", "score_map", "prefix", "tokens", "pooled")
    first = replace(case.output, indices=np.arange(case.output.indices.shape[1], dtype=np.int32)[None])
    silent = {role: partial(Altered, after=lambda found: {name: 0 * array for name, array in found.items()})
              for role in ("selector", "extractor")}  # fmt: skip
    result = measure_parity(altered(opened("dinov2"), **silent), [replace(case, output=first)])
    assert result.passed
    assert set(values(result).values()) == {0}


@pytest.mark.filterwarnings("error")
def test_a_reference_of_zeros_fails_an_engine_that_gives_anything_else_in_numbers_that_json_can_hold(
    opened: Callable[..., Pipeline], golden: Callable[[str], list[Case]]
) -> None:
    case = blank(golden("dinov2")[0], "raw_score_map", "score_map", "prefix", "tokens", "pooled")
    result = measure_parity(opened("dinov2"), [case])
    assert failed(result) >= {"score_error", "cls", "prefix", "patches", "patches_p1", "free_running"}
    measured = result.summary()["measures"]
    assert measured["score_error"]["value"] is None  # infinitely far, and JSON has no infinity
    assert measured["cls"]["value"] == pytest.approx(1)
    json.dumps(result.summary(), allow_nan=False)


def test_parity_without_images_is_refused(opened: Callable[..., Pipeline]) -> None:
    with pytest.raises(SaccadeError, match="at least one image"):
        measure_parity(opened("dinov2"), [])


def test_cases_are_told_one_by_one_as_they_are_measured(
    opened: Callable[..., Pipeline], golden: Callable[[str], list[Case]]
) -> None:
    told: list[int] = []
    result = measure_parity(opened("dinov2"), iter(golden("dinov2")), lambda done: told.append(len(done.case.images)))
    assert told == [1, 3]
    assert result.summary()["images"] == 4


def test_every_bound_is_positive() -> None:
    assert all(isinstance(bounds, Tolerance) for bounds in TOLERANCES.values())
    assert all(getattr(bounds, name) > 0 for bounds in TOLERANCES.values() for name in Tolerance.__struct_fields__)
