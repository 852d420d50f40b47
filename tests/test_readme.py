"""The README is true: its commands and its Python run as they stand there, and what it names exists."""
from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.cli.main import build_parser
from saccade.engines import store
from saccade.runtime.sheet import GAP, caption_height
from saccade.validate.bench_plan import pairs_of

ROOT = Path(__file__).parents[1]
OF_SOME_CPUS = ("bf16", "int8")
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_readme_commands_write_what_they_name(readme_folder: Path) -> None:
    features = np.load(readme_folder / "features.npz")
    assert features["cls"].shape == (1, 768)
    assert features["indices"].shape == (1, 136)
    assert (readme_folder / "overlay.png").stat().st_size > 10_000
    with Image.open(readme_folder / "pca.png") as pca, Image.open(readme_folder / "heads.png") as heads:
        height = 2 * (caption_height(480) + 320 + GAP) + GAP  # a row for each photograph
        assert pca.size == (2 * (480 + GAP) + GAP, height)  # itself and its colours
        assert heads.size == (7 * (480 + GAP) + GAP, height)  # itself and six heads
    assert np.load(readme_folder / "dense.npz")["dense"].shape == (2, 384, 20, 30)
    assert "Parity with PyTorch: <span class=\"pass\">equal" in (readme_folder / "dino.html").read_text()
    assert "Parity with PyTorch: <span class=\"pass\">equal" in (readme_folder / "parity.html").read_text()


@pytest.mark.slow
def test_readme_python_runs_as_written(readme_folder: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    code += "\nassert out.dense.shape == (2, 768, 37, 37) and out.indices.shape == (2, 136)\n"
    code += "assert features.dense.shape == (1, 384, 20, 30) and features.pca_rgb().shape == (1, 20, 30, 3)\n"
    code += "assert features.attention.shape == (1, 6, 600)\n"
    subprocess.run([sys.executable, "-c", code], cwd=readme_folder, check=True)


def commands() -> list[str]:
    """Return the command lines of saccade in blocks, and those in the text that name the bundle."""
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    in_text = [found for found in re.findall(r"`(saccade [^`]*)`", README) if "lookwhere " in found]
    return [line for line in blocks.splitlines() if line.startswith("saccade ")] + in_text


@pytest.mark.parametrize("command", commands())
def test_readme_commands_are_ones_that_saccade_takes(command: str) -> None:
    options = build_parser().parse_args(shlex.split(command)[1:])
    if options.command == "bench":
        pairs = pairs_of(options.engine, options.precision, options.side)
        offered = {engine: {*store.backend(engine).capabilities().precisions, *OF_SOME_CPUS} for engine, _ in pairs}
        assert all(precision in offered[engine] for engine, precision in pairs)


def test_readme_has_its_commands() -> None:
    assert {command.split()[1] for command in commands()} >= {"export", "build", "run", "parity", "convert", "bench"}
    assert sum(command.startswith("saccade bench") for command in commands()) == 4


OUTPUTS = ("-o", "--overlay", "--pca", "--attention", "--report", "--plots", "--output")


def test_what_readme_commands_write_is_ignored_by_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone, so it is not known what git ignores")
    words = [shlex.split(command) for command in commands()]
    written = {after for each in words for flag, after in itertools.pairwise(each) if flag in OUTPUTS}
    assert {"lookwhere_dinov2.pt", "lookwhere", "features.npz", "overlay.png", "parity.html", "dino", "plots"} <= written
    folders = [f"{name}/file" if not Path(name).suffix else name for name in sorted(written)]
    found = subprocess.run(["git", "check-ignore", *folders], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout.split() == folders


def test_readme_names_only_make_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    names = {first or second for first, second in re.findall(r"^make (\w+)|`make (\w+)`", README, re.MULTILINE)}
    assert names >= {"demo", "test"}
    for name in names:
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_readme_names_only_files_that_exist() -> None:
    for name in re.findall(r"examples/[\w.]+", README):
        assert (ROOT / name).exists(), name
