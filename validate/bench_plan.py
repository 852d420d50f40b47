"""What a benchmark runs: every side by name, checked before anything is started."""
from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from saccade.bundle import Bundle, Model
from saccade.engines import store
from saccade.engines.engine import ENGINE_NAMES, MAX_BATCH, default_device
from saccade.errors import SaccadeError
from saccade.runtime.images import check_size
from saccade.runtime.kept import checked_k
from saccade.runtime.loading import MAX_STREAMS, MAX_THREADS

# What a side runs.
CHAIN = "chain"  # ours: selector, gather, extractor on an engine, or a plain backbone there
PYTORCH = "pytorch"
ONE_GRAPH = "one-graph"
FULL_BACKBONE = "full-backbone"
ROOF = "roof"
EAGER, AUTOCAST, COMPILE = "pytorch-eager", "pytorch-autocast", "pytorch-compile"
PEERS = {
    "eager": "PyTorch fp32, eager, on the full graph as upstream runs it",
    "eager-bf16": "the same with its weights in bf16",
    "autocast-bf16": "the same with fp32 weights under autocast",
    "compile": "the same through torch.compile, fp32",
    "one-graph": "a plain torch.onnx.export of everything as one graph, in ONNX Runtime fp32 and OpenVINO fp32 and bf16",
    "full-backbone": "the extractor on every patch, without selection, on each benchmarked engine and precision",
}
# PyTorch peer -> how it runs, in which precision.
PYTORCH_PEERS = {
    "eager": (EAGER, "fp32"),
    "eager-bf16": (EAGER, "bf16"),
    "autocast-bf16": (AUTOCAST, "bf16"),
    "compile": (COMPILE, "fp32"),
}
ONE_GRAPH_SIDES = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))

MAX_FILES = 16  # of a folder whose images are decoded: enough for no call to find its own in a cache of pixels

Pair = tuple[str, str]  # an engine and a precision
Frame = Callable[[], dict[str, float]]  # runs once and returns its milliseconds by stage, "frame" for the whole


class Side(Struct, frozen=True):
    """One process of the benchmark: what it runs (`kind`), on what, at one size, k and batch."""

    name: str
    bundle: str
    engine: str  # an engine's name, or how PyTorch runs
    precision: str
    device: str | None
    size: tuple[int, int]
    k: int
    batch: int
    threads: int
    checkpoint: str | None = None
    kind: str = CHAIN
    graph: str | None = None  # the file of a one-graph side, once it is exported
    static: bool = False  # with a static pair of engines for this k
    cls_only: bool = False
    streams: int = 1  # more than one: frames go through `Pipeline.stream`
    images: tuple[str, ...] = ()  # files that the chain decodes in its calls, in turn; none: it is given pixels
    selects: bool = True  # LookWhere does; a plain backbone's k is every patch, and no result speaks of it


class Opened(NamedTuple):
    """A loaded side inside its process."""

    frame: Frame
    versions: dict[str, str]
    gflop: dict[str, float]  # the work of those stages that are matrix products


class _Wish(NamedTuple):
    """One side, before it has a size and a k."""

    kind: str
    engine: str
    precision: str
    static: bool = False
    cls_only: bool = False
    streams: int = 1


def images_of(side: Side) -> list[np.ndarray]:
    """Return the side's batch of images, uint8 (H, W, 3): noise, the same for every side."""
    random = np.random.RandomState(0)
    return list(random.randint(0, 256, (side.batch, *side.size, 3), dtype=np.uint8))


def pairs_of(engines: Sequence[str] | None, precisions: Sequence[str] | None, sides: Sequence[str] | None) -> list[Pair]:
    """Return each engine in each precision, or exactly the pairs that `sides` name; OpenVINO fp32 for neither."""
    if not sides:
        product = itertools.product(engines or ["openvino"], precisions or ["fp32"])
        return list(dict.fromkeys(product))
    if engines or precisions:
        raise SaccadeError("--side names engines with their precisions; give it alone, without --engine and --precision")
    return list(dict.fromkeys(pair_of(word, "--side") for word in sides))


def pair_of(word: str, flag: str) -> Pair:
    """Return what ENGINE:PRECISION names; `flag` is the option that it was given to."""
    engine, _, precision = word.partition(":")
    if engine not in ENGINE_NAMES or not precision:
        raise SaccadeError(f"{flag} {word!r} is no ENGINE:PRECISION; engines are {', '.join(ENGINE_NAMES)}")
    return engine, precision


def plan_from(
    bundle: Bundle,
    pairs: Sequence[Pair],
    *,
    sizes: Sequence[tuple[int, int]] | None,
    ks: Sequence[int] | None,
    batches: Sequence[int],
    device: str | None,
    threads: int,
    checkpoint: Path | None = None,
    peers: Sequence[str] | None = None,
    roof: bool = False,
    static: bool = False,
    cls_only: bool = False,
    streams: int = 1,
    images: Sequence[Path] = (),
) -> list[Side]:
    """Return every combination asked for; a checkpoint alone means the peer eager.

    `static`, `cls_only` and `streams` time each engine both without and with it. Of `images` the chain decodes some in
    its calls, and not in a stream, which has no stages.
    """
    if not 0 <= threads <= MAX_THREADS:
        raise SaccadeError(f"--threads {threads} is not to be had; give 1 to {MAX_THREADS}, or 0 for every core")
    if not 1 <= streams <= MAX_STREAMS:
        raise SaccadeError(f"--streams {streams} is out of range; give 1 to {MAX_STREAMS}")
    if (static or streams > 1) and any(batch > 1 for batch in batches):
        raise SaccadeError(f"{'--static' if static else '--streams'} is for batch 1; leave --batch out")
    selects = isinstance(bundle.manifest.model, Model)
    if not selects:
        _refuse_selection({"--k": ks, "--static": static, "--cls-only": cls_only}, peers or ())
    threads = threads or len(os.sched_getaffinity(0))
    without_and_with = (dict.fromkeys((False, static)), dict.fromkeys((False, cls_only)), dict.fromkeys((1, streams)))
    forms = list(itertools.product(*without_and_with))
    chains = [_Wish(CHAIN, *pair, *form) for pair in pairs for form in forms]
    roofs = _roof_precisions(pairs, device) if roof else []
    wishes = _wishes(chains, pairs, _checked_peers(bundle, checkpoint, peers), roofs)
    defaults, patch = bundle.manifest.defaults, bundle.manifest.model.patch
    where = (device, threads, str(checkpoint) if checkpoint else None)
    files = tuple(str(path) for path in images[:MAX_FILES])
    plan = []
    extents = sizes or [defaults.size]
    for size, batch in dict.fromkeys(itertools.product(extents, batches)):
        if not 1 <= batch <= MAX_BATCH:
            raise SaccadeError(f"--batch {batch} is not to be had; give 1 to {MAX_BATCH}")
        pixels = check_size(size, patch)
        cells = pixels[0] * pixels[1] // patch**2
        for k in dict.fromkeys([*(ks or [defaults.k_on(cells) if selects else cells]), None]):
            if k is not None:
                checked_k(k, cells, dense=bundle.manifest.task == "segment")
            for wish in wishes:
                if (wish.kind == FULL_BACKBONE) == (k is None):  # it has no k: once for each size
                    side = _side(bundle, wish, pixels, cells if k is None else k, batch, *where)
                    decodes = wish.kind == CHAIN and wish.streams == 1
                    plan.append(replace(side, selects=selects, images=files if decodes else ()))
    return plan


def _refuse_selection(options: dict[str, object], peers: Sequence[str]) -> None:
    """Refuse what only LookWhere has: a plain backbone sees every patch, in one graph."""
    for flag, value in options.items():
        if value:
            raise SaccadeError(f"{flag} means nothing to a plain backbone, which sees every patch; leave it out")
    for peer in (ONE_GRAPH, FULL_BACKBONE):
        if peer in peers:
            raise SaccadeError(f"--peers {peer} means nothing to a plain backbone, which is that itself; leave it out")


def _side(
    bundle: Bundle, wish: _Wish, size: tuple[int, int], k: int, batch: int,
    device: str | None, threads: int, checkpoint: str | None,
) -> Side:  # fmt: skip
    """Return one wish at one size, k and batch."""
    kept = f" k={k}" if isinstance(bundle.manifest.model, Model) else ""
    return Side(
        name=f"{_title(wish)} {size[0]}x{size[1]}{kept} batch={batch}",
        bundle=str(bundle.path), engine=wish.engine, precision=wish.precision, device=device,
        size=size, k=k, batch=batch, threads=threads, checkpoint=checkpoint, kind=wish.kind,
        static=wish.static, cls_only=wish.cls_only, streams=wish.streams,
    )  # fmt: skip


def check_turns(rounds: int, frames: int) -> None:
    """Refuse a benchmark of nothing."""
    if rounds < 1 or frames < 1:
        raise SaccadeError(f"--rounds {rounds} and --frames {frames} must be at least 1; give 1 or more of each")


def _checked_peers(bundle: Bundle, checkpoint: Path | None, peers: Sequence[str] | None) -> list[str]:
    """Return the peers without repeats; those that run or export the modules need the checkpoint."""
    if checkpoint is not None and not checkpoint.is_file():  # its side would say so too, but when every engine is built
        raise SaccadeError(f"{checkpoint}: no such checkpoint file; give the one that {bundle.path} was made of")
    chosen = list(dict.fromkeys(peers if peers is not None else ["eager"] if checkpoint else []))
    needing = [peer for peer in chosen if peer != FULL_BACKBONE]
    if needing and checkpoint is None:
        raise SaccadeError(f"--peers {needing[0]} runs the checkpoint itself; give --checkpoint too")
    if needing and importlib.util.find_spec("torch") is None:
        raise SaccadeError(f"--peers {needing[0]} needs torch; pip install '.[export]' in the clone")
    return chosen


def _wishes(
    chains: Sequence[_Wish], pairs: Sequence[Pair], peers: Sequence[str], roofs: Sequence[str]
) -> list[_Wish]:
    """Return what is to run at each size and k: PyTorch, the one graph, ours, the full backbone, the roofs."""
    wishes = [_Wish(PYTORCH, *PYTORCH_PEERS[peer]) for peer in peers if peer in PYTORCH_PEERS]
    if ONE_GRAPH in peers:
        wishes += [_Wish(ONE_GRAPH, *pair) for pair in ONE_GRAPH_SIDES if pair[1] == "fp32" or _offers(*pair)]
    wishes += chains
    if FULL_BACKBONE in peers:
        wishes += [_Wish(FULL_BACKBONE, *pair) for pair in pairs]
    return wishes + [_Wish(ROOF, "openvino", precision) for precision in roofs]


def _roof_precisions(pairs: Sequence[Pair], device: str | None) -> list[str]:
    """Return the benchmarked precisions whose roof OpenVINO can measure on this CPU."""
    on_cpu = dict.fromkeys(name for engine, name in pairs if (device or default_device(engine)) == "cpu")
    if not on_cpu:
        raise SaccadeError("--roof measures the CPU, and no side runs on it; leave it out")
    found = store.backend("openvino").capabilities()
    if not found.can_run:
        raise SaccadeError(f"--roof multiplies in OpenVINO: {found.missing}")
    return [name for name in on_cpu if name in found.precisions]


def _offers(engine: str, precision: str) -> bool:
    """Whether an engine computes in a precision here; one that is missing is reported by its other sides."""
    return precision in store.backend(engine).capabilities().precisions


def _title(wish: _Wish) -> str:
    kind = {ONE_GRAPH: " one graph", FULL_BACKBONE: " full backbone", ROOF: " roof"}.get(wish.kind, "")
    return f"{wish.engine} {wish.precision}{kind}{form_in_words(wish.static, wish.cls_only, wish.streams)}"


def form_in_words(static: bool, cls_only: bool, streams: int) -> str:
    """Return what is said of a side behind its engine and precision; nothing of one that is loaded without a wish."""
    words = [("static", static), ("cls-only", cls_only), (f"{streams} streams", streams > 1)]
    return "".join(f" {word}" for word, said in words if said)
