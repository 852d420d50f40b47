"""The chain on small bundles of every kind and on both CPU engines."""
from __future__ import annotations

import shutil
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

import saccade
from saccade import Output, Pipeline, SaccadeError
from saccade.bundle import Defaults
from saccade.engines.engine import Capabilities
from saccade.runtime import chain, loading, reference
from saccade.runtime import pipeline as images_of_pipeline

ENGINES = ("openvino", "onnxruntime")
KINDS = ("dinov2", "franca", "classify", "segment")
DIM, CLASSES, PREFIX = 128, {"classify": 10, "segment": 7}, {"dinov2": 5, "franca": 1, "classify": 5, "segment": 5}
PATCH, GRID = 14, 9
SIDE = GRID * PATCH
# A batch may take other kernels than its images one by one: float32 sums in another order over 128 terms.
ANOTHER_ORDER = {"rtol": 1e-4, "atol": 2e-5}

Open = Callable[[str, str], Pipeline]


@pytest.fixture(scope="module")
def pipelines(small_bundle: Callable[[str], Path]) -> Iterator[Open]:
    """Return a function from (kind, engine) to an opened pipeline."""
    opened: dict[tuple[str, str], Pipeline] = {}

    def open_one(kind: str, engine: str) -> Pipeline:
        if (kind, engine) not in opened:
            opened[kind, engine] = saccade.load(small_bundle(kind), engine=engine, note=lambda line: None)
        return opened[kind, engine]

    yield open_one
    for pipeline in opened.values():
        pipeline.close()


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipe(pipelines: Open, kind: str, engine: str) -> Pipeline:
    return pipelines(kind, engine)


@pytest.fixture(scope="module")
def plain(pipelines: Open) -> Pipeline:
    """Return the features bundle on the default engine, for what neither kind nor engine changes."""
    return pipelines("dinov2", "openvino")


def assert_same(ours: Output, theirs: Output, **tolerance: float) -> None:
    """Compare every array: bit for bit, or within a tolerance (indices always exactly)."""
    assert ours.arrays().keys() == theirs.arrays().keys()
    for name, array in ours.arrays().items():
        if tolerance and name != "indices":
            np.testing.assert_allclose(array, theirs.arrays()[name], err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(array, theirs.arrays()[name], err_msg=name)


# ---- what comes out


def test_output_holds_what_the_task_gives(pipe: Pipeline, kind: str, photographs: list[np.ndarray]) -> None:
    arrays = pipe(photographs, k=12).arrays()
    width = CLASSES["segment"] if kind == "segment" else DIM
    expected = {
        "indices": (2, 12), "score_map": (2, GRID, GRID), "prefix": (2, PREFIX[kind], DIM), "tokens": (2, 12, width)
    }  # fmt: skip
    expected |= {"classify": {"logits": (2, 10)}, "segment": {"dense": (2, 7, GRID, GRID)}}.get(kind, {"cls": (2, DIM)})
    assert {name: array.shape for name, array in arrays.items()} == expected
    assert {name: str(array.dtype) for name, array in arrays.items()} == dict.fromkeys(expected, "float32") | {
        "indices": "int32"
    }
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_a_pipeline_and_its_output_are_shown_in_a_line(plain: Pipeline, photographs: list[np.ndarray]) -> None:
    assert repr(plain) == "<Pipeline dinov2: lookwhere, openvino fp32, 126 x 126 px by default>"
    assert repr(plain.look(photographs)) == (
        "Look(score_map=float32 [2, 9, 9], prefix=float32 [2, 5, 128], raw_score_map=float32 [2, 44, 44])"
    )
    shown = repr(plain(photographs, k=12))
    assert shown.startswith("Output(score_map=float32 [2, 9, 9], ")
    assert "indices=int32 [2, 12], tokens=float32 [2, 12, 128], cls=float32 [2, 128])" in shown


def test_a_batch_equals_its_images_one_by_one(pipe: Pipeline, photographs: list[np.ndarray]) -> None:
    batch = [*photographs, photographs[0][::-1]]
    together = pipe(batch, k=12, dense=True)
    for i, image in enumerate(batch):
        alone = pipe(image, k=12, dense=True)
        for name, array in alone.arrays().items():
            np.testing.assert_allclose(together.arrays()[name][i], array[0], err_msg=name, **ANOTHER_ORDER)


def test_the_second_call_equals_the_first_bit_for_bit(pipe: Pipeline, photographs: list[np.ndarray]) -> None:
    assert_same(pipe(photographs, k=12, dense=True), pipe(photographs, k=12, dense=True))


def test_outputs_belong_to_the_caller(pipe: Pipeline, photographs: list[np.ndarray]) -> None:
    first = pipe(photographs[0], k=12, dense=True)
    kept = {name: array.copy() for name, array in (first.arrays() | {"raw": first.raw_score_map}).items()}
    pipe(photographs[1], k=12, dense=True)
    for name, array in (first.arrays() | {"raw": first.raw_score_map}).items():
        np.testing.assert_array_equal(array, kept[name], err_msg=name)
        array[...] = 0  # and may be written to


def test_the_engines_agree(pipelines: Open, kind: str, photographs: list[np.ndarray]) -> None:
    ours, theirs = (pipelines(kind, name)(photographs, k=20, size=(SIDE, 196), dense=True) for name in ENGINES)
    assert_same(ours, theirs, **ANOTHER_ORDER)


def test_the_selection_is_the_references_on_the_engines_own_map(pipe: Pipeline, photographs: list[np.ndarray]) -> None:
    out = pipe(photographs, k=20, size=(70, 196))
    for i in range(2):
        indices, scores = reference.select(out.raw_score_map[i], (5, 14), 20)
        np.testing.assert_array_equal(out.indices[i], indices)
        np.testing.assert_array_equal(out.score_map[i], scores)


def test_the_extractor_gets_the_patches_of_the_kept_cells(plain: Pipeline, photographs: list[np.ndarray]) -> None:
    (pixels,) = plain.pixels(photographs[0])
    cells = np.array([[0, 10, 80]], np.int32)
    patches, positions = plain.gather([pixels], cells)
    image = plain.bundle.manifest.image
    for row, cell in enumerate(cells[0]):
        top, left = cell // GRID * PATCH, cell % GRID * PATCH
        block = pixels[top : top + PATCH, left : left + PATCH].astype(np.float64) / 255
        expected = ((block - image.mean) / image.std).transpose(2, 0, 1).ravel()
        np.testing.assert_allclose(patches[0, row], expected, atol=1e-6)
        np.testing.assert_array_equal(positions[0, row], plain.bundle.positions()[cell // GRID, cell % GRID])


# ---- k, size and fit


@pytest.mark.parametrize("k", [1, 5, GRID * GRID])
def test_every_k_from_one_to_all(plain: Pipeline, k: int, photographs: list[np.ndarray]) -> None:
    out = plain(photographs, k=k)
    assert out.tokens.shape == (2, k, DIM)
    ranking = plain(photographs, k=GRID * GRID).indices
    np.testing.assert_array_equal(out.indices, ranking[:, :k])
    assert sorted(ranking[0].tolist()) == list(range(GRID * GRID))


def test_k_may_change_from_call_to_call(pipe: Pipeline, photographs: list[np.ndarray]) -> None:
    before = pipe(photographs[0], k=12)
    assert pipe(photographs[0], k=30).tokens.shape[1] == 30
    assert_same(pipe(photographs[0], k=12), before)


def test_size_may_change_from_call_to_call(pipe: Pipeline, photographs: list[np.ndarray]) -> None:
    before = pipe(photographs[0], k=12)
    assert pipe(photographs[0], k=12, size=(56, 210)).score_map.shape == (1, 4, 15)
    assert_same(pipe(photographs[0], k=12), before)


def test_batch_may_change_from_call_to_call(pipe: Pipeline, photographs: list[np.ndarray]) -> None:
    before = pipe(photographs[0], k=12)
    assert pipe(photographs * 5, k=12).tokens.shape[0] == 10  # more than the 8 of a TensorRT profile
    assert_same(pipe(photographs[0], k=12), before)


@pytest.mark.parametrize("size", [(14, 70), (70, 14), (98, 280)])
def test_sizes_need_not_be_square(pipe: Pipeline, size: tuple[int, int], photographs: list[np.ndarray]) -> None:
    rows, columns = size[0] // PATCH, size[1] // PATCH
    out = pipe(photographs, k=5, size=size, dense=True)
    assert out.score_map.shape == (2, rows, columns)
    assert out.dense is not None
    assert out.dense.shape[2:] == (rows, columns)
    assert out.indices.max() < rows * columns


def test_one_patch_is_the_smallest_grid(plain: Pipeline, photographs: list[np.ndarray]) -> None:
    assert plain(photographs, k=1, size=PATCH).indices.tolist() == [[0], [0]]


@pytest.mark.parametrize("size", [SIDE, (SIDE, SIDE), [SIDE, SIDE], np.int64(SIDE), (np.int32(SIDE), SIDE)])
def test_a_size_is_one_integer_or_two_of_any_kind(plain: Pipeline, size: int, photographs: list[np.ndarray]) -> None:
    assert_same(plain(photographs, k=5, size=size), plain(photographs, k=5))


def test_the_defaults_are_the_bundles(plain: Pipeline, photographs: list[np.ndarray]) -> None:
    assert_same(plain(photographs), plain(photographs, size=SIDE, k_ratio=0.1))
    assert plain(photographs).indices.shape == (2, int(0.1 * GRID * GRID))


def test_the_default_ratio_counts_the_cells_of_the_runs_own_grid(plain: Pipeline, photographs: list[np.ndarray]) -> None:
    assert plain(photographs[0], size=(140, 280)).indices.shape == (1, 20)


def test_k_ratio_keeps_its_share_rounded_down(plain: Pipeline, photographs: list[np.ndarray]) -> None:
    assert plain(photographs[0], k_ratio=0.25).indices.shape == (1, 20)  # 20.25 of 81
    assert plain(photographs[0], k_ratio=1).indices.shape == (1, 81)


def test_an_explicit_k_of_the_bundle_stays_k_at_every_size(
    small_bundle: Callable[[str], Path], photographs: list[np.ndarray]
) -> None:
    bundle = saccade.read_bundle(small_bundle("dinov2"))
    manifest = msgspec.structs.replace(bundle.manifest, defaults=Defaults(size=(SIDE, SIDE), k=7))
    with saccade.load(saccade.Bundle(bundle.path, manifest)) as pipe:
        assert pipe(photographs[0]).indices.shape == (1, 7)
        assert pipe(photographs[0], size=(140, 280)).indices.shape == (1, 7)


def test_native_fit_keeps_the_images_own_pixels(plain: Pipeline, photographs: list[np.ndarray]) -> None:
    image = photographs[0][:115, :160]
    out = plain(image, k=12, fit="native")
    assert out.score_map.shape == (1, 8, 11)
    assert_same(out, plain(image[:112, :154], k=12, size=(112, 154)))


def test_crop_runs_on_the_centre_of_the_image_whose_shorter_side_fits(
    plain: Pipeline, photographs: list[np.ndarray]
) -> None:
    covering = np.asarray(Image.fromarray(photographs[0]).resize((189, 126), Image.Resampling.BICUBIC))  # 640 x 427
    assert_same(plain(photographs[0], k=12, fit="crop"), plain(covering[:, 31 : 31 + 126], k=12))


@pytest.mark.parametrize("wrap", [str, Path, Image.open], ids=["str", "path", "pil"])
def test_paths_and_pil_images_give_what_their_pixels_give(
    plain: Pipeline, wrap: Callable[[Path], object], photographs: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(photographs[0]).save(path)
    assert_same(plain(wrap(path), k=12), plain(photographs[0], k=12))
    assert_same(plain([wrap(path), photographs[1]], k=12), plain(np.stack(photographs), k=12))


@pytest.mark.parametrize(("room", "kept"), [(0, [5]), (12 - 1, [4, 5]), (12, [3, 4, 5]), (15, [1, 2, 3, 4, 5])])
def test_position_tables_are_kept_up_to_a_number_of_bytes_and_the_oldest_go_first(
    small_bundle: Callable[[str], Path], room: int, kept: list[int], photographs: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(chain, "MAX_CACHED_BYTES", room * DIM * 4)  # room is in cells
    with saccade.load(small_bundle("dinov2"), build=False) as pipe:
        first = pipe(photographs[0], k=1, size=(14, PATCH))
        for columns in range(1, 6):
            pipe(photographs[0], k=1, size=(14, columns * PATCH))
        assert list(pipe._positions) == [(1, columns) for columns in kept]
        assert_same(pipe(photographs[0], k=1, size=(14, PATCH)), first)


def test_images_are_decoded_one_by_one_as_they_are_asked_for(
    plain: Pipeline, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    decode, fit = images_of_pipeline.read_rgb, images_of_pipeline.fit_image
    note = told.append
    monkeypatch.setattr(
        images_of_pipeline, "read_rgb", lambda image, name: note(f"decode {name}") or decode(image, name)
    )
    monkeypatch.setattr(images_of_pipeline, "fit_image", lambda *arguments: told.append("fit") or fit(*arguments))
    clock = images_of_pipeline.Clock()
    fitted = plain.each_fitted(photographs, clock=clock)
    assert told == []
    np.testing.assert_array_equal(next(fitted), plain.pixels(photographs[0])[0])
    told.clear()
    next(fitted)
    assert told == ["decode image 1", "fit"]
    assert list(clock.timings_ms) == ["decode", "fit"]


def test_no_more_than_one_decoded_image_is_held(plain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[weakref.ref[np.ndarray]] = []

    def decode(image: object, name: str) -> np.ndarray:
        assert not [reference for reference in decoded if reference() is not None]
        array = np.zeros((200, 300, 3), np.uint8)
        decoded.append(weakref.ref(array))
        return array

    monkeypatch.setattr(images_of_pipeline, "read_rgb", decode)
    for fit in ("squash", "crop"):
        assert len(plain.pixels(["a.jpg", "b.jpg", "c.jpg"], fit=fit)) == 3
    assert len(decoded) == 6


# ---- dense, look, extract


def test_kept_cells_are_reproduced_in_dense(pipe: Pipeline, photographs: list[np.ndarray]) -> None:
    out = pipe(photographs, k=12, dense=True)
    assert out.dense is not None
    flat = out.dense.reshape(2, out.dense.shape[1], -1)
    for i in range(2):
        np.testing.assert_allclose(flat[i][:, out.indices[i]].T, out.tokens[i], rtol=1e-5, atol=1e-6)


def test_dense_is_the_references_fill_of_the_tokens(pipe: Pipeline, photographs: list[np.ndarray]) -> None:
    out = pipe(photographs, k=7, size=(70, 112), dense=True)
    assert out.dense is not None
    for i in range(2):
        np.testing.assert_array_equal(out.dense[i], reference.fill(out.tokens[i], out.indices[i], (5, 8)))


def test_dense_with_every_patch_kept_is_the_tokens_in_their_places(plain: Pipeline, photographs: list[np.ndarray]) -> None:
    out = plain(photographs[0], k=GRID * GRID, dense=True)
    assert out.dense is not None
    placed = np.empty_like(out.tokens[0])
    placed[out.indices[0]] = out.tokens[0]
    np.testing.assert_allclose(out.dense[0].reshape(DIM, -1).T, placed, rtol=1e-4, atol=1e-5)


def test_dense_comes_only_on_request_but_always_for_segment(
    pipe: Pipeline, kind: str, photographs: list[np.ndarray]
) -> None:
    out = pipe(photographs[0], k=12)
    assert (out.dense is not None) == (kind == "segment")
    assert ("fill" in out.timings_ms) == (kind == "segment")


def test_look_gives_the_runs_own_map(pipe: Pipeline, photographs: list[np.ndarray]) -> None:
    look = pipe.look(photographs, size=(70, 196))
    out = pipe(photographs, k=12, size=(70, 196))
    for name in ("score_map", "prefix", "raw_score_map"):
        np.testing.assert_array_equal(getattr(look, name), getattr(out, name), err_msg=name)


def test_look_runs_no_extractor(plain: Pipeline, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain.engines["extractor"], "run", lambda feed: pytest.fail("the extractor ran"))
    assert "extractor" not in plain.look(photographs[0]).timings_ms


def test_extract_with_the_runs_own_cells_equals_the_run(pipe: Pipeline, photographs: list[np.ndarray]) -> None:
    out = pipe(photographs, k=12, dense=True)
    forced = pipe.extract(pipe.pixels(photographs), out.indices, out.prefix, dense=True)
    for name in ("indices", "prefix", "tokens", "cls", "logits", "dense"):
        np.testing.assert_array_equal(getattr(forced, name), getattr(out, name), err_msg=name)


def test_extract_follows_the_order_of_the_cells(plain: Pipeline, photographs: list[np.ndarray]) -> None:
    out = plain(photographs[0], k=12)
    turned = plain.extract(plain.pixels(photographs[0]), out.indices[:, ::-1], out.prefix)
    np.testing.assert_allclose(turned.tokens[:, ::-1], out.tokens, **ANOTHER_ORDER)
    np.testing.assert_allclose(turned.cls, out.cls, **ANOTHER_ORDER)


def test_timings_name_every_stage(plain: Pipeline, photographs: list[np.ndarray]) -> None:
    stages = ["decode", "fit", "resize", "selector", "select", "gather", "extractor", "fill"]
    timings = plain(photographs[0], k=12, dense=True).timings_ms
    assert list(timings) == stages
    assert all(value >= 0 for value in timings.values())


# ---- what is refused


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "k 0": ({"k": 0}, "k 0 is not to be had: this grid has 81 patches, so give 1 to 81"),
    "k of halves": ({"k": 3.5}, "k 3.5 is not a whole number; this grid has 81 patches, so give 1 to 81"),
    "k as text": ({"k": "3"}, "k '3' is not a whole number"),
    "k as truth": ({"k": True}, "k True is not a whole number"),
    "k negative": ({"k": -1}, "k -1 is not to be had"),
    "k too large": ({"k": 82}, "k 82 is not to be had: this grid has 81 patches, so give 1 to 81"),
    "k for the grid": ({"k": 5, "size": 28}, "k 5 is not to be had: this grid has 4 patches, so give 1 to 4"),
    "k below the fill": (
        {"k": 4, "dense": True}, "k 4 is too small for dense output, which blends the 5 nearest patches; give at least 5"
    ),
    "both": ({"k": 5, "k_ratio": 0.1}, "give k or k_ratio, not both"),
    "ratio 0": ({"k_ratio": 0.0}, "k_ratio 0.0 is not a share of the patches; give more than 0 and at most 1"),
    "ratio above 1": ({"k_ratio": 1.01}, "k_ratio 1.01 is not a share"),
    "ratio nan": ({"k_ratio": float("nan")}, "k_ratio nan is not a share"),
    "ratio as text": ({"k_ratio": "0.1"}, "k_ratio '0.1' is not a share of the patches"),
    "ratio as truth": ({"k_ratio": True}, "k_ratio True is not a share"),
    "ratio of nothing": ({"k_ratio": 0.01}, "k_ratio 0.01 keeps none of this grid's 81 patches; give a larger one, or k"),
    "default ratio": ({"size": 28}, "k_ratio 0.1 keeps none of this grid's 4 patches"),
    "size": ({"size": 130}, "size 130x130 is not a multiple of the 14 px patch; the nearest is 126x126"),
    "size 0": ({"size": 0}, "size 0x0 is not a multiple of the 14 px patch; the nearest is 14x14"),
    "size too large": ({"size": 14 * 149}, "size 2086x2086 makes 22201 patches; at most 21904 are supported"),
    "size of one": ({"size": (126,)}, "size (126,) is neither whole pixels nor (height, width)"),
    "size as text": ({"size": "126"}, "size '126' is neither whole pixels nor (height, width)"),
    "size of halves": ({"size": 126.5}, "size 126.5 is neither whole pixels nor (height, width)"),
    "fit": ({"fit": "stretch"}, "fit 'stretch' is unknown; choose from: squash, crop, native"),
    "no fit": ({"fit": None}, "fit None is unknown; choose from: squash, crop, native"),
    "native size": ({"fit": "native", "size": 126}, "size and fit native exclude each other"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_cannot_be_is_refused_before_any_network(
    plain: Pipeline, case: str, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for network in plain.engines.values():
        monkeypatch.setattr(network, "run", lambda feed: pytest.fail("a network ran for nothing"))
    options, message = REFUSED[case]
    with pytest.raises(SaccadeError) as error:
        plain(photographs, **options)
    assert message in str(error.value)


def test_segment_refuses_a_k_below_its_fill(pipelines: Open, photographs: list[np.ndarray]) -> None:
    with pytest.raises(SaccadeError, match="k 4 is too small for dense output"):
        pipelines("segment", "openvino")(photographs, k=4)


@pytest.mark.parametrize("nothing", [[], (), np.empty((0, 20, 30, 3), np.uint8)], ids=["list", "tuple", "batch"])
def test_no_images_are_refused(plain: Pipeline, nothing: list[np.ndarray]) -> None:
    with pytest.raises(SaccadeError, match="no images given"):
        plain(nothing)


def test_a_bad_image_of_several_is_named_by_its_place(plain: Pipeline, photographs: list[np.ndarray]) -> None:
    with pytest.raises(SaccadeError, match="image 1: arrays must be uint8"):
        plain([photographs[0], photographs[1].astype(np.float32)])


def test_native_images_of_different_grids_are_refused(plain: Pipeline, photographs: list[np.ndarray]) -> None:
    with pytest.raises(SaccadeError, match="images of one run share a grid"):
        plain([photographs[0], photographs[1][:200]], fit="native")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(
    plain: Pipeline, value: float, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    selector = plain.engines["selector"]
    run = selector.run

    def overflowed(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {name: array.copy() for name, array in run(feed).items()}
        found["score_map"][-1, 3, 4] = value
        return found

    monkeypatch.setattr(selector, "run", overflowed)
    for look in (lambda: plain(photographs, k=12), lambda: plain.look(photographs)):
        with pytest.raises(SaccadeError, match="score map holds NaN or infinity in 1 of 1936 values: the selector overflow"):
            look()


FORCED: dict[str, tuple[dict[str, object], str]] = {
    "no images": ({"images": []}, "no images given"),
    "a path": ({"images": ["a.jpg", "b.jpg"]}, "image 0: must be a uint8 array (height, width, 3), got str"),
    "grey": ({"images": [np.zeros((28, 42), np.uint8)] * 2}, "image 0: must be a uint8 array (height, width, 3)"),
    "floats": ({"images": np.zeros((2, 28, 42, 3))}, "image 0: must be a uint8 array (height, width, 3), got float64"),
    "two sizes": (
        {"images": [np.zeros((28, 42, 3), np.uint8), np.zeros((28, 28, 3), np.uint8)]},
        "images must be of one size: image 0 is 42 x 28 px, image 1 is 28 x 28 px; fit them",
    ),
    "odd size": (
        {"images": np.zeros((2, 28, 41, 3), np.uint8)},
        "size 28x41 is not a multiple of the 14 px patch; the nearest is 28x42",
    ),
    "float cells": ({"indices": np.zeros((2, 3))}, "indices must be an array of whole numbers [2, k], got float64 [2, 3]"),
    "a list of cells": ({"indices": [[0, 1], [2, 3]]}, "indices must be an array of whole numbers [2, k], got list"),
    "cells of one image": ({"indices": np.zeros((1, 3), np.int32)}, "whole numbers [2, k], got int32 [1, 3]"),
    "flat cells": ({"indices": np.zeros(2, np.int32)}, "whole numbers [2, k], got int32 [2]"),
    "no cells": ({"indices": np.zeros((2, 0), np.int32)}, "k 0 is not to be had: this grid has 6 patches, so give 1 to 6"),
    "a cell too high": (
        {"indices": np.array([[0, 1], [5, 6]])}, "indices must name cells of the 2x3 grid; give 0 to 5"
    ),
    "a cell below 0": ({"indices": np.array([[0, 1], [5, -1]])}, "indices must name cells of the 2x3 grid"),
    "a cell that int32 would wrap": ({"indices": np.array([[0, 1], [5, 1 << 32]])}, "indices must name cells"),
    "a cell twice": (
        {"indices": np.array([[0, 1], [5, 5]])}, "indices of image 1 name a cell twice; give each cell once"
    ),
    "few cells for dense": ({"dense": True}, "k 3 is too small for dense output"),
    "prefix of one image": ({"prefix": np.zeros((1, 5, DIM), np.float32)}, "floats [2, 5, 128], got float32 [1, 5, 128]"),
    "narrow prefix": ({"prefix": np.zeros((2, 5, DIM - 1), np.float32)}, "got float32 [2, 5, 127]"),
    "whole prefix": ({"prefix": np.zeros((2, 5, DIM), np.int64)}, "got int64 [2, 5, 128]"),
    "no prefix": ({"prefix": None}, "prefix must be an array of floats [2, 5, 128], got NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORCED)
def test_forcing_what_no_selector_gives_is_refused_before_the_extractor(
    plain: Pipeline, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain.engines["extractor"], "run", lambda feed: pytest.fail("the extractor ran for nothing"))
    given = {
        "images": np.zeros((2, 28, 42, 3), np.uint8),
        "indices": np.array([[0, 1, 2], [5, 4, 3]]),
        "prefix": np.zeros((2, 5, DIM), np.float32),
    }
    wrong, message = FORCED[case]
    with pytest.raises(SaccadeError) as error:
        plain.extract(**given | wrong)
    assert message in str(error.value)


@pytest.mark.parametrize("kind_of_number", [np.int64, np.int32, np.uint8])
def test_extract_takes_cells_of_any_whole_number_type(
    plain: Pipeline, photographs: list[np.ndarray], kind_of_number: type[np.generic]
) -> None:
    out = plain(photographs, k=12)
    forced = plain.extract(plain.pixels(photographs), out.indices.astype(kind_of_number), out.prefix.astype(np.float64))
    assert_same(forced, plain.extract(np.stack(plain.pixels(photographs)), out.indices, out.prefix))


# ---- loading


def test_load_refuses_an_unknown_engine(small_bundle: Callable[[str], Path]) -> None:
    with pytest.raises(SaccadeError, match="unknown engine 'tvm'; choose from: openvino, onnxruntime, tensorrt"):
        saccade.load(small_bundle("dinov2"), engine="tvm")


def test_load_refuses_a_negative_number_of_threads(small_bundle: Callable[[str], Path]) -> None:
    with pytest.raises(SaccadeError, match="threads -1 is out of range; give 0 for the engine's own choice"):
        saccade.load(small_bundle("dinov2"), threads=-1)


@pytest.mark.parametrize("threads", ["2", True, 2.0, None])
def test_load_refuses_a_number_of_threads_that_is_no_number(small_bundle: Callable[[str], Path], threads: object) -> None:
    with pytest.raises(SaccadeError, match=f"threads {threads!r} is out of range; give 0 for the engine's own choice"):
        saccade.load(small_bundle("dinov2"), threads=threads)


def test_load_refuses_no_engine(small_bundle: Callable[[str], Path]) -> None:
    with pytest.raises(SaccadeError, match="unknown engine None; choose from: openvino"):
        saccade.load(small_bundle("dinov2"), engine=None)


@pytest.mark.parametrize("bundle", [None, 123, b"bundle"])
def test_load_refuses_what_is_no_bundle(bundle: object) -> None:
    with pytest.raises(SaccadeError, match=f"bundle {bundle!r} is neither a path nor an opened bundle; give a bundle"):
        saccade.load(bundle)


def test_load_refuses_an_engine_that_cannot_run_here_before_it_builds_one(
    small_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    builds_only = Capabilities(engine="x", version="1", can_build=True, can_run=False, missing="no GPU here; get one")
    monkeypatch.setattr(loading.store, "backend", lambda name: types.SimpleNamespace(capabilities=lambda: builds_only))
    monkeypatch.setattr(loading.store, "ensure", lambda *_, **__: pytest.fail("an engine was built"))
    with pytest.raises(SaccadeError, match="no GPU here; get one"):
        saccade.load(small_bundle("dinov2"), engine="tensorrt-rtx")


def test_threads_change_no_result(small_bundle: Callable[[str], Path], engine: str, photographs: list[np.ndarray]) -> None:
    one, two = (saccade.load(small_bundle("dinov2"), engine=engine, threads=threads, build=True) for threads in (1, 2))
    with one, two:
        assert_same(one(photographs, k=12), two(photographs, k=12), **ANOTHER_ORDER)


def test_load_takes_a_path_a_text_and_an_opened_bundle(
    small_bundle: Callable[[str], Path], plain: Pipeline, photographs: list[np.ndarray]
) -> None:
    path = small_bundle("dinov2")
    for bundle in (path, str(path), saccade.read_bundle(path)):
        with saccade.load(bundle, build=False) as pipe:
            assert_same(pipe(photographs, k=12), plain(photographs, k=12))


@pytest.fixture
def unbuilt(small_bundle: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(small_bundle("dinov2"), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))


def test_load_says_on_stderr_what_it_builds(unbuilt: Path, engine: str, capfd: pytest.CaptureFixture[str]) -> None:
    saccade.load(unbuilt, engine=engine).close()
    assert capfd.readouterr() == ("", f"saccade: no {engine} fp32 engine is built yet: building it\n")
    saccade.load(unbuilt, engine=engine).close()
    assert capfd.readouterr() == ("", "")


def test_load_tells_its_caller_instead_where_asked(unbuilt: Path, engine: str, capfd: pytest.CaptureFixture[str]) -> None:
    notes: list[str] = []
    phases: list[str] = []
    saccade.load(unbuilt, engine=engine, note=notes.append, progress=phases.append).close()
    assert notes == [f"no {engine} fp32 engine is built yet: building it"]
    assert {phase.split(":")[0] for phase in phases} == {"selector", "extractor", "load"}
    assert capfd.readouterr() == ("", "")


def test_load_builds_nothing_where_told_so(unbuilt: Path, engine: str) -> None:
    with pytest.raises(SaccadeError, match=rf"no {engine} fp32 engine is built yet; 'saccade build .*' builds it"):
        saccade.load(unbuilt, engine=engine, build=False)
    assert not (unbuilt / "engines").exists()
