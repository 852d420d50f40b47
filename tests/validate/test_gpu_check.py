"""make gpu-check without a GPU: its arithmetic, its page, and that one failing section stops no other."""
from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saccade.engines.cuda import Gpu, find_gpus
from saccade.errors import SaccadeError
from saccade.validate import gpu_check, gpu_report
from saccade.validate.gpu_check import SECTIONS, main, parse, run_sections, sanitizer_summary
from saccade.validate.gpu_report import Times, Verdict, frame_rows, kernel_rows, moved_bytes, page, times_of, verdicts

no_gpu = pytest.mark.skipif(bool(find_gpus()[0]), reason="this machine has a GPU")
ROOT = Path(__file__).parents[2]
MODEL = SimpleNamespace(patch=14, selector_size=154, map_size=44, dim=768)


def test_times_are_the_median_and_both_tenths() -> None:
    assert times_of([5, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]) == Times(6, 2, 10, 11)
    assert times_of([3.0]) == Times(3, 3, 3, 1)
    assert Times(20, 10, 40, 7).divided(20) == Times(1, 0.5, 2, 7)


def test_what_a_kernel_moves_is_what_its_arrays_take() -> None:
    moved = moved_bytes(MODEL, 768, batch=2, grid=(37, 37), k=136)  # type: ignore[arg-type]
    cells, kept = 2 * 1369, 2 * 136
    assert moved["gather"] == kept * 4 + kept * 588 + kept * 588 * 4 + 2 * kept * 768 * 4
    assert moved["fill"] == 4 * 768 * (kept + cells)
    assert moved["resize_scores"] == 4 * (2 * 44 * 44 + cells)
    assert moved["rank"] == moved["resize_scores"] + 4 * kept
    assert moved["preprocess"] == 2 * 154 * 154 * (12 + 12)


def test_a_kernels_row_has_its_share_of_a_copys_bandwidth() -> None:
    rows = kernel_rows({"gather": Times(0.002, 0, 0, 1)}, {"gather": 4_000_000}, 4e12)
    assert rows == [["gather", "2.0", "4.00", "2000", "50%"]]


def test_a_frames_row_has_its_share_of_another_where_that_ran() -> None:
    frames = {"ours": Times(1, 0.9, 1.2, 5), "eager": Times(4, 4, 4, 5)}
    assert frame_rows(frames, "eager") == [
        ["ours", "1.000", "0.900 to 1.200", "0.25"], ["eager", "4.000", "4.000 to 4.000", "1.00"],
    ]  # fmt: skip
    assert frame_rows({"ours": frames["ours"]}, "eager")[0][-1] == "-"


def timings(
    size: int, batch: int, chain: float, eager: float, graphed: float, top_k_us: float | None = None
) -> list[dict[str, Any]]:
    """What both sections of times find of one size and batch."""
    named = {gpu_report.CHAIN: chain, gpu_report.EAGER: eager, gpu_report.GRAPHED: graphed}
    where, frames = {"size": size, "batch": batch}, {name: {"median": value} for name, value in named.items()}
    stages = {} if top_k_us is None else {gpu_report.TOP_K: {"median": top_k_us / 1e3}}
    return [where | {"stages": stages}, where | {"frames": frames}]


def test_every_target_has_a_verdict() -> None:
    measured = [*timings(518, 1, 1.0, 5.0, 0.9, 14.0), *timings(518, 8, 1, 4, 1, 99), *timings(1036, 1, 9, 9, 9, 31)]
    found = verdicts(measured)
    assert [(each.value, each.bound, each.passed) for each in found] == [
        (14.0, 15.0, True), (31.0, 30.0, False),
        (pytest.approx(0.2), 0.25, True), (pytest.approx(1 / 0.9), 1.0, False), (0.25, 0.25, True), (1.0, 1.0, True),
    ]  # fmt: skip
    assert found[0].line() == "- reached: top-k and gather, microseconds at 518 px, batch 1: 14, at most 15"
    assert found[1].line().startswith("- MISSED: ")
    assert not Verdict("", float("nan"), 1).passed


def test_what_was_not_measured_is_not_reached() -> None:
    half = {"size": 518, "batch": 1, "frames": {gpu_report.EAGER: {"median": 4.0}}}
    found = verdicts([*timings(518, 64, 9, 9, 9, 99), half])
    assert [(each.value, each.passed) for each in found] == [(None, False)] * 6
    assert found[0].line() == "- NOT MEASURED: top-k and gather, microseconds at 518 px, batch 1, at most 15"


def test_a_target_that_is_missed_or_was_not_measured_fails_the_check() -> None:
    missed = Namespace(timings=[*timings(518, 1, 1, 3, 1, 14), *timings(518, 8, 1, 5, 1), *timings(1036, 1, 9, 9, 9, 29)])
    section = gpu_check.targets(missed)  # type: ignore[arg-type]
    assert section["failed"] == ["a frame against PyTorch fp16, eager at 518 px, batch 1"]
    assert len(section["lines"]) == 2 + 6
    assert len(gpu_check.targets(Namespace(timings=[]))["failed"]) == 6  # type: ignore[arg-type]
    reached = Namespace(timings=[*timings(518, 1, 1, 5, 1, 14), *missed.timings[2:]])
    assert "failed" not in gpu_check.targets(reached)  # type: ignore[arg-type]


def test_the_summary_of_the_sanitizer_is_its_last_word() -> None:
    assert sanitizer_summary("a\n========= ERROR SUMMARY: 0 errors\n") == "ERROR SUMMARY: 0 errors"
    output = "========= RACECHECK SUMMARY: 1 hazard displayed\nfill: 1 cases, 0 wrong\n"
    assert sanitizer_summary(output) == "RACECHECK SUMMARY: 1 hazard displayed"
    assert sanitizer_summary("========= Error: Device not supported\n") == "Error: Device not supported"
    assert sanitizer_summary("") == "no output"


def sections(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(check: Any) -> Any:
        raise RuntimeError("CUDA error\nand more")

    monkeypatch.setitem(SECTIONS, "kernels", lambda check: {"lines": ["all right"]})
    monkeypatch.setitem(SECTIONS, "parity", broken)
    monkeypatch.setitem(SECTIONS, "sanitizer", lambda check: {"lines": ["bad"], "failed": ["memcheck"]})


def test_a_section_that_fails_is_told_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sections(monkeypatch)
    said: list[str] = []
    found = run_sections(SimpleNamespace(), ["parity", "kernels", "sanitizer"], said.append, lambda found: None)
    assert list(found) == ["parity", "kernels", "sanitizer"]
    assert found["parity"]["error"] == "RuntimeError: CUDA error"
    assert "in broken" in found["parity"]["traceback"]
    ends = ["parity: FAILED: RuntimeError: CUDA error", "kernels: done", "sanitizer: FAILED: memcheck"]
    assert said[1::2] == [f"{end} after 0 s" for end in ends]
    text = page({"machine": {"line": "A GPU."}, "sections": found})
    parity = "### parity\n\n**failed**: RuntimeError: CUDA error\n\n"
    assert text.startswith(f"## Measured\n\nA GPU.\n\n{parity}### kernels\n\nall right")


@pytest.mark.parametrize(("names", "code"), [(["kernels"], 0), (["kernels", "parity"], 1), (["sanitizer"], 1)])
def test_both_reports_are_written_whatever_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], code: int
) -> None:
    sections(monkeypatch)
    monkeypatch.setattr(gpu_check, "machine", lambda: {"line": "A GPU."})
    assert main(["-o", str(tmp_path / "out"), "--only", *names]) == code
    assert list(json.loads((tmp_path / "out/gpu-check.json").read_text())["sections"]) == names
    assert (tmp_path / "out/gpu-check.md").read_text() + "\n" == capsys.readouterr().out


def test_what_a_section_found_before_it_was_ended_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ended(check: gpu_check.Check) -> Any:
        check.keep({"lines": ["518 px, batch 1"]})
        raise KeyboardInterrupt

    sections(monkeypatch)
    monkeypatch.setitem(SECTIONS, "frame-times", ended)
    monkeypatch.setattr(gpu_check, "machine", lambda: {"line": "A GPU."})
    with pytest.raises(KeyboardInterrupt):
        main(["-o", str(tmp_path), "--only", "kernels", "frame-times"])
    text = (tmp_path / "gpu-check.md").read_text()
    assert "all right" in text
    assert "518 px, batch 1" in text


def test_what_a_section_found_before_it_failed_stays() -> None:
    section = {"lines": ["518 px, batch 1"], "error": "RuntimeError: no memory"}
    text = page({"machine": {"line": "A GPU."}, "sections": {"frame-times": section}})
    assert "### frame-times\n\n**failed**: RuntimeError: no memory\n\n518 px, batch 1\n" in text


@no_gpu
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    command = [sys.executable, "-m", "saccade.validate.gpu_check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("saccade: no NVIDIA GPU here (")
    assert line.endswith("so there is nothing to check; go to a machine with one")


def test_make_names_the_packages_that_a_python_lacks() -> None:
    bare = f"PYTHON={sys.executable} -I -S"
    done = subprocess.run(["make", "-s", "gpu-check", bare], cwd=ROOT, capture_output=True, text=True, check=False)
    lacks = "lacks torch, numpy, pillow, msgspec, tqdm, pybind11, setuptools; install them, or name another PYTHON="
    assert done.stderr.splitlines()[0] == f"make gpu-check: {sys.executable} {lacks}"
    assert done.returncode != 0


def test_a_torch_that_cannot_use_the_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(gpu_check, "find_gpus", lambda: ((Gpu("NVIDIA H200", "SM90", "13.0"),), ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SaccadeError, match="cannot use the GPU; install a build of it with CUDA"):
        gpu_check.machine()


@pytest.mark.parametrize("arguments", [["--size", "500"], ["--batch", "0"], ["--size", "0"]])
def test_sizes_and_batches_that_cannot_be_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr().err == "saccade: --size takes multiples of 14, and --batch numbers from 1\n"


def test_the_defaults_are_what_the_page_is_to_hold() -> None:
    options = parse([])
    assert (options.size, options.batch, options.only) == ([518, 1036], [1, 8, 64], list(SECTIONS))


# ---- sections, on the host as a GPU


@pytest.fixture
def check(new_device: Callable[..., Any], tmp_path: Path) -> gpu_check.Check:
    found = gpu_check.Check(Namespace(model="small", seed=1, size=[126], batch=[1]), tmp_path)
    vars(found)["device"] = new_device()
    return found


def test_the_section_of_the_kernels_judges_them(check: gpu_check.Check, monkeypatch: pytest.MonkeyPatch) -> None:
    from saccade.validate import gpu_kernels

    monkeypatch.setattr(gpu_kernels, "GRIDS", (((5, 6), 7),))
    monkeypatch.setattr(gpu_kernels.check_kernels, "__defaults__", (gpu_kernels.GRIDS,))
    section = gpu_check.kernels(check)
    assert "failed" not in section
    assert section["lines"][2:] == [f"| {name} | 3 | 0 |" for name in ("preprocess", "select", "gather", "fill")]
    monkeypatch.setitem(gpu_kernels.CHECKS, "fill", lambda *arguments: False)
    section = gpu_check.kernels(check)
    assert section["failed"] == ["fill"]
    assert section["lines"][0] == "**failed**: fill"


def test_a_sanitizer_that_is_not_here_is_said_and_is_no_failure(
    check: gpu_check.Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "SANITIZER", "no-such-sanitizer")
    assert gpu_check.sanitizer(check) == {"lines": ["not run: no-such-sanitizer is not here"]}


def test_a_sanitizer_that_finds_something_fails_the_section(
    check: gpu_check.Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "sanitizer"
    tool.write_text('#!/bin/sh\necho "========= $2 SUMMARY: some"\n[ "$2" = memcheck ]\n')
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_check, "SANITIZER", str(tool))
    section = gpu_check.sanitizer(check)
    assert section["failed"] == ["racecheck"]
    assert section["lines"][2:] == ["- memcheck: memcheck SUMMARY: some", "- racecheck: racecheck SUMMARY: some"]


def test_a_sanitizer_that_takes_too_long_fails_and_is_no_end(
    check: gpu_check.Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "sanitizer"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_check, "SANITIZER", str(tool))
    monkeypatch.setattr(gpu_check, "SANITIZER_SECONDS", 0.05)
    section = gpu_check.sanitizer(check)
    assert section["failed"] == ["memcheck", "racecheck"]
    assert section["lines"][2] == "- memcheck: not done after 0.05 s"


@pytest.fixture
def on_ours(check: gpu_check.Check, monkeypatch: pytest.MonkeyPatch) -> gpu_check.Check:
    """Let torch's modules be networks of our GPU, which take their turn in its streams."""
    from saccade.validate import gpu_model
    from saccade.validate.torch_engine import TorchEngine

    class InOrder(TorchEngine):
        def bind(self, *arguments: Any) -> Any:
            bound = super().bind(*arguments)
            enqueue = bound.enqueue
            bound.enqueue = lambda stream: check.device.enqueue(self.role, (), lambda: enqueue(stream), stream)
            return bound

    opened = gpu_model.open_chain
    monkeypatch.setattr(gpu_model, "TorchEngine", InOrder)
    monkeypatch.setattr(gpu_model, "open_chain", lambda *given, **options: opened(*given, **options, where="cpu"))
    vars(check)["where"] = None
    return check


def test_the_section_of_parity_holds_the_five_numbers_and_compares_graph_and_steps(on_ours: gpu_check.Check) -> None:
    section = gpu_check.parity(on_ours)
    assert section["found"]["fp32"]["passed"]
    assert [section["found"][precision]["graph_equals_its_steps"] for precision in ("fp32", "fp16")] == [True, True]
    assert "| fp32 | graph and single steps, other bits | 0 | 0 |" in section["lines"]


class Images:
    """A guest's images on our GPU."""

    device = None

    def __init__(self, device: Any, batch: int, size: int) -> None:
        self.array = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
        device.adopt(self.array)
        self.shape = self.array.shape

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.array.__array_interface__ | {"version": 3}


@pytest.fixture
def timed(on_ours: gpu_check.Check, monkeypatch: pytest.MonkeyPatch) -> gpu_check.Check:
    """Let every timing be a millisecond: what is run is run once."""
    from saccade.validate import gpu_timing

    def once(run: Callable[[], object], *where: Any) -> Times:
        run()
        return Times(1.0, 0.5, 2.0, 1)

    monkeypatch.setattr(gpu_timing, "elapsed_ms", once)
    monkeypatch.setattr(gpu_timing, "call_ms", once)
    monkeypatch.setattr(gpu_timing, "copy_bandwidth", lambda device: 4e12)
    monkeypatch.setattr(gpu_timing, "random_images", lambda batch, size, device: Images(on_ours.device, batch, size))
    return on_ours


def test_the_section_of_kernel_times_has_a_table_for_each_size_and_batch(timed: gpu_check.Check) -> None:
    timed.options.batch = [1, 2]
    kept: list[gpu_check.Section] = []
    timed.keep = kept.append
    section = gpu_check.kernel_times(timed)
    assert [(each["size"], each["batch"], each["k"]) for each in section["timings"]] == [(126, 1, 8), (126, 2, 8)]
    assert kept == [section, section]  # after each of them
    lines = section["lines"]
    assert lines[:3] == ["A copy of 1 GiB moves 4000 GB/s, read and written.", "", "126 px, k 8, batch 1:"]
    rows = [line.split(" | ")[0].strip("| ") for line in lines if line.startswith("| ")]
    kernels = ["kernel", "---", "preprocess", "resize_scores", "rank", "gather", "fill"]
    assert rows == [*kernels, "step", "---", "selector", "extractor", "top-k and gather"] * 2
    assert "| selector | 50.0 |" in lines  # of 20 in a graph


def test_the_section_of_frame_times_goes_on_where_one_way_fails(
    timed: gpu_check.Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saccade.validate import gpu_model, gpu_timing

    def no_compiler() -> Times:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(
        gpu_timing, "pytorch_frames", lambda *given: {gpu_report.EAGER: lambda: Times(4, 4, 4, 1), "compiled": no_compiler}
    )
    opened, asked = gpu_model.open_chain, list[dict[str, Any]]()

    def eager(*given: Any, **options: Any) -> Any:
        asked.append(dict(options))
        options.pop("compiled", None)  # it takes half a minute
        return opened(*given, **options)

    monkeypatch.setattr(gpu_model, "open_chain", eager)
    section = gpu_check.frame_times(timed)
    assert section["failed"] == ["compiled at 126 px, batch 1: RuntimeError: no C++ compiler"]
    assert asked == [{"graphs": False}, {}, {"compiled": True}]
    (found,) = section["timings"]
    assert list(found["frames"]) == [
        "saccade fp16, step by step", "saccade fp16, one graph", gpu_report.CHAIN, gpu_report.EAGER,
    ]  # fmt: skip
    assert "| saccade fp16, one graph | 1.000 | 0.500 to 2.000 | 0.25 |" in section["lines"]


def test_the_unsplit_model_to_compare_with_is_the_reference(check: gpu_check.Check) -> None:
    import torch

    from saccade.export.reference import Reference
    from saccade.validate.gpu_timing import Unsplit

    images = np.random.default_rng(0).integers(0, 256, (2, 126, 126, 3), np.uint8)
    expected = Reference(check.subject.checkpoint, "features")(list(images), 9)
    with torch.inference_mode():
        cls = Unsplit(check.subject, (9, 9), 9)(torch.from_numpy(images))
    np.testing.assert_allclose(cls.numpy(), expected.pooled, rtol=1e-4, atol=1e-5)
