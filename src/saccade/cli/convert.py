"""The command convert: a further precision of a bundle's graphs, kept only if parity holds. Runs without torch."""
from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from saccade import atomic, locks
from saccade._version import VERSION
from saccade.bundle import CALIBRATED, MANIFEST, Bundle, GraphFile, read_bundle, sha256_of_file, write_manifest
from saccade.cli import options as shared
from saccade.cli.console import Report, size_text, table
from saccade.cli.steps import Steps, time_text
from saccade.engines.engine import refuse_path
from saccade.errors import SaccadeError

if TYPE_CHECKING:
    from saccade.cli.calibrate import Calibrated
    from saccade.validate.backbone_gate import BackboneJudge
    from saccade.validate.gate import Judge, Trial
    from saccade.validate.parity import Verdict

PRECISIONS = ("fp16", "bf16", "int8", "fp8")
AUTO_METHODS = ("minmax", "percentile", "mse")  # entropy takes over a minute a graph and was never the best here
METHODS = ("auto", *AUTO_METHODS, "entropy")
DEFAULT_IMAGES, LEAST_IMAGES = 512, 8
FEW_IMAGES = 64  # ranges settle from about so many
SENSITIVITY_CASES = 3  # enough to tell blocks apart
NEEDED = {"onnx_ir": "onnx-ir", "ml_dtypes": "ml-dtypes", "onnxruntime": "onnxruntime", "openvino": "openvino"}
Pair = dict[str, Path]  # role -> graph file


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Write a bundle's graphs in another precision. They are kept only if parity with PyTorch holds. "
        "fp16 and bf16 take seconds, int8 and fp8 minutes: how many is said when the first images have been run."
    )
    shared.add_bundle(parser)
    parser.add_argument("--precision", choices=PRECISIONS, required=True)
    parser.add_argument("--calibration", type=Path, metavar="IMAGES", help="a folder of images, for int8 and fp8")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help=f"where activations are clipped; auto, the default, takes the best of {', '.join(AUTO_METHODS)}",
    )
    parser.add_argument(
        "--max-images", type=int, default=DEFAULT_IMAGES, metavar="N", help="of the folder (default: %(default)s)"
    )
    parser.set_defaults(execute=convert)


def convert(options: argparse.Namespace) -> Report:
    """Write the variants beside the bundle's files, judge them, and only then move them in; bundle.json comes last.

    Nobody else may export, convert or build there meanwhile; where somebody does, it stops before it has done anything.
    """
    start = time.perf_counter()
    _check_options(options)
    shared.require_modules(NEEDED, "convert")
    from saccade.validate.backbone_gate import open_judge

    refuse_path(options.bundle)
    busy = f"{options.bundle} is being exported, converted or built by another process; repeat when it is done"
    with locks.reserved(options.bundle, busy):
        bundle = read_bundle(options.bundle)
        atomic.prepare_in_bundle(bundle.path)
        phases = Steps(_step_count(bundle, options))
        with phases, atomic.scratch_folder(bundle.path / "convert") as folder:
            phases("open the fp32 graphs")
            with open_judge(bundle) as judge:
                return _Conversion(bundle, options, judge, folder, phases).run(start)


def _check_options(options: argparse.Namespace) -> None:
    precision = options.precision
    if precision in CALIBRATED and options.calibration is None:
        raise SaccadeError(f"--precision {precision} needs the ranges of activations; give --calibration IMAGES")
    if precision not in CALIBRATED and (options.calibration is not None or options.method != "auto"):
        raise SaccadeError(f"--precision {precision} has nothing to calibrate; leave --calibration and --method out")
    if options.max_images < LEAST_IMAGES:
        raise SaccadeError(f"--max-images {options.max_images} is too few to calibrate on; give at least {LEAST_IMAGES}")
    if options.calibration is not None:
        shared.image_paths(options.calibration, "--calibration")


def _step_count(bundle: Bundle, options: argparse.Namespace) -> int:
    """Return how many phases a conversion has that is not refused."""
    from saccade.export.variants import VARIANTS_OF

    roles, variants = len(bundle.roles), len(VARIANTS_OF[options.precision])
    beside = 2  # open, and move into place
    if options.precision in CALIBRATED:
        beside += 2 + roles * (3 + len(_methods(options)))  # find images, run those held out; measure, round and try
    return beside + variants * (roles + 1)


def _methods(options: argparse.Namespace) -> tuple[str, ...]:
    return AUTO_METHODS if options.method == "auto" else (options.method,)


class _Conversion:
    """One run of the command, in a scratch folder on the bundle's own disk."""

    def __init__(
        self, bundle: Bundle, options: argparse.Namespace, judge: Judge | BackboneJudge, folder: Path, phases: Steps
    ) -> None:
        self._bundle, self._options, self._judge, self._folder, self._phases = bundle, options, judge, folder, phases
        self._precision: str = options.precision
        self._cases: list[Any] = judge.golden_cases()
        self._calibrated: Calibrated | None = None
        self._held_out = 0

    def run(self, start: float) -> Report:
        """Write, judge, and keep or refuse."""
        from saccade.export.variants import VARIANTS_OF

        if self._precision in CALIBRATED:
            self._calibrate()
        pairs = {variant: self._write(variant, self._folder) for variant in VARIANTS_OF[self._precision]}
        results = {variant: self._judge_pair(variant, pair) for variant, pair in pairs.items()}
        passed = all(result.passed for result in results.values())
        data, lines = self._data(results, start), self._lines(results)
        if passed:
            self._phases("move into place")
            data["files"] = _keep(self._bundle, pairs, dict.fromkeys(pairs, data))
            sizes = [(f"  {name}", size_text(size)) for name, size in data["files"].items()]
            return Report(data, [f"{self._bundle.path}: {self._precision} added", *lines, *table(sizes)])
        sensitivity = self._sensitivity()
        head = f"{self._precision} is refused: its graphs do not hold parity; {self._bundle.path} is as it was"
        images = self._calibrated.images + self._held_out if self._calibrated else 0
        advice = next_step(self._precision, images, self._options.method)
        lines = [head, f"  next: {advice}", *lines, "", *_sensitivity_lines(sensitivity)]
        return Report(data | {"sensitivity": sensitivity, "next": advice}, lines, passed=False)

    def _calibrate(self) -> None:
        from saccade.cli.calibrate import Calibrator, find_images

        images = find_images(self._judge, self._options.calibration, self._options.max_images, self._phases)
        self._phases("run the images held out")
        start = time.perf_counter()
        held_out = [self._judge.case(path) for path in images.held_out]
        each_s = (time.perf_counter() - start) / len(held_out)
        self._held_out = len(held_out)
        self._cases += held_out
        methods = _methods(self._options)
        calibrator = Calibrator(
            self._judge, images.calibrating, self._cases, self._precision, methods, self._folder, self._phases
        )
        self._phases.note(f"{time_text(each_s * calibrator.work())} from here")
        self._calibrated = calibrator.run()

    def _write(
        self, variant: Any, folder: Path, roles: Sequence[str] = (), blocks: Sequence[int] | None = None
    ) -> Pair:
        """Write one variant's graphs, of all roles unless some are named; with `blocks`, only those blocks of them."""
        from saccade.export.variants import write_variant

        pair = {}
        for role in roles or self._judge.roles:
            source = self._calibrated.graphs[role] if self._calibrated else self._judge.graph_path(role)
            scales = self._calibrated.scales[role] if self._calibrated else None
            pair[role] = folder / f"{role}.{variant}.onnx"
            if blocks is None:
                self._phases(f"{role}: write {variant}")
            write_variant(source, pair[role], variant, scales, blocks)
        return pair

    def _judge_pair(self, variant: str, pair: Pair) -> Verdict[Any]:
        self._phases(f"judge {variant}")
        return self._judge.judge(pair, self._cases, self._precision)

    def _sensitivity(self) -> list[dict[str, Any]]:
        """Return the numbers of each block converted alone, the worst of each graph first."""
        from saccade.export.anatomy import depth_of_file
        from saccade.export.variants import VARIANTS_OF

        variant, trials = VARIANTS_OF[self._precision][0], []
        depths = {role: depth_of_file(self._judge.graph_path(role)) for role in self._judge.roles}
        self._phases.count(sum(depths.values()))
        for role, depth in depths.items():
            found: list[Trial] = []
            for block in range(depth):
                self._phases(f"{role}: block {block} alone")
                path = self._write(variant, self._folder, (role,), (block,))[role]
                cases = self._cases[:SENSITIVITY_CASES]
                found.append(self._judge.try_one(role, f"block {block}", path, cases, self._precision))
            trials += sorted(found, key=lambda trial: -trial.score)
        return [_trial_data(trial) for trial in trials]

    def _data(self, results: dict[Any, Verdict[Any]], start: float) -> dict[str, Any]:
        """Return what programs want to know, and what the bundle keeps as the variants' provenance."""
        data: dict[str, Any] = {
            "precision": self._precision,
            "saccade": VERSION,
            "tools": {distribution: version(distribution) for distribution in NEEDED.values()},
            "judged": {variant: result.summary() for variant, result in results.items()},
        }
        if self._calibrated:
            data["calibration"] = {
                "images": self._calibrated.images,
                "held_out": self._held_out,
                "methods": self._calibrated.methods,
                "trials": [_trial_data(trial) for trial in self._calibrated.trials],
            }
        return data | {"seconds": round(time.perf_counter() - start, 1)}

    def _lines(self, results: dict[Any, Verdict[Any]]) -> list[str]:
        """Return every method's numbers, and each variant's against its bounds."""
        lines = []
        if self._calibrated:
            for role in self._judge.roles:
                trials = [trial for trial in self._calibrated.trials if trial.role == role]
                chosen = self._calibrated.methods[role]
                rows = [(f"{role}, worst image not calibrated on", *trials[0].measures, "")]
                for trial in trials:
                    values = (f"{value:.3g}" for value in trial.measures.values())
                    rows.append((f"  {trial.name}", *values, "chosen" if trial.name == chosen else ""))
                lines += [*table(rows), ""]
        columns = [measure.name for measure in next(iter(results.values())).measures]
        rows = [("variant, worst image", *columns)]
        for variant, result in results.items():
            rows.append((f"  {variant}", *(f"{m.value:.3g}{'' if m.passed else ' FAIL'}" for m in result.measures)))
        rows.append(("  bound", *(f"{measure.bound:.3g}" for measure in next(iter(results.values())).measures)))
        return lines + table(rows)


def next_step(precision: str, images: int, method: str) -> str:
    """Say what may help where a precision is refused that was calibrated on, and judged by, so many images."""
    if precision == "fp16":
        return "--precision bf16, which has float32's range"
    if precision == "bf16":
        return "--precision fp16, which has eight times bf16's resolution"
    named = "" if method == "auto" else "--method auto, or "
    more = f"more images, {FEW_IMAGES} or more instead of {images}" if images < FEW_IMAGES else "other images"
    return f"{named}{more}, like those it will see, or --precision fp16 or bf16, which need none"


def _trial_data(trial: Trial) -> dict[str, Any]:
    return {"graph": trial.role, "name": trial.name, "measures": trial.measures}


def _sensitivity_lines(sensitivity: Sequence[dict[str, Any]]) -> list[str]:
    """Return the blocks of each graph, the one that hurts most first."""
    lines = []
    for role in dict.fromkeys(each["graph"] for each in sensitivity):
        trials = [each for each in sensitivity if each["graph"] == role]
        rows = [(f"{role}, one block at a time", *trials[0]["measures"])]
        rows += [(f"  {each['name']}", *(f"{value:.3g}" for value in each["measures"].values())) for each in trials]
        lines += table(rows)
    return lines


def _keep(bundle: Bundle, pairs: dict[Any, Pair], provenance: dict[Any, Any]) -> dict[str, int]:
    """Move the files into the bundle and name them in its manifest; return their sizes.

    A variant that is there already leaves the manifest first: at no moment does bundle.json name a file with another hash.
    Where any step fails, those before it are undone, the last one first.
    """
    entries = {
        (role, variant): msgspec.structs.replace(bundle.graph(role, "fp32"), file=path.name, sha256=sha256_of_file(path))
        for variant, pair in pairs.items()
        for role, path in pair.items()
    }
    before = (bundle.path / MANIFEST).read_bytes()
    manifest = read_bundle(bundle.path).manifest  # as it is now: this took a while
    if any(manifest.graphs[role]["fp32"] != bundle.graph(role, "fp32") for role in bundle.roles):
        raise SaccadeError(f"{bundle.path} was exported again meanwhile; repeat the command")
    others = {
        role: {variant: graph for variant, graph in manifest.graphs[role].items() if variant not in pairs}
        for role in bundle.roles
    }
    graphs: dict[str, dict[Any, GraphFile]] = {
        role: others[role] | {variant: entries[role, variant] for variant in pairs} for role in bundle.roles
    }
    kept = dict(manifest.provenance.get("variants") or {}) | provenance
    sizes = {path.name: path.stat().st_size for pair in pairs.values() for path in pair.values()}
    with contextlib.ExitStack() as undo:
        undo.callback(_write_back, bundle.path / MANIFEST, before)
        if others != manifest.graphs:
            write_manifest(bundle.path, msgspec.structs.replace(manifest, graphs=others))
        for pair in pairs.values():
            for path in pair.values():
                _move_in(path, bundle.path / path.name, undo)
        named = msgspec.structs.replace(manifest, graphs=graphs, provenance=manifest.provenance | {"variants": kept})
        write_manifest(bundle.path, named)
        undo.pop_all()
    return sizes


def _write_back(path: Path, content: bytes) -> None:
    if path.read_bytes() != content:
        atomic.write_bytes(path, content)


def _move_in(path: Path, place: Path, undo: contextlib.ExitStack) -> None:
    """Put a file of the scratch folder in its place; what stood there steps aside into that folder until the end."""
    aside, is_new = path.with_name(f"older.{path.name}"), not place.exists()

    def put_back() -> None:
        if aside.exists():
            aside.replace(place)
        elif is_new:
            place.unlink(missing_ok=True)

    undo.callback(put_back)
    if not is_new:
        place.replace(aside)
    path.replace(place)
