"""Whatever is asked of it, the chain on a GPU that the host plays has the bits of the chain on a CPU."""
from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gpu_on_host import REFERENCE, SQUARE, Open, assert_equal, crops

from saccade.bundle import TensorSpec
from saccade.errors import SaccadeError
from saccade.runtime.chain import Pipeline
from saccade.runtime.gpu_chain import GpuPipeline
from saccade.validate.verify import verify


@pytest.mark.parametrize("kind", ["dinov2", "franca", "classify", "segment"])
@pytest.mark.parametrize("graphs", [True, False])
def test_every_task_has_the_bits_of_the_chain_on_a_cpu(
    open_gpu: Open, on_host: Callable[[str, int], Pipeline], photographs: list[np.ndarray], kind: str, graphs: bool
) -> None:
    pipeline, reference = open_gpu(kind, graphs=graphs), on_host(kind, REFERENCE)
    for images, options in ((crops(photographs, 1), {"k": 9}), (crops(photographs, 3), {"k_ratio": 0.5, "dense": True})):
        for _ in range(2):
            assert_equal(pipeline(images, size=126, **options), reference(images, size=126, **options))  # type: ignore


@pytest.mark.parametrize(("size", "k"), [((126, 126), 1), ((126, 126), 81), ((70, 196), 12), ((14, 14), 1), ((252, 98), 60)])
def test_any_grid_and_k_have_the_bits_of_the_chain_on_a_cpu(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], size: tuple[int, int], k: int
) -> None:
    assert_equal(open_gpu()(photographs, size=size, k=k), cpu(photographs, size=size, k=k))


def test_shapes_may_change_from_call_to_call(open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]) -> None:
    pipeline = open_gpu()
    for batch, size, k in ((1, 126, 9), (2, 126, 9), (1, 70, 9), (1, 126, 20), (1, 126, 9), (2, 126, 9)):
        images = crops(photographs, batch)
        assert_equal(pipeline(images, size=size, k=k), cpu(images, size=size, k=k))


def test_photographs_are_fitted_as_for_a_cpu(open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]) -> None:
    pipeline = open_gpu()
    for fit in ("squash", "crop"):
        assert_equal(pipeline(photographs, fit=fit, k=11), cpu(photographs, fit=fit, k=11))
    native = crops(photographs, 2, (131, 150))
    assert_equal(pipeline(native, fit="native", k=11), cpu(native, fit="native", k=11))


def test_look_gives_the_map_of_the_chain_on_a_cpu(open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]) -> None:
    ours, theirs = open_gpu().look(photographs, size=126), cpu.look(photographs, size=126)
    for name in ("score_map", "prefix", "raw_score_map"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("kind", ["dinov2", "segment"])
def test_extract_on_given_cells_gives_what_a_cpu_gives(
    open_gpu: Open, on_host: Callable[[str, int], Pipeline], photographs: list[np.ndarray], kind: str
) -> None:
    images, random = crops(photographs, 2), np.random.default_rng(0)
    cells = np.stack([random.permutation(81)[:10] for _ in images])
    prefix = random.standard_normal((2, 5, 128)).astype(np.float32)
    pipelines = open_gpu(kind), on_host(kind, REFERENCE)
    assert_equal(*(each.extract(images, cells, prefix, dense=True) for each in pipelines))


def test_the_self_test_of_a_bundle_passes(open_gpu: Open) -> None:
    result = verify(open_gpu())
    assert result.passed, result.measures


def test_outputs_belong_to_the_caller(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    pipeline = open_gpu()
    first = pipeline(photographs[0], size=126, k=9)
    kept = {name: array.copy() for name, array in first.arrays().items()}
    pipeline(photographs[1], size=126, k=9)
    for name, array in kept.items():
        np.testing.assert_array_equal(getattr(first, name), array)


# The tensors that are given and taken in 16 bits. The prefix is a result too, which NumPy would not have in bfloat16.
SMALL = {
    "float16": {"selector": ("lowres", "prefix"), "extractor": ("patches", "positions", "prefix")},
    "bfloat16": {"selector": ("lowres",), "extractor": ("patches", "positions")},
}


class Rounding:
    """A network of the host whose tensors in SMALL are rounded to 16 bits by torch, and where `typed` lie in memory so."""

    def __init__(self, network: Any, dtype: str, *, typed: bool) -> None:
        self.network, self.role, self.typed, self.dtype = network, network.role, typed, dtype
        self.names = SMALL[dtype][self.role]
        self.inputs, self.outputs = (self._specs(specs) for specs in (network.inputs, network.outputs))

    def _specs(self, specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
        small = {name: TensorSpec(name, self.dtype, specs[name].shape) for name in self.names if name in specs}  # type: ignore
        return specs | small if self.typed else specs

    def _wide(self, array: np.ndarray) -> np.ndarray:
        torch = pytest.importorskip("torch")
        kind = getattr(torch, self.dtype)
        tensor = torch.from_numpy(array.copy())
        found: np.ndarray = (tensor.view(kind) if self.typed else tensor.to(kind)).float().numpy()
        return found

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        wide = {name: self._wide(array) if name in self.names else array for name, array in feed.items()}
        found = {name: array.copy() for name, array in self.network.run(wide).items()}
        for name in set(found) & set(self.names):
            narrow = found[name].astype(self.dtype)
            found[name] = narrow if self.typed else narrow.astype(np.float32)
        return found

    def close(self) -> None:
        """The network is not ours."""


@pytest.mark.parametrize("dtype", SMALL)
def test_tensors_in_16_bits_are_the_float32_ones_rounded_once(
    on_host: Callable[[str, int], Pipeline], new_device: Callable[..., Any], host_device: Any, photographs: list[np.ndarray],
    dtype: str,
) -> None:  # fmt: skip
    device, host, plain = new_device(), on_host("dinov2", 0), on_host("dinov2", REFERENCE)
    small = {role: Rounding(network, dtype, typed=True) for role, network in host.engines.items()}
    engines = {role: host_device.HostEngine(device, network) for role, network in small.items()}
    rounded: Any = {role: Rounding(network, dtype, typed=False) for role, network in plain.engines.items()}
    reference = Pipeline(plain.bundle, rounded, plain.receipt)
    with GpuPipeline(host.bundle, engines, host.receipt, device) as pipeline, reference:
        images = crops(photographs, 2)
        ours, theirs = (each(images, size=126, k=9, dense=True) for each in (pipeline, reference))
        assert_equal(ours, theirs)
        kernel = f"saccade_preprocess_{'bf16' if dtype == 'bfloat16' else 'fp16'}"
        assert {kernel, "saccade_gather_16bit"} <= set(device.calls)
        forced = [each.extract(images, theirs.indices, theirs.prefix) for each in (pipeline, reference)]
        np.testing.assert_array_equal(forced[0].tokens, forced[1].tokens)


# ---- threads


def test_pipelines_in_parallel_threads_give_the_same_bits(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]
) -> None:
    frames = crops(photographs, 3)
    expected = [cpu(frame, size=126, k=9) for frame in frames]
    failures: list[BaseException] = []

    def work(pipeline: GpuPipeline) -> None:
        try:
            for _ in range(3):
                for frame, truth in zip(frames, expected, strict=True):
                    assert_equal(pipeline(frame, size=126, k=9), truth)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(open_gpu(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_pipeline_in_use_by_another_thread_is_refused(open_gpu: Open) -> None:
    pipeline = open_gpu()
    with pipeline._entered(), pytest.raises(SaccadeError, match="another thread is running this pipeline"):
        pipeline(SQUARE, size=126)
