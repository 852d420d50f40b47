"""One side of a benchmark, in a process of its own: load, warm up, then time as many frames as each line on stdin says."""
from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from saccade.errors import SaccadeError
from saccade.runtime.memory import peak_bytes
from saccade.validate.bench import APART, PYTORCH, WARM_UP_FRAMES, Side

Frame = Callable[[], dict[str, float]]  # runs once and returns its milliseconds by stage, "frame" for the whole
Versions = dict[str, str]


def main() -> int:
    """Serve turns until stdin ends. A Ctrl-C is the parent's: this process has a session of its own."""
    with _answers() as say:
        try:
            _serve(msgspec.json.decode(sys.argv[1], type=Side), say)
        except SaccadeError as error:
            say({"error": str(error)})
            return 1
    return 0


@contextlib.contextmanager
def _answers() -> Iterator[Callable[[dict[str, object]], None]]:
    """Yield a function that answers on stdout, where nothing else may go: what libraries print becomes stderr's."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)
        yield lambda answer: print(json.dumps(answer), file=stream, flush=True)


def _serve(side: Side, say: Callable[[dict[str, object]], None]) -> None:
    """Load, warm up, say so, and then answer each line on stdin with the times of as many frames."""
    start = time.perf_counter()
    with _pytorch(side) if side.engine == PYTORCH else _chain(side) as (frame, versions):
        load_s = time.perf_counter() - start
        first_ms = frame()["frame"]
        for _ in range(WARM_UP_FRAMES):
            frame()
        say({"load_s": round(load_s, 3), "first_ms": round(first_ms, 2), "versions": versions})
        for line in sys.stdin:
            stages: dict[str, list[float]] = {}
            for _ in range(int(line)):
                for name, value in frame().items():
                    stages.setdefault(name, []).append(value)
            say({"stages": stages, "peak_memory_mb": round(peak_bytes() / 1e6, 1)})


def _images(side: Side) -> list[np.ndarray]:
    random = np.random.RandomState(0)
    return list(random.randint(0, 256, (side.batch, *side.size, 3), dtype=np.uint8))


@contextlib.contextmanager
def _chain(side: Side) -> Iterator[tuple[Frame, Versions]]:
    """Yield the chain on the side's engine, which the parent has built: building counts into no side's loading."""
    from saccade.runtime.loading import load

    with load(
        side.bundle, engine=side.engine, precision=side.precision, device=side.device, threads=side.threads, build=False
    ) as pipeline:
        images = _images(side)

        def frame() -> dict[str, float]:
            start = time.perf_counter_ns()
            timings = pipeline(images, k=side.k, size=side.size).timings_ms
            whole = (time.perf_counter_ns() - start) / 1e6
            return {"frame": whole - sum(timings.get(name, 0.0) for name in APART), **timings}

        yield frame, {side.engine: pipeline.receipt.conditions.get("version", "")}


@contextlib.contextmanager
def _pytorch(side: Side) -> Iterator[tuple[Frame, Versions]]:
    """Yield the checkpoint's modules, run eagerly on the full graph as upstream does: normalise, look, top-k, embed all.

    Attention is torch's own fused kernel, which is what timm's modules call; ours is written out for the engines.
    """
    import torch
    from torch.nn import functional as F

    from saccade.export import modules
    from saccade.export.checkpoint import read_checkpoint
    from saccade.export.reference import Reference, normalised

    def fused(self: modules.Attention, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    modules.Attention.forward = fused  # type: ignore[method-assign]
    assert side.checkpoint is not None  # the plan has this side only where there is one
    torch.set_num_threads(side.threads)
    from saccade.bundle import read_bundle

    reference = Reference(read_checkpoint(side.checkpoint), read_bundle(side.bundle).manifest.task)
    images = _images(side)
    cells = (side.size[0] // reference.model.patch, side.size[1] // reference.model.patch)

    @torch.inference_mode()
    def frame() -> dict[str, float]:
        start = time.perf_counter_ns()
        image = normalised(images)
        raw, prefix = reference.look(image)
        scores = F.interpolate(raw.unsqueeze(1), cells, mode="bilinear", align_corners=False)
        kept = torch.topk(scores.flatten(1), side.k).indices
        reference.extract(image, kept, prefix)
        return {"frame": (time.perf_counter_ns() - start) / 1e6}

    yield frame, {"torch": torch.__version__}


if __name__ == "__main__":
    sys.exit(main())
