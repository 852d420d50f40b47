"""The benchmark takes its sides in turns, counts right, says in one line which side died, and leaves no process behind."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from saccade.bundle import read_bundle
from saccade.cli.main import main
from saccade.errors import SaccadeError
from saccade.runtime.chain import Pipeline
from saccade.validate import bench, bench_plan, bench_results, bench_side
from saccade.validate.bench_plan import Side

# Stands in for a side's process: the first word of its name says how it behaves, and what it does is written to a file.
ACTOR = '''
import json, os, signal, sys, time

side = json.loads(sys.argv[-1])
kind, log = side["name"].split()[0], side["bundle"]

def note(word):
    with open(log, "a") as file:
        file.write(f"{side['name']}: {word}\\n")

def say(**answer):
    print(json.dumps(answer), flush=True)

note("load")
if kind == "absent":
    say(error="openvino cannot be imported; pip install it")
    sys.exit(1)
if kind == "crashing":
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "slow":
    time.sleep(60)
say(load_s=0.5, first_ms=9.0, versions={"actor": "1"}, gflop={})
turns = 0
try:
    for line in sys.stdin:
        turns += 1
        note(f"turn of {int(line)}")
        if kind == "dying" and turns == 2:
            sys.exit(3)
        frame = 10.0 if side["engine"] == "pytorch-eager" else 2.5
        stages = {"frame": [frame] * int(line)}
        if side["engine"] != "pytorch-eager":
            stages |= {name: [part] * int(line) for name, part in (("resize", 0.5), ("selector", 0.5), ("extractor", 1.5))}
        say(stages=stages, peak_memory_mb=100.0 + turns)
        if kind == "fleeting" and turns == 1:
            sys.exit(0)
        if kind == "stammering":
            print('{"stages": {"fra', end="", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stubborn":
        time.sleep(60)
except KeyboardInterrupt:
    pass
note("end")
'''
CONDITIONS = [
    "saccade", "python", "cpu", "threads", "pinning", "rounds", "frames_per_round", "warm_up_frames", "order", "boundary",
]  # fmt: skip
SIDE = [
    "name", "kind", "engine", "precision", "device", "size", "k", "batch", "static", "cls_only", "streams", "versions",
    "load_s", "first_ms", "peak_memory_mb", "frame_ms", "stage_ms", "images_per_s",
]  # fmt: skip
STAGES = ["decode", "fit", "resize", "selector", "select", "gather", "extractor"]


@pytest.fixture
def actors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[subprocess.Popen[str]]]:
    """Replace the sides' processes by actors. Returns the file of what they did, and the processes."""
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
        started.append(popen([sys.executable, "-c", ACTOR, command[-1]], **options))
        return started[-1]

    monkeypatch.setattr(bench.subprocess, "Popen", start)
    return tmp_path / "log", started


def side(name: str, log: Path, engine: str = "openvino", k: int = 8) -> Side:
    return Side(name, str(log), engine, "fp32", "cpu", (126, 126), k, 2, 1, None)


def none_left(started: list[subprocess.Popen[str]]) -> bool:
    """True where every process was started, has ended and was waited for."""
    return bool(started) and all(process.returncode is not None for process in started)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], (7, 7, 7, 7)),
        ([2.0, 1.0], (1, 2, 2, 1)),
        (list(range(10, 0, -1)), (5, 9, 10, 1)),
        (list(range(1, 102)), (51, 91, 100, 1)),
        (list(range(1, 101)), (50, 90, 99, 1)),
        ([5.0] * 49 + [1000.0], (5, 5, 1000, 5)),
        ([1.23456789], (1.2346, 1.2346, 1.2346, 1.2346)),
    ],
    ids=["one", "two", "ten", "101", "100", "outlier", "rounded"],
)
def test_percentiles_are_by_nearest_rank(values: list[float], expected: tuple[float, ...]) -> None:
    assert tuple(bench_results.percentiles(values).values()) == expected
    assert list(bench_results.percentiles(values)) == ["p50", "p90", "p99", "min"]


def test_sides_are_all_loaded_first_and_then_take_turns(actors: tuple[Path, list[Any]]) -> None:
    log, started = actors
    ticks: list[None] = []
    bench.run([side("a", log), side("b", log)], rounds=3, frames=4, on_turn=lambda: ticks.append(None))
    lines = log.read_text().splitlines()
    assert lines[:2] == ["a: load", "b: load"]
    assert lines[2:8] == [f"{name}: turn of 4" for name in "abbaab"]  # another one first in each round
    assert sorted(lines[8:]) == ["a: end", "b: end"]
    assert len(ticks) == 6
    assert none_left(started)


def test_reloaded_sides_take_the_same_turns_and_are_never_in_memory_together(actors: tuple[Path, list[Any]]) -> None:
    log, started = actors
    data = bench.run([side("a", log), side("b", log)], rounds=2, frames=4, reload=True)
    turns = [f"{name}: {what}" for name in "abba" for what in ("load", "turn of 4", "end")]
    assert log.read_text().splitlines() == turns
    assert "one untimed frame begins a turn, loaded anew for it" in data["conditions"]["order"]
    assert [len(started), data["sides"][0]["peak_memory_mb"]] == [4, 101.0]
    assert none_left(started)


def test_results_have_stable_keys_and_the_last_peak(actors: tuple[Path, list[Any]]) -> None:
    data = bench.run([side("a", actors[0])], rounds=2, frames=3)
    assert list(data) == ["conditions", "sides", "roofs"]
    assert list(data["conditions"]) == CONDITIONS
    (result,) = data["sides"]
    assert list(result) == [*SIDE, "outside_networks_share"]
    assert result["frame_ms"] == {"p50": 2.5, "p90": 2.5, "p99": 2.5, "min": 2.5}
    assert list(result["stage_ms"]) == ["resize", "selector", "extractor"]
    assert result["images_per_s"] == 800.0  # two images in 2.5 ms
    assert result["outside_networks_share"] == 0.2  # 0.5 of 2.5 ms
    assert result["peak_memory_mb"] == 102.0
    assert json.loads(json.dumps(data)) == data


def test_ratios_are_to_eager_pytorch_at_the_same_size_k_and_batch(actors: tuple[Path, list[Any]]) -> None:
    log = actors[0]
    plan = [side("eager", log, "pytorch-eager"), side("ours", log), side("other k", log, k=9)]
    eager, ours, other = bench.run(plan, rounds=1, frames=2)["sides"]
    assert (eager["of_pytorch_eager"], ours["of_pytorch_eager"]) == (1.0, 0.25)
    assert "of_pytorch_eager" not in other
    assert "outside_networks_share" not in eager


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "absent: openvino cannot be imported; pip install it"),
        ("crashing", "crashing: its process ended (killed by signal 9; free some memory)"),
        ("dying", "dying: its process ended (exit 3; see the lines above)"),
        ("fleeting", "fleeting: its process ended (exit 0; see the lines above)"),
        ("stammering", "stammering: its process ended (killed by signal 9; free some memory)"),
    ],
)
def test_a_side_that_dies_gives_one_line_and_takes_the_others_with_it(
    name: str, message: str, actors: tuple[Path, list[Any]]
) -> None:
    log, started = actors
    with pytest.raises(SaccadeError, match=re.escape(message)):
        bench.run([side("first", log), side(name, log), side("last", log)], rounds=3, frames=2)
    assert none_left(started)
    assert "first: end" in log.read_text()


def test_an_interrupt_between_turns_leaves_no_process(actors: tuple[Path, list[Any]]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run([side("a", actors[0]), side("b", actors[0])], rounds=3, frames=2, on_turn=interrupt)
    assert none_left(actors[1])


def test_an_interrupt_while_a_side_loads_leaves_no_process(
    actors: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = bench.SideProcess._answer

    def interrupted(process: bench.SideProcess) -> dict[str, Any]:
        if process.side.name.startswith("slow"):
            raise KeyboardInterrupt
        return answer(process)

    monkeypatch.setattr(bench.SideProcess, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run([side("a", actors[0]), side("slow", actors[0])], rounds=3, frames=2)
    assert len(actors[1]) == 2
    assert none_left(actors[1])


def test_a_process_that_does_not_end_is_killed(
    actors: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "IDLE_S", 0.1)
    bench.run([side("stubborn", actors[0])], rounds=1, frames=1)
    assert [process.returncode for process in actors[1]] == [-9]


@pytest.mark.parametrize(("rounds", "frames"), [(0, 5), (5, 0), (-1, 1)])
def test_rounds_and_frames_below_one_are_refused_before_anything_starts(
    rounds: int, frames: int, actors: tuple[Path, list[Any]]
) -> None:
    with pytest.raises(SaccadeError, match=f"--rounds {rounds} and --frames {frames} must be at least 1"):
        bench.run([side("a", actors[0])], rounds=rounds, frames=frames)
    assert actors[1] == []


def test_what_libraries_print_in_a_side_is_no_answer() -> None:
    script = """
        import os
        from saccade.validate import bench_side
        with bench_side._answers() as say:
            print("noise from Python", flush=True)
            os.system("echo noise from a library")
            say({"answer": 1})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout == '{"answer": 1}\n'
    assert {"noise from Python", "noise from a library"} <= set(done.stderr.splitlines())


def test_a_side_whose_benchmark_was_interrupted_ends_without_a_word(tmp_path: Path) -> None:
    side = Side("orphan", str(tmp_path / "none"), "openvino", "fp32", "cpu", (126, 126), 8, 1, 1)
    command = [sys.executable, "-m", "saccade.validate.bench_side", msgspec.json.encode(side).decode()]
    listener, answers = os.pipe()
    os.close(listener)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=answers, stderr=subprocess.PIPE, check=False)
    os.close(answers)
    assert (done.returncode, done.stderr) == (1, b"")


def plan(bundle: Path, **changes: Any) -> list[Side]:
    asked: dict[str, Any] = {
        "pairs": [("openvino", "fp32")], "sizes": None, "ks": None, "batches": [1], "device": None,
        "threads": 0, "checkpoint": None,
    }  # fmt: skip
    return bench_plan.plan_from(read_bundle(bundle), **(asked | changes))


def test_a_plan_is_every_combination_with_pytorch_first(small_bundle: Callable[[str], Path]) -> None:
    bundle = small_bundle("dinov2")
    found = plan(
        bundle,
        pairs=[("openvino", "fp32"), ("onnxruntime", "fp32")],
        sizes=[(126, 126), (70, 70)],
        ks=[8, 9],
        batches=[1, 2],
        checkpoint=Path(__file__),
    )
    assert len(found) == len({each.name for each in found}) == 2 * 2 * 2 * 3
    assert [each.engine for each in found[:3]] == ["pytorch-eager", "openvino", "onnxruntime"]
    assert {(each.size, each.k, each.batch) for each in found} == {
        (size, k, batch) for size in ((126, 126), (70, 70)) for k in (8, 9) for batch in (1, 2)
    }


def test_what_is_named_twice_is_timed_once(small_bundle: Callable[[str], Path]) -> None:
    found = plan(
        small_bundle("dinov2"), pairs=bench_plan.pairs_of(None, None, ["openvino:fp32", "openvino:fp32"]),
        sizes=[(126, 126), (126, 126)], ks=[8, 9, 8], batches=[1, 1], peers=["full-backbone"],
    )  # fmt: skip
    assert [each.k for each in found] == [8, 9, 81]


def test_every_wish_doubles_the_sides_of_the_chain_and_no_others(small_bundle: Callable[[str], Path]) -> None:
    found = plan(small_bundle("dinov2"), static=True, cls_only=True, streams=2, peers=["full-backbone"])
    assert [each.name.removesuffix(" 126x126 k=8 batch=1") for each in found[:-1]] == [
        "openvino fp32",
        "openvino fp32 2 streams",
        "openvino fp32 cls-only",
        "openvino fp32 cls-only 2 streams",
        "openvino fp32 static",
        "openvino fp32 static 2 streams",
        "openvino fp32 static cls-only",
        "openvino fp32 static cls-only 2 streams",
    ]
    assert len({(each.static, each.cls_only, each.streams) for each in found[:-1]}) == 8
    whole = found[-1]
    assert (whole.kind, whole.static, whole.cls_only, whole.streams) == ("full-backbone", False, False, 1)


def test_a_plan_takes_the_bundles_defaults_and_every_core(small_bundle: Callable[[str], Path]) -> None:
    (only,) = plan(small_bundle("dinov2"))
    assert (only.size, only.k, only.batch) == ((126, 126), 8, 1)  # 9x9 cells, a tenth of them
    assert only.threads == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": [82]}, "k 82"),
        ({"ks": [0]}, "k 0"),
        ({"sizes": [(127, 127)]}, "127"),
        ({"sizes": [(0, 0)]}, "size 0"),
        ({"batches": [0]}, "--batch 0"),
        ({"batches": [4097]}, "--batch 4097 is not to be had; give 1 to 4096"),
        ({"threads": -1}, "--threads -1"),
        ({"streams": 0}, "--streams 0 is out of range; give 1 to 64"),
        ({"streams": 2, "batches": [2]}, "--streams is for batch 1; leave --batch out"),
        ({"static": True, "batches": [1, 2]}, "--static is for batch 1; leave --batch out"),
        ({"checkpoint": Path("gone.pt")}, "gone.pt: no such checkpoint file; give the one that .* was made of"),
    ],
    ids=str,
)
def test_a_plan_is_checked_before_anything_starts(
    changes: dict[str, Any], message: str, small_bundle: Callable[[str], Path]
) -> None:
    with pytest.raises(SaccadeError, match=message):
        plan(small_bundle("dinov2"), **changes)


def test_a_real_run_times_every_stage_of_both_engines_against_pytorch(
    small_bundle: Callable[[str], Path],
    small_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["bench", str(small_bundle("dinov2")), "--engine", "openvino", "onnxruntime", "--batch", "2"]
    command += ["--checkpoint", str(small_checkpoint("dinov2")), "--rounds", "2", "--frames", "3", "--threads", "1"]
    assert main([*command, "--json", "-o", str(tmp_path / "bench.json")]) == 0
    data = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "bench.json").read_text()) == data
    eager, *ours = data["sides"]
    assert eager["engine"] == "pytorch-eager"
    assert list(eager) == [*SIDE, "of_pytorch_eager"]
    assert data["conditions"]["threads"] == 1
    for result, engine in zip(ours, ["openvino", "onnxruntime"], strict=True):
        assert list(result) == [*SIDE, "outside_networks_share", "networks", "of_pytorch_eager"]
        assert result["engine"] == engine
        assert list(result["stage_ms"]) == STAGES
        assert 0 < result["outside_networks_share"] < 1
        assert result["of_pytorch_eager"] > 0
        assert result["versions"][engine]
        inner = sum(result["stage_ms"][name]["min"] for name in STAGES if name not in bench_results.APART)
        assert inner <= result["frame_ms"]["p99"]


def test_files_are_decoded_and_fitted_in_every_call_apart_from_the_frame(
    small_bundle: Callable[[str], Path], photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", str(small_bundle("dinov2")), "--images", str(photo_folder), "--streams", "2", "--threads", "2"]
    assert main([*command, "--rounds", "1", "--frames", "3", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    one, stream = data["sides"]
    assert one["stage_ms"]["decode"]["min"] > 0.1  # of 200 x 200 px in PNG; taking an array takes microseconds
    assert one["stage_ms"]["fit"]["min"] > 0.02
    assert stream["stage_ms"] == {}
    assert data["conditions"]["boundary"].endswith("; 16 image files decoded and fitted in turn, timed apart")


def test_files_come_in_turn_and_more_of_them_than_a_batch(
    small_bundle: Callable[[str], Path], photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[list[str]] = []
    call = Pipeline.__call__
    monkeypatch.setattr(
        Pipeline, "__call__", lambda self, images, **rest: (names.append(images), call(self, images, **rest))[1]
    )
    files = sorted(photo_folder.iterdir())[:3]
    (only,) = plan(small_bundle("dinov2"), images=files, batches=[2], pairs=[("onnxruntime", "fp32")])
    bench.build_missing(read_bundle(only.bundle), [only], lambda phase: None, lambda line: None)
    with bench_side._chain(only) as (frame, *_):
        for _ in range(3):
            frame()
    a, b, c = map(str, files)
    assert names == [[a, b], [c, a], [b, c]]


def test_a_side_without_enough_memory_is_one_line(
    small_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(side: Side) -> None:
        raise MemoryError

    monkeypatch.setattr(bench_side, "_opened", fail)
    (only,) = plan(small_bundle("dinov2"))
    monkeypatch.setattr(sys, "argv", ["bench_side", msgspec.json.encode(only).decode()])
    assert bench_side.main() == 1
    out, err = capfd.readouterr()
    assert json.loads(out) == {"error": "it needs more memory than there is; give a smaller --batch or --size"}
    assert err == ""


def test_static_cls_only_and_streams_run_as_they_are_named(
    small_bundle: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", str(small_bundle("dinov2")), "--static", "--cls-only", "--streams", "2", "--k", "9"]
    assert main([*command, "--rounds", "1", "--frames", "1", "--threads", "2", "--json"]) == 0
    sides = json.loads(capsys.readouterr().out)["sides"]
    assert len(sides) == 8
    for result in sides:
        is_stream = result["streams"] == 2
        assert list(result["stage_ms"]) == ([] if is_stream else STAGES)
        assert ("networks" in result) == ("outside_networks_share" in result) == (not is_stream)
        assert result["frame_ms"]["p50"] > 0
    whole, alone = sides[0]["networks"]["extractor"], sides[2]["networks"]["extractor"]
    assert alone["gflop"] < whole["gflop"]


def test_what_no_side_of_an_engine_can_be_is_refused_before_anything_is_built(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(copy), "--engine", "openvino", "onnxruntime", "--static"]) == 1
    assert "onnxruntime has no static engines; leave static out, or use openvino" in capsys.readouterr().err
    assert not (copy / "engines").exists()


def test_a_side_that_cannot_load_ends_the_command_with_one_line(
    small_bundle: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"hello")
    command = ["bench", str(small_bundle("dinov2")), "--checkpoint", str(other), "--rounds", "1", "--frames", "1", "--json"]
    assert main(command) == 1
    said = capfd.readouterr()
    assert json.loads(said.out)["error"].startswith("pytorch-eager fp32 126x126 k=8 batch=1: ")
    assert "other.pt is not a PyTorch checkpoint" in json.loads(said.out)["error"]
    assert "Traceback" not in said.err


def test_the_dense_output_of_segmentation_is_timed_apart(small_bundle: Callable[[str], Path]) -> None:
    segment = Side("s", str(small_bundle("segment")), "onnxruntime", "fp32", "cpu", (126, 126), 8, 1, 1, None)
    bench.build_missing(read_bundle(segment.bundle), [segment], lambda phase: None, lambda line: None)
    with bench_side._chain(segment) as (frame, versions, _):
        times = frame()
    assert list(times) == ["frame", *STAGES, "fill"]
    assert times["frame"] >= sum(times[name] for name in STAGES if name not in bench_results.APART)
    assert list(versions) == ["onnxruntime"]


# ---- building comes before loading


@pytest.fixture
def copy(small_bundle: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of the small bundle, without engines."""
    return shutil.copytree(small_bundle("dinov2"), tmp_path / "copy", ignore=shutil.ignore_patterns("engines"))


def test_a_missing_engine_is_built_once_before_any_side_starts(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["bench", str(copy), "--k", "8", "9", "--rounds", "1", "--frames", "1", "--threads", "1"]
    assert main(command) == 0
    err = capfd.readouterr().err
    assert err.count("no openvino fp32 engine is built yet: building it") == 1
    assert "  selector: compile: done in " in err
    assert main(command) == 0
    assert "building" not in capfd.readouterr().err


def test_a_side_builds_nothing_itself(copy: Path) -> None:
    missing = Side("s", str(copy), "onnxruntime", "fp32", "cpu", (126, 126), 8, 1, 1, None)
    with pytest.raises(SaccadeError, match=r"s: .*no onnxruntime fp32 engine is built yet; 'saccade build"):
        bench.run([missing], rounds=1, frames=1)
    assert not (copy / "engines").exists()


def test_a_side_closes_its_pipeline(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Pipeline] = []
    close = Pipeline.close
    monkeypatch.setattr(Pipeline, "close", lambda pipeline: (closed.append(pipeline), close(pipeline))[1])
    monkeypatch.setattr(sys, "stdin", ["2\n"])
    side = Side("s", str(copy), "onnxruntime", "fp32", "cpu", (126, 126), 8, 1, 1, None)
    bench.build_missing(read_bundle(copy), [side, side], lambda phase: None, lambda line: None)
    answers: list[dict[str, Any]] = []
    bench_side._serve(side, answers.append)
    loaded, turn = answers
    assert loaded.keys() == {"load_s", "first_ms", "versions", "gflop"}
    assert [len(values) for values in turn["stages"].values()] == [2] * (len(STAGES) + 1)
    assert len(closed) == 1


def test_an_engine_that_cannot_run_here_is_refused_before_it_is_built(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    missing = Side("s", str(copy), "onnxruntime", "fp32", "cpu", (126, 126), 8, 1, 1, None)
    with pytest.raises(SaccadeError, match=r"onnxruntime cannot be imported .*pip install '\.\[onnxruntime\]' in the clone"):
        bench.build_missing(read_bundle(copy), [missing], lambda phase: None, lambda line: None)
