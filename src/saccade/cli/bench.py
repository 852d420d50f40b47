"""The command bench: time engines and their peers side by side, and write what can be quoted."""
from __future__ import annotations

import argparse
import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saccade import atomic
from saccade.bundle import Bundle, read_bundle
from saccade.cli import options as shared
from saccade.cli.console import Phases, Report, json_text, progress_bar, table
from saccade.engines.engine import ENGINE_NAMES
from saccade.runtime.images import read_rgb
from saccade.validate import bench_plan, bench_table
from saccade.validate.bench_plan import CHAIN, Side


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Time engines and peers side by side: a process each, taken in turns, medians after warm-up.\n"
        "All are loaded before the first turn, so that their memory adds up; see --reload."
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "peers:\n" + "\n".join(f"  {name:14}  {text}" for name, text in bench_plan.PEERS.items())
    shared.add_bundle(parser)
    _add_sides(parser)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each side (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=10, metavar="N", help="frames of a turn (default: %(default)s)")
    parser.add_argument(
        "--reload", action="store_true",
        help="load a side for its turn alone: the memory of the largest side instead of all of them, but it takes longer",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.json", help="write the result")
    parser.add_argument("--markdown", type=Path, metavar="OUT.md", help="write tables; measures parity too")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write plots, PNG and SVG; measures parity too")
    parser.set_defaults(execute=bench)


def _add_sides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", nargs="+", choices=ENGINE_NAMES, metavar="E", help="default: openvino")
    parser.add_argument("--precision", nargs="+", choices=shared.PRECISIONS, metavar="P", help="each with every engine")
    parser.add_argument("--side", nargs="+", metavar="E:P", help="exactly these engines and precisions, as openvino:int8")
    parser.add_argument("--size", nargs="+", type=shared.size, metavar="S|HxW", help="pixels (default: the bundle's)")
    parser.add_argument("--k", nargs="+", type=int, metavar="K", help="patches (default: the bundle's)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="B", help="of several the best is marked")
    parser.add_argument("--static", action="store_true", help="time each also with engines for batch 1 and one k alone")
    parser.add_argument("--cls-only", action="store_true", help="time each also without patch tokens")
    parser.add_argument("--streams", type=int, default=1, metavar="N", help="time each also as a stream, N frames at once")
    parser.add_argument("--images", type=Path, metavar="DIR", help="files to decode and fit in each call, timed apart")
    parser.add_argument("--device", metavar="cpu|N", help="cpu, or the number of a GPU (default: each engine's own kind)")
    parser.add_argument("--threads", type=int, default=0, metavar="T", help="default: every core, stated in the result")
    parser.add_argument("--checkpoint", type=Path, metavar="CHECKPOINT", help="what the bundle was made of, for the peers")
    parser.add_argument(
        "--peers", nargs="+", choices=tuple(bench_plan.PEERS), metavar="PEER",
        help="what else to time, see below (default: eager where --checkpoint is given)",
    )  # fmt: skip
    parser.add_argument("--roof", action="store_true", help="also time bare matrix products: what this CPU can do at best")


def bench(options: argparse.Namespace) -> Report:
    """Time all sides in turns and report medians and ratios."""
    from saccade.validate import bench as benchmark

    _check_outputs(options)
    bench_plan.check_turns(options.rounds, options.frames)
    bundle = read_bundle(options.bundle)
    plan = bench_plan.plan_from(
        bundle,
        bench_plan.pairs_of(options.engine, options.precision, options.side),
        sizes=options.size,
        ks=options.k,
        batches=options.batch,
        device=options.device,
        threads=options.threads,
        checkpoint=options.checkpoint,
        peers=options.peers,
        roof=options.roof,
        static=options.static,
        cls_only=options.cls_only,
        streams=options.streams,
        images=_readable(options.images),
    )
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
        with Phases() as phases:
            benchmark.build_missing(bundle, plan, phases, phases.note)
            plan = benchmark.export_one_graphs(plan, Path(folder), phases)
            parity = _parity(bundle, plan, phases) if options.markdown or options.plots else {}
        with progress_bar(len(plan) * options.rounds, "bench", "turn") as bar:
            turns = {"rounds": options.rounds, "frames": options.frames, "reload": options.reload}
            data = benchmark.run(plan, **turns, on_turn=lambda: bar.update(1))
    for side in data["sides"]:
        usual = side["kind"] == CHAIN and not side["static"] and not side["cls_only"]
        if usual and (side["engine"], side["precision"]) in parity:
            side["parity"] = parity[side["engine"], side["precision"]]
    lines = [bench_table.conditions_line(data["conditions"]), *table(bench_table.rows(data))]
    if data["roofs"]:
        lines += ["", *table(bench_table.roof_rows(data))]
    return Report(data, lines + [f"wrote {path}" for path in _write(data, options)])


def _readable(folder: Path | None) -> list[Path]:
    """Return the files that a side may decode, each known to be an image."""
    paths = shared.image_paths(folder)[: bench_plan.MAX_FILES] if folder else []
    for path in paths:
        read_rgb(path)
    return paths


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse outputs that cannot be written before anything slow is done."""
    shared.check_output("-o", options.output, ".json")
    shared.check_output("--markdown", options.markdown, ".md")
    if options.plots:
        from saccade.validate.bench_plots import require_matplotlib

        shared.refuse_inside_bundle("--plots", options.plots)
        is_file, has_place = options.plots.is_file(), options.plots.parent.is_dir()
        if is_file or not has_place:
            problem = errno.ENOTDIR if is_file else errno.ENOENT
            raise atomic.write_error(options.plots, OSError(problem, os.strerror(problem)))
        atomic.check_writable(options.plots / "latency.png" if options.plots.is_dir() else options.plots)
        require_matplotlib()


def _parity(bundle: Bundle, plan: Sequence[Side], phases: Phases) -> dict[tuple[str, str], float]:
    """Return how far each engine and precision is from PyTorch on the bundle's golden images, before any clock runs."""
    from saccade.runtime.loading import load
    from saccade.validate.verify import verify

    found = {}
    for side in plan:
        pair = (side.engine, side.precision)
        if side.kind != CHAIN or pair in found:
            continue
        phases(f"{side.engine} {side.precision}: parity")
        with load(
            bundle, engine=side.engine, precision=side.precision, device=side.device, threads=side.threads, build=False
        ) as pipeline:
            measures = {measure.name: measure.value for measure in verify(pipeline).measures}
        found[pair] = measures.get("cls", measures["patches"])  # segmentation has no cls
    return found


def _write(data: dict[str, Any], options: argparse.Namespace) -> list[Path]:
    """Write what was asked for and return the paths."""
    written = []
    if options.output:
        atomic.write_bytes(options.output, json_text(data, indent=2).encode() + b"\n")
        written.append(options.output)
    if options.markdown:
        atomic.write_bytes(options.markdown, bench_table.markdown(data).encode())
        written.append(options.markdown)
    if options.plots:
        from saccade.validate.bench_plots import write_plots

        written += write_plots(data, options.plots)
    return written
