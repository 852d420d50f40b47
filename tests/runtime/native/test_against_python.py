"""The C library and the Python chain are one thing: the same engine files give the same bits, and the same is refused."""
from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from binding import BGR, WARNING, Bundle, Library, Model, NativeError, Session, Status, shapes_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS

import saccade
from saccade import Output, Pipeline, SaccadeError
from saccade.engines import store

KINDS = ("dinov2", "franca", "classify", "segment")
CASES = [(kind, precision) for kind in KINDS for precision in ("fp32", "bf16", "fp16")] + [("converted", "int8")]
PATCH = 14
STAGES = ("resize_ms", "selector_ms", "select_ms", "gather_ms", "extractor_ms", "fill_ms")


class Both(NamedTuple):
    """One built engine, opened by either."""

    python: Pipeline
    native: Session


Open = Callable[[str, str], Both]


@pytest.fixture(scope="module")
def opened(
    library: Library, engine_library: Path, small_bundle: Callable[[str], Path], request: pytest.FixtureRequest
) -> Iterator[Open]:
    """Return a function from (kind, precision) to both chains; Python builds what is missing, C must find it."""
    found: dict[tuple[str, str], Both] = {}
    handles = []

    def open_both(kind: str, precision: str) -> Both:
        if precision not in store.backend("openvino").capabilities().precisions:
            pytest.skip(f"this CPU has no {precision} instructions")
        if (kind, precision) not in found:
            path = request.getfixturevalue("converted_bundle") if kind == "converted" else small_bundle(kind)
            pipe = saccade.load(path, engine="openvino", precision=precision, note=lambda line: None)
            bundle = Bundle(library, path)
            model = Model(bundle, precision, engine_library)
            session = Session(model)
            handles.extend([pipe, session, model, bundle])
            found[kind, precision] = Both(pipe, session)
        return found[kind, precision]

    yield open_both
    for handle in handles:
        handle.__exit__(None, None, None)


@pytest.fixture(scope="module")
def plain(opened: Open) -> Both:
    """Return the features bundle in fp32, for what neither kind nor precision changes."""
    return opened("dinov2", "fp32")


def assert_equal_to_the_last_bit(ours: dict[str, np.ndarray], theirs: Output) -> None:
    expected = theirs.arrays() | {"raw_score_map": theirs.raw_score_map}
    assert ours.keys() == expected.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array.view(np.int32), expected[name].view(np.int32), err_msg=name)


# name -> (where the images lie in the photographs, options)
CROPS = {"one": [(200, 300)], "three": [(200, 300), (126, 126), (427, 640)]}
REQUESTS = {
    "the defaults": ("one", {}),
    "three images of three sizes": ("three", {}),
    "a wide grid": ("one", {"size": (84, 210), "k": 31}),
    "a tall grid": ("three", {"size": (210, 84), "k": 40}),
    "one row": ("one", {"size": (14, 140), "k": 5}),
    "all patches": ("one", {"size": (98, 98), "k": 49}),
    "a share of them": ("three", {"size": (140, 112), "k_ratio": 0.37}),
    "the centre": ("three", {"size": (112, 126), "fit": "crop", "k": 20}),
    "its own size": ("one", {"fit": "native", "k_ratio": 0.2}),
}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def both(request: pytest.FixtureRequest, opened: Open) -> Both:
    return opened(*request.param)


@pytest.mark.parametrize("name", REQUESTS)
def test_every_output_is_equal(both: Both, photographs: list[np.ndarray], name: str) -> None:
    crops, options = REQUESTS[name]
    images = [photographs[i % 2][:height, :width] for i, (height, width) in enumerate(CROPS[crops])]
    expected = both.python(images, dense=True, **options)
    assert_equal_to_the_last_bit(both.native.run(images, dense=True, **options), expected)
    without_k = {name: value for name, value in options.items() if name in ("size", "fit")}
    seen = both.python.look(images, **without_k)
    for part, array in both.native.look(images, **without_k).items():
        np.testing.assert_array_equal(array.view(np.int32), getattr(seen, part).view(np.int32), err_msg=part)


def test_native_images_of_one_grid_are_equal(both: Both, photographs: list[np.ndarray]) -> None:
    images = [photographs[0][:113, :141], photographs[1][:125, :140], photographs[0][100:212, 200:353]]
    expected = both.python(images, fit="native", k=30, dense=True)
    assert_equal_to_the_last_bit(both.native.run(images, fit="native", k=30, dense=True), expected)


def test_the_plan_is_what_comes_out(both: Both, photographs: list[np.ndarray]) -> None:
    sizes = both.native.model.plan(photographs, size=(84, 112), k=9)
    out = both.python(photographs, size=(84, 112), k=9, dense=True)
    arrays = out.arrays() | {"raw_score_map": out.raw_score_map}
    assert {name: array.shape for name, array in arrays.items()} == shapes_of(sizes, both.native.model.info)
    named = ("indices", "score_map", "raw_score_map", "prefix", "cls", "logits", "tokens", "dense")
    expected = {name: arrays[name].size if name in arrays else 0 for name in named}
    assert {name: getattr(sizes, name) for name in named} == expected
    assert (sizes.batch, sizes.rows, sizes.columns, sizes.k) == (2, 6, 8, 9)


def test_the_bundles_facts_are_equal(both: Both) -> None:
    info, bundle = both.native.model.info, both.python.bundle
    model, image = bundle.model, bundle.manifest.image
    tasks = ("features", "classify", "segment")
    found = (tasks[info.task], info.patch, info.dim, info.prefix, info.classes, info.selector_size, info.map_size)
    assert found == (
        bundle.manifest.task, model.patch, model.dim, model.prefix, model.classes, model.selector_size, model.map_size
    )  # fmt: skip
    assert (info.base_rows, info.base_columns) == model.base_grid
    height, width = bundle.manifest.defaults.size
    assert (info.default_height, info.default_width) == (height, width)
    assert info.default_k == bundle.manifest.defaults.k_on(height // model.patch * (width // model.patch))
    assert (*info.mean, *info.std) == tuple(np.float32((*image.mean, *image.std)))
    variants = bundle.manifest.graphs["extractor"]
    names = ("fp32", "fp16", "bf16", "int8", "fp8")
    assert info.precisions == sum(1 << bit for bit, name in enumerate(names) if name in variants)


def test_both_use_one_engine_folder(both: Both, library: Library) -> None:
    receipt = both.python.receipt
    notes = [line for _, line in both.native.model.notes]
    assert notes == [f"load openvino-{receipt.precision}-{receipt.key}, {role}" for role in ("selector", "extractor")]
    with Bundle(library, both.python.bundle.path) as bundle:
        built = {engine.folder.decode(): engine.version.decode() for engine in bundle.engines()}
    assert built == {
        folder.name: found.conditions["version"]
        for folder, found in store.receipts(both.python.bundle)
        if found.engine == "openvino"
    }
    description = both.native.model.description()
    assert description.startswith(f"openvino {receipt.conditions['version']} on {receipt.conditions['cpu']}")
    assert description.endswith(f", {receipt.precision}, {receipt.realised}")


def test_compiling_in_memory_gives_the_same(
    both: Both, library: Library, engine_library: Path, tmp_path: Path, photographs: list[np.ndarray]
) -> None:
    path, precision = tmp_path / "unbuilt", both.python.receipt.precision
    shutil.copytree(both.python.bundle.path, path, ignore=shutil.ignore_patterns("engines"))
    with Bundle(library, path) as bundle:
        with pytest.raises(NativeError) as refused:
            Model(bundle, precision, engine_library)
        with Model(bundle, precision, engine_library, compile=1) as model, Session(model) as session:
            ours = session.run(photographs, size=(98, 126), k=24, dense=True)
    assert refused.value.status == Status.NOT_FOUND
    assert f"{path}: no openvino {precision} engine is built yet; build it here, with OpenVINO 2" in str(refused.value)
    assert f"by 'saccade build {path} --engine openvino --precision {precision}'" in str(refused.value)
    assert {level for level, _ in model.notes} == {WARNING}
    assert not (path / "engines").exists()
    assert_equal_to_the_last_bit(ours, both.python(photographs, size=(98, 126), k=24, dense=True))


# ---- what the caller's memory looks like


@pytest.mark.parametrize("fit", ["squash", "crop", "native"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_may_lie_anywhere(plain: Both, photographs: list[np.ndarray], layout: str, fit: str) -> None:
    image = photographs[0][:150, :190]
    lying = LAYOUTS[layout](image)
    assert lying.strides[0] != 3 * image.shape[1]
    assert_equal_to_the_last_bit(plain.native.run([lying], fit=fit, k=20), plain.python(image, fit=fit, k=20))


@pytest.mark.parametrize("fit", ["squash", "crop", "native"])
def test_bgr_is_rgb_read_the_other_way(plain: Both, photographs: list[np.ndarray], fit: str) -> None:
    image = photographs[1][:150, :190]
    bgr = np.ascontiguousarray(image[..., ::-1])
    expected = plain.python(image, fit=fit, k=20, dense=True)
    assert_equal_to_the_last_bit(plain.native.run([bgr], BGR, fit=fit, k=20, dense=True), expected)
    assert not np.array_equal(plain.native.run([bgr], fit=fit, k=20)["cls"], expected.cls)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_images_and_options_are_equal(plain: Both, data: st.DataObject) -> None:
    extents = st.integers(1, 200)
    count, fit = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(["squash", "crop"]))
    rows, columns = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    shapes = [data.draw(st.tuples(extents, extents)) for _ in range(count)]
    noise = np.random.default_rng(data.draw(st.integers(0, 1000)))
    images = [noise.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    kept = st.fixed_dictionaries({"k": st.integers(1, rows * columns)})
    shared = st.fixed_dictionaries({"k_ratio": st.floats(1 / (rows * columns), 1)})
    options = data.draw(kept | shared) | {"size": (rows * PATCH, columns * PATCH), "fit": fit}
    dense = plain.native.model.plan(images, **options).k >= 5
    layouts = [data.draw(st.sampled_from(list(LAYOUTS.values()))) for _ in images]
    lying = [layout(image) for layout, image in zip(layouts, images, strict=True)]
    ours = plain.native.run(lying, dense=dense, **options)
    assert_equal_to_the_last_bit(ours, plain.python(images, dense=dense, **options))


# ---- one session after another request, refusals, timings


def test_a_session_remembers_nothing_of_the_run_before(plain: Both, photographs: list[np.ndarray]) -> None:
    first = plain.native.run(photographs, size=(126, 126), k=30, dense=True)
    for size, k in (((28, 42), 6), ((196, 182), 150), ((126, 126), 7)):
        plain.native.run(photographs[:1], size=size, k=k, dense=True)
    again = plain.native.run(photographs, size=(126, 126), k=30, dense=True)
    for name, array in again.items():
        np.testing.assert_array_equal(array, first[name], err_msg=name)


REFUSED = {
    "a size that is no multiple of the patch": {"size": (100, 126)},
    "k beyond the grid": {"size": (28, 28), "k": 5},
    "k below 1": {"k": -1},
    "a share above 1": {"k_ratio": 1.5},
    "a share below 0": {"k_ratio": -0.1},
    "no number for a share": {"k_ratio": float("nan")},
    "a share that keeps nothing": {"size": (28, 28), "k_ratio": 0.2},
    "k and a share": {"k": 3, "k_ratio": 0.5},
    "a size and native": {"size": (28, 28), "fit": "native"},
    "too large a grid": {"size": (14 * 149, 14 * 148)},
    "dense output of few patches": {"k": 4},
}


@pytest.mark.parametrize("name", REFUSED)
def test_both_refuse(plain: Both, photographs: list[np.ndarray], name: str) -> None:
    with pytest.raises(SaccadeError):
        plain.python(photographs[0], dense=True, **REFUSED[name])
    with pytest.raises(NativeError) as refused:
        plain.native.run(photographs[:1], dense=True, **REFUSED[name])
    assert refused.value.status == Status.INVALID_ARGUMENT


def test_both_refuse_native_images_of_two_grids(plain: Both, photographs: list[np.ndarray]) -> None:
    images = [photographs[0][:112, :112], photographs[1][:112, :126]]
    line = "images of one run share a grid: image 0 is 112 x 112 px in whole patches, image 1 is 126 x 112"
    with pytest.raises(SaccadeError, match=line):
        plain.python(images, fit="native", k=5)
    with pytest.raises(NativeError, match=line):
        plain.native.run(images, fit="native", k=5)


def test_both_refuse_to_crop_a_line(plain: Both) -> None:
    line = np.zeros((1, 40000, 3), np.uint8)
    with pytest.raises(SaccadeError, match="too narrow for fit crop"):
        plain.python(line, fit="crop", k=5)
    with pytest.raises(NativeError, match="too narrow for fit crop"):
        plain.native.run([line], fit="crop", k=5)


def test_timings_are_those_of_the_stages_that_ran(plain: Both, photographs: list[np.ndarray]) -> None:
    plain.native.run(photographs, size=(126, 126), k=30, dense=True)
    timings = plain.native.timings()
    stages = [getattr(timings, name) for name in ("fit_ms", *STAGES)]
    assert min(stages) > 0
    assert 0.5 * timings.total_ms < sum(stages) <= timings.total_ms
    plain.native.look(photographs, size=(126, 126))
    timings = plain.native.timings()
    assert timings.extractor_ms == timings.gather_ms == timings.fill_ms == 0
    assert min(timings.fit_ms, timings.resize_ms, timings.selector_ms, timings.select_ms) > 0
