"""Engines that failed their self-test: out of use, with the reason, until a build is asked for again."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import saccade
from saccade.cli.main import main
from saccade.engines import quarantine, store
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
    place = quarantine.put(folder, "it differs from PyTorch in cls")
    assert (place / "reason.txt").read_text() == "it differs from PyTorch in cls\n"
    assert (place / store.RECEIPT).is_file()
    assert store.receipts(bundle) == []
    assert not folder.exists()


def test_a_run_does_not_build_what_failed_but_says_why(bundle: saccade.Bundle) -> None:
    quarantine.put(built(bundle), "it differs from PyTorch in cls")
    message = (
        r"this engine failed its self-test \(it differs from PyTorch in cls\); "
        f"'saccade build {bundle.path} --engine onnxruntime' builds it again and tests it"
    )
    with pytest.raises(SaccadeError, match=message):
        saccade.load(bundle, engine="onnxruntime")


def test_a_build_that_is_asked_for_builds_it_again(bundle: saccade.Bundle) -> None:
    folder = built(bundle)
    quarantine.put(folder, "it differs")
    assert built(bundle) == folder
    quarantine.release(folder)
    quarantine.release(folder)
    assert not quarantine.place_of(folder).exists()
    saccade.load(bundle, engine="onnxruntime").close()


def test_a_second_process_that_finds_the_same_leaves_it_as_it_is(bundle: saccade.Bundle) -> None:
    folder = built(bundle)
    place = quarantine.put(folder, "first")
    assert quarantine.put(folder, "second") == place
    assert (place / "reason.txt").read_text() == "first\n"


def test_an_engine_is_never_in_quarantine_without_its_reason(
    bundle: saccade.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built(bundle)

    def full_disk(*arguments: object) -> None:
        raise SaccadeError("the disk is full")

    monkeypatch.setattr(quarantine.atomic, "write_bytes", full_disk)
    with pytest.raises(SaccadeError, match="the disk is full"):
        quarantine.put(folder, "it differs")
    assert not quarantine.place_of(folder).exists()


def test_the_last_failure_takes_the_place_of_the_one_before(bundle: saccade.Bundle) -> None:
    for reason in ("first", "second"):
        place = quarantine.put(built(bundle), reason)
    assert (place / "reason.txt").read_text() == "second\n"
