"""The roof: how fast this machine multiplies matrices at best, in the engine's own kernels, hot and cold.

Hot is one square product whose factors stay in cache as far as they fit. Cold are the products of each network with the
weights of all its blocks in turn, so that each weight comes from memory, as in the network itself. OpenVINO runs both:
models of nothing but MatMul with constant weights, in int8 with the Q/DQ around them that the bundle's graphs have.
"""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from saccade.bundle import BackboneModel, Model, read_bundle
from saccade.engines import openvino, store
from saccade.engines.engine import EngineRequest
from saccade.validate import work
from saccade.validate.bench_plan import Opened, Side

HOT = 2048  # rows, inputs and outputs of the hot product
RANGE = 4.0  # of int8 activations: noise of deviation 1 reaches about this far
Product = tuple[int, int]  # inputs, outputs


@contextlib.contextmanager
def open_roof(side: Side) -> Iterator[Opened]:
    """Yield a frame that runs each set of products once; the cold ones in the networks' order."""
    model = read_bundle(side.bundle).manifest.model
    request = EngineRequest(engine="openvino", precision=side.precision, device="cpu", threads=side.threads)
    conditions = store.backend("openvino").conditions(request)
    config = {
        "INFERENCE_PRECISION_HINT": conditions["precision_hint"],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": side.threads,
    }
    core, runs, gflop = openvino.module().Core(), {}, {}
    for name, (rows, products) in stacks(model, side.k, side.batch).items():
        runs[name] = _runner(core, product_model(rows, products, side.precision), rows, products, config)
        gflop[name] = sum(2 * rows * inputs * outputs for inputs, outputs in products) / 1e9

    def frame() -> dict[str, float]:
        times = {}
        for name, run in runs.items():
            start = time.perf_counter_ns()
            run()
            times[name] = (time.perf_counter_ns() - start) / 1e6
        return {"frame": sum(times.values()), **times}

    yield Opened(frame, {"openvino": conditions["version"]}, gflop)


def stacks(model: Model | BackboneModel, k: int, batch: int) -> dict[str, tuple[int, list[Product]]]:
    """Return (rows, products in order) by name: the weight products of each network's blocks, and the hot one.

    A plain backbone's `k` are all the patches.
    """
    products = work.block_products(model)
    if isinstance(model, BackboneModel):
        rows = batch * work.backbone_rows(model, k)
        return {"backbone": (rows, products * model.depth), "hot": (HOT, [(HOT, HOT)])}
    return {
        "selector": (batch * work.selector_rows(model), products * model.selector_depth),
        "extractor": (batch * work.extractor_rows(model, k), products * model.depth),
        "hot": (HOT, [(HOT, HOT)]),
    }


def product_model(rows: int, products: Sequence[Product], precision: str) -> Any:
    """Return an openvino.Model that multiplies (rows, inputs) by one constant after the other.

    Where a product gives more columns than the next one takes, the first of them go on, as q does behind qkv.
    """
    ov = openvino.module()
    from openvino import opset13 as ops

    random = np.random.default_rng(0)
    given = x = ops.parameter([rows, products[0][0]], np.float32, name="x")
    width = products[0][0]
    for inputs, outputs in products:
        if width > inputs:
            x = ops.slice(x, *(np.array([value], np.int64) for value in (0, inputs, 1, 1)))
        if precision == "int8":
            step = np.float32(RANGE / 127)
            x = ops.fake_quantize(x, -128 * step, 127 * step, -128 * step, 127 * step, 256)
        x = ops.matmul(x, _weight(random, inputs, outputs, precision), False, False)
        width = outputs
    return ov.Model([x], [given], "products")


def _weight(random: np.random.Generator, inputs: int, outputs: int, precision: str) -> Any:
    """Return a constant (inputs, outputs) that keeps the deviation of what it multiplies; for int8 with its scales."""
    from openvino import opset13 as ops

    if precision != "int8":
        return ops.constant(random.standard_normal((inputs, outputs), dtype=np.float32) / np.float32(inputs**0.5))
    values = random.integers(-127, 128, (inputs, outputs), dtype=np.int8)
    scale = np.full((1, outputs), 3**0.5 / (127 * inputs**0.5), np.float32)  # uniform values deviate by 127/sqrt(3)
    return ops.multiply(ops.convert(ops.constant(values), "f32"), ops.constant(scale))


def _runner(
    core: Any, model: Any, rows: int, products: Sequence[Product], config: dict[str, Any]
) -> Callable[[], None]:
    request = core.compile_model(model, "CPU", config).create_infer_request()
    x = np.random.default_rng(0).standard_normal((rows, products[0][0]), dtype=np.float32)

    def run() -> None:
        request.infer({"x": x}, share_inputs=True, share_outputs=True)

    return run
