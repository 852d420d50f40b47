"""The command evaluate: its options, what it writes, the gate, and a sweep of k from a bundle to a plot."""
from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino
import pytest
import torch
from PIL import Image

import saccade
from saccade import atomic
from saccade.cli.main import main
from saccade.errors import SaccadeError
from saccade.runtime.loading import load
from saccade.validate.evaluations import TASKS
from saccade.validate.sources import BackboneSource


@pytest.fixture
def few_digits(digits_folder: Path, tmp_path: Path) -> Path:
    """Return three digits of 12 and 10 pictures."""
    for label in "147":
        for part, count in (("train", 12), ("val", 10)):
            (tmp_path / "few" / part / label).mkdir(parents=True)
            for path in sorted((digits_folder / part / label).iterdir())[:count]:
                shutil.copy(path, tmp_path / "few" / part / label)
    return tmp_path / "few"


@pytest.fixture
def backbone(small_backbone: Callable[[str], Path]) -> Path:
    return small_backbone("neco")


@pytest.fixture
def lookwhere(small_bundle: Callable[[str], Path]) -> Path:
    return small_bundle("dinov2")


Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs the command, keeping features in a folder of the test, and returns what it says."""

    def command(task: str, *arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        line = ["evaluate", task, *map(str, arguments)]
        line += [] if task == "patch-match" else ["--features", str(tmp_path / "features")]
        assert main(line) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.out + said.err

    return command


KNN = ("--size", 28, "--neighbours", 5)


def test_people_get_tables_a_verdict_the_notes_and_the_conditions(run: Run, backbone: Path, few_digits: Path) -> None:
    options = ["--compare", "onnxruntime:fp32", "--max-drop", 10]
    lines = run("knn", backbone, few_digits, *KNN, "--neighbours", 5, 900, *options).splitlines()
    assert re.fullmatch(r"knn +openvino fp32 +onnxruntime fp32", lines[0])
    assert re.fullmatch(r"top-1, 5 neighbours \(headline\) +\d+\.\d\d % +\d+\.\d\d %", lines[1])
    assert re.fullmatch(r"ms per image, batch 1 +\d+\.\d +\d+\.\d", lines[3])
    assert re.fullmatch(r"headline +openvino fp32 +onnxruntime fp32 +difference +95% interval +at most 10 below", lines[5])
    assert re.fullmatch(r"top-1, 5 neighbours +[\d.]+ +[\d.]+ +\S+ +\S+ to \S+ +no difference shown +pass", lines[6])
    assert lines[8:10] == [
        "pass: at most 10 percentage points below",
        "note: neighbours [900] are more than 36 training images and are left out",
    ]
    version = re.escape(openvino.__version__.partition("-")[0])
    assert re.fullmatch(
        rf"openvino fp32: version {version}, onnxruntime fp32: version [\d.]+; saccade {saccade.__version__}", lines[10]
    )
    assert re.fullmatch(r"device the engine's choice, threads the engine's choice, batch 8, CPU \S.*", lines[11])
    assert len(lines) == 12


def test_every_other_side_is_compared_with_the_first_and_judged(
    run: Run, backbone: Path, few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.cli.sources.BackboneSource", Tired)
    monkeypatch.setattr(Tired, "opened", 0)
    others = ["openvino:fp32", "reference", "onnxruntime:fp32"]  # the first of which is tired
    options = ["--compare", *others, "--checkpoint", backbone.with_suffix(".pt"), "--max-drop", 20]
    said = run("knn", backbone, few_digits, *KNN, *options, "-o", tmp_path / "k.json", code=1)
    assert "FAIL: at most 20 percentage points below: openvino fp32\n" in said
    found = json.loads((tmp_path / "k.json").read_text())
    labels = [side["label"] for side in found["sides"]]
    assert labels == ["openvino fp32", "openvino fp32", "PyTorch fp32", "onnxruntime fp32"]
    assert [each["first_side"] for each in found["differences"]] == labels[:1] * 3
    assert [each["second_side"] for each in found["differences"]] == labels[1:]
    assert [each["passed"] for each in found["differences"]] == [False, True, True]
    assert not found["passed"]


class Tired(BackboneSource):
    """A source that knows the images no more once it is the second of a run."""

    opened = 0

    def __init__(self, pipeline: Any, lanes: Any = None) -> None:
        super().__init__(pipeline)  # one lane, which goes through `run`
        Tired.opened += 1
        self._is_second = Tired.opened == 2
        self.recipe = {**self.recipe, "opened": str(Tired.opened)}

    def run(self, images: Any, outputs: Any) -> Any:
        found = super().run(images, outputs)
        return {name: 0 * array for name, array in found.items()} if self._is_second else found


def test_the_gate_fails_a_side_that_is_worse(
    run: Run, backbone: Path, digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.cli.sources.BackboneSource", Tired)
    options = ["--size", 56, "--neighbours", 5, "--compare", "openvino:fp32", "-o", tmp_path / "result.json"]
    said = run("knn", backbone, digits_folder, *options, "--max-drop", 1, code=1)
    assert "FAIL: at most 1 percentage point below" in said
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["passed"]
    assert result["differences"][0]["high"] < 0
    monkeypatch.setattr(Tired, "opened", 0)
    assert "pass: at most 100 percentage points below" in run("knn", backbone, digits_folder, *options, "--max-drop", 100)


def test_one_sample_shows_its_scores_and_passes_no_gate(
    run: Run, backbone: Path, few_digits: Path, tmp_path: Path
) -> None:
    data = tmp_path / "digits"
    shutil.copytree(few_digits, data)
    _, *others = sorted((data / "val").glob("*/*"))
    for path in others:
        path.unlink()
    options = [*KNN, "--compare", "onnxruntime:fp32"]
    assert re.search(r"top-1, 5 neighbours +.* none +too few samples\n", run("knn", backbone, data, *options))
    said = run("knn", backbone, data, *options, "--max-drop", 100, "-o", tmp_path / "k.json", code=1)
    assert "FAIL: at most 100 percentage points below: onnxruntime fp32\n" in said
    assert "note: one sample, or samples that all belong together, have no interval and pass no --max-drop" in said
    (difference,) = json.loads((tmp_path / "k.json").read_text())["differences"]
    assert (difference["low"], difference["high"], difference["units"]) == (None, None, 1)


def test_an_engine_is_compared_with_pytorch(run: Run, backbone: Path, few_digits: Path) -> None:
    options = ["--compare", "reference", "--checkpoint", backbone.with_suffix(".pt"), "--json"]
    found = json.loads(run("knn", backbone, few_digits, *KNN, *options))
    assert [side["label"] for side in found["sides"]] == ["openvino fp32", "PyTorch fp32"]
    assert abs(found["differences"][0]["difference"]) <= 100 / 30  # at most one picture of 30 falls otherwise
    manifest = json.loads((backbone / "bundle.json").read_text())
    engine, reference = (side["conditions"] for side in found["sides"])
    assert engine["version"] == openvino.__version__
    assert engine["backbone_sha256"] == manifest["graphs"]["backbone"]["fp32"]["sha256"]
    assert list((backbone / "engines").glob(f"openvino-fp32-{engine['receipt']}"))
    assert reference["torch"] == torch.__version__
    assert reference["reference"] == found["conditions"]["checkpoint_sha256"] == sha256_of(backbone.with_suffix(".pt"))
    assert found["conditions"]["bundle_sha256"] == sha256_of(backbone / "bundle.json")
    assert found["conditions"]["interval"] == {"resamples": 2000, "confidence": 0.95, "seed": 0}
    assert found["conditions"]["saccade"] == saccade.__version__
    assert found["conditions"]["batch"] == 8


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_threads_reach_pytorch_too(run: Run, backbone: Path, few_digits: Path) -> None:
    before = torch.get_num_threads()
    try:
        options = ["--compare", "reference", "--checkpoint", backbone.with_suffix(".pt"), "--threads", 3, "--json"]
        found = json.loads(run("knn", backbone, few_digits, *KNN, *options))
        assert torch.get_num_threads() == found["conditions"]["threads"] == 3
    finally:
        torch.set_num_threads(before)


def test_a_sweep_of_k_on_two_engines_ends_in_a_plot(run: Run, lookwhere: Path, few_digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    written = ["-o", tmp_path / "s.json", "--markdown", tmp_path / "s.md", "--plot", tmp_path / "s.png"]
    options = ["--k", 2, 8, 16, "--compare", "onnxruntime:fp32", "--max-drop", 50]
    said = run("knn", lookwhere, few_digits, "--size", 56, "--neighbours", 5, *options, *written)
    assert [f"wrote {path}" for path in written[1::2]] == said.splitlines()[-3:]
    assert re.search(r"^knn, onnxruntime fp32 +k=2 +k=8 +k=16$", said, re.MULTILINE)
    assert re.search(r"^top-1, 5 neighbours, k=16 .* pass$", said, re.MULTILINE)
    result = json.loads((tmp_path / "s.json").read_text())
    assert [side["label"] for side in result["sides"]] == [
        f"{engine} fp32 k={k}" for engine in ("openvino", "onnxruntime") for k in (2, 8, 16)
    ]
    assert [side["k"] for side in result["sides"]] == [2, 8, 16] * 2
    assert all(side["latency_ms"] > 0 for side in result["sides"])
    assert len(result["differences"]) == 3
    values = [side["scores"][0]["value"] for side in result["sides"]]
    assert values[2] > 50  # chance is 33 %, and at k 16 every patch is kept
    assert (tmp_path / "s.md").read_text().startswith(f"# knn of {lookwhere} on {few_digits}\n")
    with Image.open(tmp_path / "s.png") as picture:
        assert min(picture.size) > 400


def test_an_engine_is_opened_once_for_all_k_and_all_extractions_of_its_side(
    run: Run, lookwhere: Path, few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, int]] = []

    def counted(bundle: Any, **options: Any) -> Any:
        opened.append((options["engine"], options.get("streams", 1)))
        return load(bundle, **options)

    monkeypatch.setattr("saccade.cli.sources.load", counted)
    monkeypatch.setattr("saccade.cli.sources.lanes_of", lambda engine, *options: 2 if engine == "openvino" else 1)
    run("knn", lookwhere, few_digits, *KNN, "--k", 2, 3, "--compare", "onnxruntime:fp32")
    assert opened == [("openvino", 1), ("onnxruntime", 1), ("openvino", 2)]
    del opened[:]
    run("knn", lookwhere, few_digits, *KNN, "--k", 2, 3)
    assert opened == [("openvino", 1)]  # all features are kept


def test_lookwhere_keeps_the_share_of_every_grid_that_its_bundle_says(
    run: Run, lookwhere: Path, few_digits: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "kept"
    shutil.copytree(lookwhere, copy)
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["defaults"] |= {"k": None, "k_ratio": 0.5}
    (copy / "bundle.json").write_text(json.dumps(manifest))
    for size, kept in ((56, 8), (84, 18)):  # half of 4 x 4 and of 6 x 6 cells, whatever grid the bundle's size has
        options = ("--size", size, "--neighbours", 5, "--json")
        (default,) = json.loads(run("knn", copy, few_digits, *options))["sides"]
        (explicit,) = json.loads(run("knn", lookwhere, few_digits, *options, "--k", kept))["sides"]
        assert (default["label"], default["k_ratio"]) == ("openvino fp32 k-ratio=0.5", 0.5)
        assert (explicit["label"], explicit["k"]) == (f"openvino fp32 k={kept}", kept)
        assert default["scores"] == explicit["scores"]
        assert default["details"] == explicit["details"]


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    run: Run, backbone: Path, few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    real = BackboneSource.stream

    def counted(self: BackboneSource, batches: Any, outputs: Any) -> Any:
        for found in real(self, batches, outputs):
            if sum(done) == 24:
                raise KeyboardInterrupt
            done.append(len(found["cls"]))
            yield found

    monkeypatch.setattr(BackboneSource, "stream", counted)
    assert "interrupted" in run("knn", backbone, few_digits, *KNN, code=130)
    done[:] = [1000]
    interrupted = json.loads(run("knn", backbone, few_digits, *KNN, "--json"))
    assert sum(done) - 1000 == 36 + 30 - 24
    monkeypatch.undo()
    whole = json.loads(run("knn", backbone, few_digits, *KNN, "--json", "--batch", 7))
    assert whole["sides"][0]["scores"] == interrupted["sides"][0]["scores"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", 0], "--batch 0 is out of range; give 1 to 1024"),
        (["--workers", 2000], "--workers 2000 is out of range; give 1 to 1024"),
        (["--max-drop", 1], "--max-drop is how far a side of --compare may fall behind; give --compare too"),
        (["--compare", "openvino:fp32", "onnxruntime:fp32", "openvino:fp32"], ":fp32 openvino:fp32: give each once"),
        (["--compare", "openvino:fp32", "reference"], "--compare reference and --checkpoint belong together"),
        (["--compare", "openvino:fp32", "--max-drop", -1], "give --compare too, and 0 or more"),
        (["--compare", "openvino:fp32", "--max-drop", "nan"], "give --compare too, and 0 or more"),
        (["--compare", "reference"], "--compare reference and --checkpoint belong together; give both or neither"),
        (["--compare", "openvino:fp32", "--max-drop", "inf"], "give --compare too, and 0 or more"),
        (["--checkpoint", "x.pt"], "--compare reference and --checkpoint belong together"),
        (["--compare", "nothing"], "nothing"),
        (["--compare", "openvino:fp3"], "fp3"),
        (["--plot", "x.png"], "--plot draws a sweep; give two or more with --k or --k-ratio"),
        (["--k", 4], "--k means nothing to a plain backbone, which sees every patch; leave it out"),
        (["--k-ratio", 0.4], "--k-ratio means nothing to a plain backbone, which sees every patch; leave it out"),
        (["--size", 30], "--size 30 is not a multiple of the 14 px patch; use 28"),
        (["--size", 2086], "--size 2086 makes 22201 patches; at most 21904 are supported"),
        (["--size", -1], "--size -1: expected `int` >= 0"),
        (["--temperature", 0], "--temperature 0: expected `float` > 0.0"),
        (["-o", "x.txt"], "-o x.txt: it is written as .json; end the name so"),
        (["--markdown", "none/x.md"], "none/x.md"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    options: list[object], message: str, run: Run, backbone: Path, few_digits: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    said = run("knn", backbone, few_digits, *(() if "--size" in options else KNN), *options, code=1)
    errors = [line for line in said.splitlines() if line.startswith("saccade: error: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(("task", "flag"), [("knn", "--pictures"), ("foreground", "--plot"), ("attention", "--k")])
def test_a_task_does_not_offer_what_it_has_no_use_for(task: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", task, "bundle", "data", flag, "2"])
    assert stopped.value.code == 2
    assert f"unrecognized arguments: {flag} 2" in capsys.readouterr().err


@pytest.fixture
def never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a command gets as far as a bundle."""

    def read(path: Path) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("saccade.cli.evaluate.read_bundle", read)


@pytest.mark.usefixtures("never_read")
@pytest.mark.parametrize(
    ("task", "module", "options", "message"),
    [
        ("overcluster", "sklearn", [], "sklearn cannot be imported; pip install '.[evaluate]' in the clone"),
        ("dense-nn", "scipy", [], "scipy cannot be imported; pip install '.[evaluate]' in the clone"),
        ("foreground", "sklearn", [], "sklearn cannot be imported"),
        ("video", "scipy", [], "scipy cannot be imported"),
        ("knn", "matplotlib", ["--k", 4, 8, "--plot", "x.png"], "plots need matplotlib"),
        ("video", "none", ["--pictures", __file__], f"cannot write {__file__}: a file stands where a folder is needed"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_read(
    task: str, module: str, options: list[object], message: str, run: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)  # makes every import of it fail
    assert message in run(task, "bundle", "data", *options, code=1)


def test_a_result_is_shown_even_where_its_file_cannot_be_written(
    run: Run, backbone: Path, few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = atomic.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.name == "x.json":
            raise SaccadeError(f"cannot write {path}: No space left on device")
        real(path, data)

    monkeypatch.setattr("saccade.cli.evaluate.atomic.write_bytes", full)
    options = (*KNN, "-o", tmp_path / "x.json")
    said = run("knn", backbone, few_digits, *options, code=1)
    assert re.search(r"^top-1, 5 neighbours \(headline\) +[\d.]+ %$", said, re.MULTILINE)
    assert f"not written: cannot write {tmp_path / 'x.json'}: No space left on device\n" in said
    found = json.loads(run("knn", backbone, few_digits, *options, "--json", code=1).splitlines()[0])
    assert found["sides"][0]["scores"]
    assert found["not_written"] == [f"cannot write {tmp_path / 'x.json'}: No space left on device"]


def test_outputs_inside_the_bundle_are_refused(run: Run, backbone: Path, few_digits: Path) -> None:
    said = run("video", backbone, few_digits, "--pictures", backbone / "pictures", code=1)
    assert "that is inside a bundle; choose a place outside" in said


def test_names_that_are_no_utf8_are_written_readably(run: Run, backbone: Path, few_digits: Path, tmp_path: Path) -> None:
    data = few_digits.rename(tmp_path / os.fsdecode(b"data\xff"))
    for part in ("train", "val"):
        (data / part / "4").rename(data / part / os.fsdecode(b"4\xfe"))
    written = ["-o", tmp_path / "k.json", "--markdown", tmp_path / "k.md"]
    run("knn", backbone, data, *KNN, *written)
    found = json.loads((tmp_path / "k.json").read_text())
    assert found["data"].endswith("data\\udcff")
    assert list(found["sides"][0]["details"]["top1_by_class"]) == ["1", "4\\udcfe", "7"]
    assert "data\\udcff" in (tmp_path / "k.md").read_text()
    picture = data / "picture.png"
    Image.new("RGB", (60, 60)).save(picture)
    said = run("patch-match", picture, "--first", "0,0,9,9,1", "--second", "0,0,9,9,1", "--picture", data / "p.png")
    assert said.endswith("data\\udcff/p.png\n")


def test_a_folder_that_may_not_be_listed_is_one_line(
    run: Run, backbone: Path, few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    said = run("knn", backbone, few_digits, code=1)
    assert f"error: cannot use {few_digits}/train: Permission denied; mend that, or give another place, and repeat" in said


def test_another_checkpoint_is_refused_before_an_engine_is_opened(
    run: Run, backbone: Path, lookwhere: Path, small_checkpoint: Callable[[str], Path], few_digits: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("saccade.cli.sources.load", None)
    theirs, plain = small_checkpoint("franca"), backbone.with_suffix(".pt")
    for bundle, other in ((backbone, theirs), (lookwhere, theirs), (lookwhere, plain)):
        said = run("knn", bundle, few_digits, "--compare", "reference", "--checkpoint", other, code=1)
        assert f"error: {other} is not the checkpoint that {bundle} was made of; give that file, or export again" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--k", 4, 4), "--k 4 4: give numbers from 1, each once"),
        (("--k", 0), "--k 0: give numbers from 1"),
        (("--k-ratio", 0.5, 1.5), "--k-ratio 0.5 1.5: give shares above 0 up to 1, each once"),
        (("--k-ratio", "nan"), "--k-ratio nan: give shares above 0 up to 1, each once"),
        (("--k-ratio", 0.5, 0.5), "--k-ratio 0.5 0.5: give shares above 0 up to 1, each once"),
    ],
)
def test_a_wrong_k_is_refused(
    options: tuple[object, ...], message: str, run: Run, lookwhere: Path, few_digits: Path
) -> None:
    assert message in run("knn", lookwhere, few_digits, *options, code=1)


def test_shares_of_the_patches_make_a_sweep_too(run: Run, lookwhere: Path, few_digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    options = ["--size", 56, "--neighbours", 5, "--k-ratio", 0.25, 1, "--plot", tmp_path / "s.png", "--json"]
    result = json.loads(run("knn", lookwhere, few_digits, *options))
    assert [side["k_ratio"] for side in result["sides"]] == [0.25, 1]
    with Image.open(tmp_path / "s.png") as picture:
        assert min(picture.size) > 400


def test_more_patches_than_there_are_is_an_error_of_the_first_image(run: Run, lookwhere: Path, few_digits: Path) -> None:
    said = run("knn", lookwhere, few_digits, *KNN, "--k", 5, code=1)
    assert "k 5 is not to be had: this grid has 4 patches, so give 1 to 4" in said


def test_a_bundle_without_features_and_a_missing_folder_are_refused(
    run: Run, small_bundle: Callable[[str], Path], lookwhere: Path, tmp_path: Path
) -> None:
    assert "train: no such folder; images are expected in train/CLASS/" in run("knn", lookwhere, tmp_path, code=1)
    said = run("knn", small_bundle("classify"), tmp_path, code=1)
    assert "is made for classify, and evaluations read features; export with --task features" in said


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_tells_its_layout_and_its_options(task: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", task.name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"the data folder holds:\n  {task.layout}" in said
    assert ("--k K" in said) == task.on_lookwhere
    for name in task.settings.__struct_fields__:
        assert f"--{name.replace('_', '-')}" in said


def test_the_tasks_that_lookwhere_bundles_run_in_are_those_of_cls_and_tokens() -> None:
    on_lookwhere = {task.name for task in TASKS if task.on_lookwhere}
    assert {"knn", "linear", "retrieval", "copydays", "linear-segmentation", "overcluster"} <= on_lookwhere
    assert not {"foreground", "attention"} & on_lookwhere  # which read attention
