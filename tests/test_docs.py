"""The pages beside the README: their Python is Python, and what they name exists."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

import saccade
from saccade.cli.main import build_parser
from saccade.runtime.device_arrays import DeviceArray
from saccade.validate.evaluations import TASKS, knn

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/gpu.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("code", BLOCKS)
def test_python_compiles_and_calls_what_a_gpu_pipeline_has(code: str) -> None:
    compile(code, "docs/gpu.md", "exec")
    for name in re.findall(r"\bpipe\.(\w+)\(", code):
        assert hasattr(saccade.GpuPipeline, name), name
    for name in re.findall(r"\bout\.cls\.(\w+)\(", code):
        assert hasattr(DeviceArray, name), name
    options = set(saccade.GpuPipeline.__call__.__annotations__)
    for call in re.findall(r"\bpipe\((.*)\)", code):
        assert set(re.findall(r"(\w+)=", call)) <= options, call


def test_the_files_and_targets_it_names_exist() -> None:
    for name in re.findall(r"`((?:runtime|validate|tests)/[\w./]+)`", PAGE):
        assert (ROOT / name).exists(), name
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"`make ([\w-]+)", PAGE):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_the_number_of_graphs_is_the_one_that_is_kept() -> None:
    from saccade.runtime.gpu_frames import MAX_FRAMES

    assert f"The {MAX_FRAMES} used last are kept" in PAGE


# ---- evaluate.md

EVALUATE = (ROOT / "docs/evaluate.md").read_text()


def test_the_page_of_evaluations_has_every_task_in_both_tables() -> None:
    tables = [re.findall(r"^\| `([\w-]+)` \|", part, re.MULTILINE) for part in EVALUATE.split("## What differs")]
    assert sorted(tables[0]) == sorted(tables[1]) == sorted([*(task.name for task in TASKS), "patch-match"])


def test_lookwhere_lacks_the_tasks_that_the_page_says() -> None:
    (sentence,) = re.findall(r"all tasks but (.*?) run on them", EVALUATE)
    assert set(re.findall(r"`([\w-]+)`", sentence)) == {task.name for task in TASKS if not task.on_lookwhere}


@pytest.mark.parametrize("words", [line.split()[1:] for line in re.findall(r"^saccade .*$", EVALUATE, re.MULTILINE)])
def test_the_commands_of_evaluations_parse(words: list[str]) -> None:
    assert callable(build_parser().parse_args(words).execute)


def test_the_digits_that_the_page_writes_are_a_data_set_of_knn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", EVALUATE, re.DOTALL | re.MULTILINE)
    exec(compile(code, "docs/evaluate.md", "exec"), {})
    data = knn.read(Path("digits"), knn.KnnSettings())
    assert (data.classes, data.notes) == (list("0123456789"), ())
    assert (len(data.train.paths), len(data.val.paths)) == (400, 120)
    with Image.open(data.val.paths[0]) as picture:
        assert picture.size == (64, 64)
