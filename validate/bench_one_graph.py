"""The one graph on an engine, as somebody runs it who has exported everything at once. Needs no torch."""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from saccade.bundle import ImageContract, read_bundle
from saccade.engines import openvino
from saccade.errors import SaccadeError
from saccade.validate.bench_plan import Opened, Side, images_of

Network = Callable[[np.ndarray], object]  # normalised images (B, 3, H, W) float32 -> whatever the graph gives
HINTS = {"fp32": "f32", "bf16": "bf16"}


@contextlib.contextmanager
def open_one_graph(side: Side) -> Iterator[Opened]:
    """Yield the exported graph; the whole image is normalised in the timed part, since the graph begins behind that."""
    network, version = (_openvino if side.engine == "openvino" else _onnxruntime)(side)
    images, contract = images_of(side), read_bundle(side.bundle).manifest.image

    def frame() -> dict[str, float]:
        start = time.perf_counter_ns()
        image = normalise(images, contract)
        between = time.perf_counter_ns()
        network(image)
        end = time.perf_counter_ns()
        return {"frame": (end - start) / 1e6, "normalise": (between - start) / 1e6, "network": (end - between) / 1e6}

    yield Opened(frame, {side.engine: version}, {})


def normalise(images: list[np.ndarray], contract: ImageContract) -> np.ndarray:
    """Return uint8 (H, W, 3) images as (x/255 - mean)/std, (B, 3, H, W) float32: a product and a sum a channel."""
    out = np.empty((len(images), 3, *images[0].shape[:2]), np.float32)
    for image, planes in zip(images, out, strict=True):
        for channel, (mean, std) in enumerate(zip(contract.mean, contract.std, strict=True)):
            np.multiply(image[:, :, channel], np.float32(1 / (255 * std)), out=planes[channel])
            planes[channel] -= np.float32(mean / std)
    return out


def _onnxruntime(side: Side) -> tuple[Network, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = side.threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(side.graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class of their own
        reason = str(error).splitlines()[0]
        raise SaccadeError(f"onnxruntime cannot open the one graph: {reason}; leave one-graph out of --peers") from error
    return lambda image: session.run(None, {"image": image}), onnxruntime.__version__


def _openvino(side: Side) -> tuple[Network, str]:
    binding = openvino.module()
    config = {
        "INFERENCE_PRECISION_HINT": HINTS[side.precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": side.threads,
    }
    try:
        compiled = binding.Core().compile_model(side.graph, "CPU", config)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise SaccadeError(f"openvino cannot compile the one graph: {reason}; leave one-graph out of --peers") from error
    request = compiled.create_infer_request()
    return lambda image: request.infer({"image": image}, share_inputs=True, share_outputs=True), binding.__version__
