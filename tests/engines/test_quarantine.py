"""Engines that failed their self-test: out of use, with the reason, until a build is asked for again."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import saccade
from saccade.cli.main import main
from saccade.engines import quarantine, store
from saccade.engines.engine import default_request
from saccade.errors import SaccadeError


@pytest.fixture
def bundle(small_bundle: Callable[[str], Path], tmp_path: Path) -> saccade.Bundle:
    path = tmp_path / "bundle"
    shutil.copytree(small_bundle("dinov2"), path, ignore=shutil.ignore_patterns("engines"))
    return saccade.read_bundle(path)


def built(bundle: saccade.Bundle) -> Path:
    assert main(["build", str(bundle.path), "--engine", "onnxruntime"]) == 0
    ((folder, _),) = store.receipts(bundle)
    return folder


def test_a_quarantined_engine_is_kept_with_its_reason_and_is_no_engine_any_more(bundle: saccade.Bundle) -> None:
    folder = built(bundle)
    place = quarantine.put(folder, folder, "it differs from PyTorch in cls")
    assert (place / "reason.txt").read_text() == "it differs from PyTorch in cls\n"
    assert (place / store.RECEIPT).is_file()
    assert store.receipts(bundle) == []
    assert not folder.exists()


def test_a_run_does_not_build_what_failed_but_says_why(bundle: saccade.Bundle) -> None:
    folder = built(bundle)
    quarantine.put(folder, folder, "it differs from PyTorch in cls")
    message = (
        r"this engine failed its self-test \(it differs from PyTorch in cls\); "
        f"'saccade build {bundle.path} --engine onnxruntime' builds it again and tests it"
    )
    with pytest.raises(SaccadeError, match=message):
        saccade.load(bundle, engine="onnxruntime")


def test_a_build_that_is_asked_for_builds_it_again(bundle: saccade.Bundle) -> None:
    folder = built(bundle)
    quarantine.put(folder, folder, "it differs")
    assert built(bundle) == folder
    quarantine.release(folder)
    quarantine.release(folder)
    assert not quarantine.place_of(folder).exists()
    saccade.load(bundle, engine="onnxruntime").close()


def test_a_second_process_that_finds_the_same_leaves_it_as_it_is(bundle: saccade.Bundle) -> None:
    folder = built(bundle)
    place = quarantine.put(folder, folder, "first")
    assert quarantine.put(folder, folder, "second") == place
    assert (place / "reason.txt").read_text() == "first\n"


def test_an_engine_is_never_in_quarantine_without_its_reason(
    bundle: saccade.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built(bundle)

    def full_disk(*arguments: object) -> None:
        raise SaccadeError("the disk is full")

    monkeypatch.setattr(quarantine.atomic, "write_bytes", full_disk)
    with pytest.raises(SaccadeError, match="the disk is full"):
        quarantine.put(folder, folder, "it differs")
    assert not quarantine.place_of(folder).exists()


def test_the_last_failure_takes_the_place_of_the_one_before(bundle: saccade.Bundle) -> None:
    for reason in ("first", "second"):
        folder = built(bundle)
        place = quarantine.put(folder, folder, reason)
    assert (place / "reason.txt").read_text() == "second\n"


@pytest.fixture
def rtx(bundle: saccade.Bundle) -> Callable[..., Path]:
    """Return a function that finds TensorRT-RTX engines for some limits, as a run does, or builds them."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install '.[tensorrt-rtx]' in the clone")

    def ensure(build: bool = False, **asked: object) -> Path:
        request = msgspec.structs.replace(default_request(bundle, "tensorrt-rtx", "fp32"), **asked)
        return store.ensure(bundle, request, lambda phase: None, lambda line: None, build=build)[0]

    return ensure


def test_an_engine_for_other_limits_does_not_get_round_the_quarantine(
    bundle: saccade.Bundle, rtx: Callable[..., Path]
) -> None:
    folder = rtx(build=True, max_k=9)
    quarantine.put(folder, folder, "it differs from PyTorch in cls")
    with pytest.raises(SaccadeError, match=rf"{folder.name}: this engine failed its self-test \(it differs"):
        rtx()
    with pytest.raises(SaccadeError, match="this engine failed its self-test"):
        rtx(max_batch=1, any_limits=False)
    with pytest.raises(SaccadeError, match="no tensorrt-rtx fp32 engine is built yet"):  # another one, which may be right
        rtx(compute_capabilities=("SM89",))


def test_a_failed_engine_whose_receipt_is_lost_is_known_by_its_name(bundle: saccade.Bundle) -> None:
    folder = built(bundle)
    (quarantine.put(folder, folder, "it differs") / store.RECEIPT).unlink()
    with pytest.raises(SaccadeError, match=r"this engine failed its self-test \(it differs\)"):
        saccade.load(bundle, engine="onnxruntime")
