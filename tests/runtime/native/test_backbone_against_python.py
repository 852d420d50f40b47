"""A plain backbone in C is Python's: the same engine files give the same bits, and the same is refused."""
from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
from binding import BACKBONE, BGR, LOOKWHERE, WARNING, Bundle, Library, Model, NativeError, Session, Status, shapes_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS

import saccade
from saccade import SaccadeError
from saccade.bundle import BackboneModel
from saccade.engines import store
from saccade.runtime.backbone import BackbonePipeline, Features

FAMILIES = ("neco", "dinov2", "dino")
CASES = [(family, precision) for family in FAMILIES for precision in ("fp32", "bf16")] + [("converted", "int8")]


class Both(NamedTuple):
    """One built engine, opened by either."""

    python: BackbonePipeline
    native: Session

    @property
    def model(self) -> BackboneModel:
        return self.python.model

    def in_patches(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the size of a grid in pixels."""
        return rows * self.model.patch, columns * self.model.patch


Open = Callable[[str, str], Both]


@pytest.fixture(scope="module")
def opened(
    library: Library, engine_library: Path, small_backbone: Callable[[str], Path], request: pytest.FixtureRequest
) -> Iterator[Open]:
    """Return a function from (family, precision) to both; Python builds what is missing, C must find it."""
    found: dict[tuple[str, str], Both] = {}
    handles = []

    def open_both(family: str, precision: str) -> Both:
        if precision not in store.backend("openvino").capabilities().precisions:
            pytest.skip(f"this CPU has no {precision} instructions")
        if (family, precision) not in found:
            path = request.getfixturevalue("converted_backbone") if family == "converted" else small_backbone(family)
            pipe = saccade.load(path, engine="openvino", precision=precision, note=lambda line: None)
            assert isinstance(pipe, BackbonePipeline)
            bundle = Bundle(library, path)
            model = Model(bundle, precision, engine_library)
            session = Session(model)
            handles.extend([pipe, session, model, bundle])
            found[family, precision] = Both(pipe, session)
        return found[family, precision]

    yield open_both
    for handle in handles:
        handle.__exit__(None, None, None)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def both(request: pytest.FixtureRequest, opened: Open) -> Both:
    return opened(*request.param)


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request: pytest.FixtureRequest, opened: Open) -> Both:
    """Return each family in fp32, for what precision does not change."""
    return opened(request.param, "fp32")


@pytest.fixture(scope="module")
def one(opened: Open) -> Both:
    """Return one family in fp32, for what none of them changes."""
    return opened("neco", "fp32")


def assert_equal_to_the_last_bit(ours: dict[str, np.ndarray], theirs: Features) -> None:
    expected = theirs.arrays() | {"dense": theirs.dense}
    assert ours.keys() <= expected.keys()
    assert expected.keys() - ours.keys() <= {"dense"}
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
        np.testing.assert_array_equal(np.signbit(array), np.signbit(expected[name]), err_msg=name)


# name -> (heights and widths of crops of the photographs, rows and columns of the grid, options)
REQUESTS = {
    "the defaults": ([(200, 300)], None, {}),
    "three images of three sizes": ([(200, 300), (126, 126), (427, 640)], None, {}),
    "a wide grid": ([(200, 300)], (4, 11), {}),
    "a tall grid": ([(200, 300), (427, 640)], (13, 5), {}),
    "one row": ([(200, 300)], (1, 10), {}),
    "the table's own grid": ([(200, 300)], "base", {}),
    "twice as fine": ([(427, 640)], (18, 18), {}),
    "the centre": ([(200, 300), (427, 640)], (7, 9), {"fit": "crop"}),
    "its own size": ([(200, 300)], None, {"fit": "native"}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_output_is_equal(both: Both, photographs: list[np.ndarray], name: str) -> None:
    crops, grid, options = REQUESTS[name]
    if grid is not None:
        options = options | {"size": both.in_patches(*(both.model.base_grid if grid == "base" else grid))}
    images = [photographs[i % 2][:height, :width] for i, (height, width) in enumerate(crops)]
    assert_equal_to_the_last_bit(both.native.run(images, dense=True, **options), both.python(images, **options))


def test_native_images_of_one_grid_are_equal(plain: Both, photographs: list[np.ndarray]) -> None:
    images = [photographs[0][:113, :141], photographs[1][:118, :142], photographs[0][100:212, 200:343]]
    assert_equal_to_the_last_bit(plain.native.run(images, fit="native", dense=True), plain.python(images, fit="native"))


def test_the_plan_is_what_comes_out(plain: Both, photographs: list[np.ndarray]) -> None:
    size = plain.in_patches(6, 8)
    sizes = plain.native.model.plan(photographs, size=size)
    out = plain.python(photographs, size=size)
    arrays = out.arrays() | {"dense": out.dense}
    assert {name: array.shape for name, array in arrays.items()} == shapes_of(sizes, plain.native.model.info)
    named = ("indices", "score_map", "raw_score_map", "prefix", "cls", "logits", "tokens", "dense", "attention", "cls_last4")
    assert {name: getattr(sizes, name) for name in named} == {
        name: arrays[name].size if name in arrays else 0 for name in named
    }
    assert (sizes.batch, sizes.rows, sizes.columns, sizes.k) == (2, 6, 8, 48)


def test_the_bundles_facts_are_equal(both: Both) -> None:
    info, manifest, model = both.native.model.info, both.python.bundle.manifest, both.model
    assert (info.kind, info.task, info.patch, info.dim) == (BACKBONE, 0, model.patch, model.dim)
    assert (info.heads, info.prefix, info.cls_blocks) == (model.heads, model.prefix, 4)
    assert (info.classes, info.selector_size, info.map_size, info.default_k) == (0, 0, 0, 0)
    assert (info.base_rows, info.base_columns) == model.base_grid
    assert (info.default_height, info.default_width) == manifest.defaults.size
    assert (*info.mean, *info.std) == tuple(np.float32((*manifest.image.mean, *manifest.image.std)))
    names = ("fp32", "fp16", "bf16", "int8", "fp8")
    assert info.precisions == sum(1 << bit for bit, name in enumerate(names) if name in manifest.graphs["backbone"])


def test_a_lookwhere_bundle_says_what_it_is(library: Library, small_bundle: Callable[[str], Path]) -> None:
    with Bundle(library, small_bundle("dinov2")) as bundle:
        assert (bundle.info().kind, bundle.info().heads, bundle.info().cls_blocks) == (LOOKWHERE, 2, 0)


def test_both_use_one_engine_folder(both: Both, library: Library) -> None:
    receipt = both.python.receipt
    name = f"openvino-{receipt.precision}-{receipt.key}"
    assert [line for _, line in both.native.model.notes] == [f"load {name}, backbone"]
    with Bundle(library, both.python.bundle.path) as bundle:
        assert name in {engine.folder.decode() for engine in bundle.engines() if engine.runs}
    assert both.native.model.description().endswith(f", {receipt.precision}, {receipt.realised}")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiling_in_memory_gives_the_same(
    opened: Open, library: Library, engine_library: Path, tmp_path: Path, photographs: list[np.ndarray], precision: str
) -> None:
    built, path = opened("dino", precision), tmp_path / "unbuilt"
    shutil.copytree(built.python.bundle.path, path, ignore=shutil.ignore_patterns("engines"))
    with Bundle(library, path) as bundle:
        line = f"{path}: no openvino {precision} engine is built yet; build it here"
        with pytest.raises(NativeError, match=line) as refused:
            Model(bundle, precision, engine_library)
        with Model(bundle, precision, engine_library, compile=1) as model, Session(model) as session:
            ours = session.run(photographs, size=(80, 96), dense=True)
    assert refused.value.status == Status.NOT_FOUND
    assert {level for level, _ in model.notes} == {WARNING}
    assert_equal_to_the_last_bit(ours, built.python(photographs, size=(80, 96)))


# ---- what the caller's memory looks like


@pytest.mark.parametrize("fit", ["squash", "crop", "native"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_may_lie_anywhere(one: Both, photographs: list[np.ndarray], layout: str, fit: str) -> None:
    image = photographs[0][:150, :190]
    assert_equal_to_the_last_bit(one.native.run([LAYOUTS[layout](image)], fit=fit), one.python(image, fit=fit))


@pytest.mark.parametrize("fit", ["squash", "crop", "native"])
def test_bgr_is_rgb_read_the_other_way(one: Both, photographs: list[np.ndarray], fit: str) -> None:
    image = photographs[1][:150, :190]
    bgr = np.ascontiguousarray(image[..., ::-1])
    expected = one.python(image, fit=fit)
    assert_equal_to_the_last_bit(one.native.run([bgr], BGR, fit=fit, dense=True), expected)
    assert not np.array_equal(one.native.run([bgr], fit=fit)["cls"], expected.cls)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_images_and_options_are_equal(plain: Both, data: st.DataObject) -> None:
    extents = st.integers(1, 200)
    shapes = data.draw(st.lists(st.tuples(extents, extents), min_size=1, max_size=3))
    noise = np.random.default_rng(data.draw(st.integers(0, 1000)))
    images = [noise.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    size = plain.in_patches(*data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12))))
    options = {"size": size, "fit": data.draw(st.sampled_from(["squash", "crop"]))}
    lying = [data.draw(st.sampled_from(list(LAYOUTS.values())))(image) for image in images]
    assert_equal_to_the_last_bit(plain.native.run(lying, dense=True, **options), plain.python(images, **options))


# ---- one session after another request, refusals, timings


def test_a_session_remembers_nothing_of_the_run_before(one: Both, photographs: list[np.ndarray]) -> None:
    sizes = [one.in_patches(*grid) for grid in ((8, 8), (2, 3), (14, 13), (8, 8), (3, 2))]
    for count, size in zip((2, 1, 2, 2, 1), sizes, strict=True):
        expected = one.python(photographs[:count], size=size)
        assert_equal_to_the_last_bit(one.native.run(photographs[:count], size=size, dense=True), expected)


REFUSED = {
    "a size that is no multiple of the patch": {"size": (100, 126)},
    "a size and native": {"size": (28, 28), "fit": "native"},
    "too large a grid": {"size": (14 * 149, 14 * 148)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_both_refuse(one: Both, photographs: list[np.ndarray], name: str) -> None:
    with pytest.raises(SaccadeError):
        one.python(photographs[0], **REFUSED[name])
    with pytest.raises(NativeError) as refused:
        one.native.run(photographs[:1], **REFUSED[name])
    assert refused.value.status == Status.INVALID_ARGUMENT


def test_timings_are_those_of_the_stages_that_ran(one: Both, photographs: list[np.ndarray]) -> None:
    one.native.run(photographs, size=one.in_patches(9, 9), dense=True)
    timings = one.native.timings()
    stages = [timings.fit_ms, timings.normalize_ms, timings.backbone_ms, timings.fill_ms]
    assert min(stages) > 0
    assert 0.5 * timings.total_ms < sum(stages) <= timings.total_ms
    assert timings.resize_ms == timings.selector_ms == timings.select_ms == timings.gather_ms == timings.extractor_ms == 0


# ---- bundles that were changed


@pytest.fixture
def copied(opened: Open, tmp_path: Path) -> Path:
    """A copy of a bundle with its fp32 engine."""
    path = tmp_path / "copied"
    shutil.copytree(opened("dino", "fp32").python.bundle.path, path)
    return path


def without_cls_last4(bundle: Path) -> None:
    """Make it one of a model of three blocks, as `saccade export` would."""
    model = onnx.load(bundle / "backbone.onnx")
    kept = [each for each in model.graph.output if each.name != "cls_last4"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, bundle / "backbone.onnx")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["model"]["depth"] = 3
    graph = manifest["graphs"]["backbone"]["fp32"]
    graph["outputs"] = [tensor for tensor in graph["outputs"] if tensor["name"] != "cls_last4"]
    graph["sha256"] = hashlib.sha256((bundle / "backbone.onnx").read_bytes()).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def test_a_backbone_of_three_blocks_has_no_cls_last4(
    library: Library, engine_library: Path, copied: Path, photographs: list[np.ndarray]
) -> None:
    without_cls_last4(copied)
    with (
        saccade.load(copied, note=lambda line: None) as pipe,
        Bundle(library, copied) as bundle,
        Model(bundle, "fp32", engine_library) as model,
        Session(model) as session,
    ):
        assert model.info.cls_blocks == model.plan(photographs).cls_last4 == 0
        ours = session.run(photographs, dense=True)
        assert ours.keys() == {"cls", "tokens", "dense", "attention"}
        assert_equal_to_the_last_bit(ours, pipe(photographs))


def test_an_engine_of_another_graph_is_refused_with_pythons_reason(
    library: Library, engine_library: Path, copied: Path
) -> None:
    (folder,) = copied.glob("engines/openvino-fp32-*")
    receipt = store.read_receipt(folder)
    conditions = receipt.conditions | {"backbone_sha256": "0" * 64}
    changed = msgspec.structs.replace(receipt, conditions=conditions, key=store.key_of(conditions))
    (folder / "receipt.json").write_bytes(msgspec.json.encode(changed))
    folder.rename(folder.with_name(f"openvino-fp32-{changed.key}"))
    with pytest.raises(SaccadeError) as stale:
        saccade.load(copied, build=False)
    with Bundle(library, copied) as bundle, pytest.raises(NativeError) as refused:
        Model(bundle, "fp32", engine_library)
    digest = receipt.conditions["backbone_sha256"]
    reason = f"for other conditions (backbone_sha256 {'0' * 12}… -> {digest[:12]}…)"
    assert reason in str(stale.value)
    assert reason in str(refused.value)


def test_a_damaged_engine_file_is_refused_by_both(library: Library, engine_library: Path, copied: Path) -> None:
    (blob,) = copied.glob("engines/openvino-fp32-*/backbone.blob")
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    with pytest.raises(SaccadeError, match=r"backbone\.blob was changed or cut short"):
        saccade.load(copied, build=False)
    with Bundle(library, copied) as bundle, pytest.raises(NativeError, match=r"backbone\.blob was changed or cut short"):
        Model(bundle, "fp32", engine_library)


def test_an_engine_without_the_backbone_is_refused(library: Library, engine_library: Path, copied: Path) -> None:
    """One that names LookWhere's roles: its graph is this bundle's, and its files are not."""
    (folder,) = copied.glob("engines/openvino-fp32-*")
    receipt = json.loads((folder / "receipt.json").read_text())
    receipt["files"] = {"extractor": receipt["files"]["backbone"]}
    (folder / "receipt.json").write_text(json.dumps(receipt))
    line = "has no backbone; delete its folder"
    with Bundle(library, copied) as bundle, pytest.raises(NativeError, match=line) as refused:
        Model(bundle, "fp32", engine_library)
    assert refused.value.status == Status.INVALID_BUNDLE


def test_a_graph_that_gives_less_than_the_manifest_says_is_refused(
    library: Library, engine_library: Path, copied: Path
) -> None:
    shutil.rmtree(copied / "engines")
    model = onnx.load(copied / "backbone.onnx")
    del model.graph.output[-1]
    onnx.save(model, copied / "backbone.onnx")
    manifest = json.loads((copied / "bundle.json").read_text())
    digest = hashlib.sha256((copied / "backbone.onnx").read_bytes()).hexdigest()
    manifest["graphs"]["backbone"]["fp32"]["sha256"] = digest
    (copied / "bundle.json").write_text(json.dumps(manifest))
    with (
        Bundle(library, copied) as bundle,
        pytest.raises(NativeError, match=r"its tensors are not those of bundle\.json's backbone"),
    ):
        Model(bundle, "fp32", engine_library, compile=1)
