"""The C library reads the manifest of a plain backbone as Python does: it takes and refuses the same, in one line."""
from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from binding import Bundle, Library, Status
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mutations import mutated
from refusals import c_refuses, has_deliberate_difference, python_refuses, write

from saccade.bundle import sha256_of_file


@pytest.fixture(scope="session")
def exported(small_backbone: Callable[[str], Path]) -> Path:
    """Take the place of LookWhere's bundle in the fixtures of this folder."""
    return small_backbone("neco")


@pytest.fixture(scope="module")
def manifest(exported: Path) -> dict[str, Any]:
    """The exported manifest as Python data. Copy it before changing it."""
    found: dict[str, Any] = json.loads((exported / "bundle.json").read_text())
    return found


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_manifest_is_taken_or_refused_by_both(
    library: Library, folder: Path, manifest: dict[str, Any], data: st.DataObject
) -> None:
    document = copy.deepcopy(manifest)
    for _ in range(data.draw(st.integers(1, 2))):
        mutated(data, document)
    assume(not has_deliberate_difference(document))
    write(folder, document)
    python, c = python_refuses(folder), c_refuses(library, folder)
    assert (python is None) == (c is None), (python, c)
    if c is not None and c.status != Status.NOT_FOUND:
        assert c.status in (Status.INVALID_BUNDLE, Status.UNSUPPORTED)


def with_model(manifest: dict[str, Any], **changes: object) -> dict[str, Any]:
    return manifest | {"model": manifest["model"] | changes}


def without(node: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != name}


def with_outputs(manifest: dict[str, Any], change: Callable[[list[Any]], list[Any]]) -> dict[str, Any]:
    document = copy.deepcopy(manifest)
    graph = document["graphs"]["backbone"]["fp32"]
    graph["outputs"] = change(graph["outputs"])
    return document


Change = Callable[[dict[str, Any]], dict[str, Any]]
# name -> (change, what C says)
REFUSED: dict[str, tuple[Change, str]] = {
    "a default k": (lambda m: m | {"defaults": m["defaults"] | {"k": 9}}, "keeps every patch, so it has no k"),
    "a default share": (lambda m: m | {"defaults": m["defaults"] | {"k_ratio": 0.5}}, "keeps every patch, so it has no k"),
    "a head": (lambda m: m | {"task": "classify"}, "task classify with 0 classes"),
    "no rule": (lambda m: m | {"model": without(m["model"], "position_rule")}, "field 'position_rule' is missing"),
    "another rule": (lambda m: with_model(m, position_rule="size"), "'position_rule' must be \"scale-factor\" or"),
    "64 registers": (lambda m: with_model(m, registers=64), "'registers' must be a whole number, 0 to 63"),
    "a layer scale of 1": (lambda m: with_model(m, layer_scale=1), "'layer_scale' must be true or false"),
    "LookWhere's fields": (lambda m: with_model(m, selector_size=154), "unknown field 'selector_size'"),
    "LookWhere's family": (lambda m: with_model(m, family="lookwhere"), "field 'selector_depth' is missing"),
    "LookWhere's graphs": (lambda m: m | {"graphs": {"selector": m["graphs"]["backbone"]}}, "field 'backbone' is missing"),
    "another graph": (
        lambda m: m | {"graphs": m["graphs"] | {"extractor": m["graphs"]["backbone"]}}, "unknown field 'extractor'"
    ),
    "three blocks and cls_last4": (lambda m: with_model(m, depth=3), "its tensors do not fit the model's sizes"),
    "no attention": (
        lambda m: with_outputs(m, lambda tensors: [each for each in tensors if each["name"] != "attention"]),
        "its tensors do not fit the model's sizes",
    ),
    "one more output": (
        lambda m: with_outputs(m, lambda tensors: [*tensors, tensors[0] | {"name": "more"}]),
        "its tensors do not fit the model's sizes",
    ),
    "another base grid": (lambda m: with_model(m, base_grid=[3, 27]), ""),  # of as many cells: the table fits
    "a wider base grid": (lambda m: with_model(m, base_grid=[9, 10]), "not the position table of this model's base grid"),
    "an endless base grid": (
        lambda m: with_model(m, base_grid=[65536, 65536]), "not the position table of this model's base grid"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_manifest_that_contradicts_itself_is_refused_by_both(
    library: Library, folder: Path, manifest: dict[str, Any], name: str
) -> None:
    change, words = REFUSED[name]
    write(folder, change(manifest))
    refused = c_refuses(library, folder)
    assert (python_refuses(folder) is None) == (refused is None) == (words == "")
    assert words in str(refused)


@pytest.mark.parametrize("family", ["neco", "dinov2", "dino", "timm"])
def test_every_family_is_taken(library: Library, folder: Path, manifest: dict[str, Any], family: str) -> None:
    write(folder, with_model(manifest, family=family))
    assert python_refuses(folder) is None
    assert c_refuses(library, folder) is None


def test_a_family_that_is_not_known_is_named(library: Library, folder: Path, manifest: dict[str, Any]) -> None:
    write(folder, with_model(manifest, family="ijepa"))
    refused = c_refuses(library, folder)
    assert refused is not None
    assert refused.status == Status.UNSUPPORTED
    assert 'family "ijepa" is not one this library runs; use Python\'s saccade' in str(refused)
    assert python_refuses(folder) is not None


def test_a_table_in_lookwheres_shape_is_refused_by_both(library: Library, folder: Path, manifest: dict[str, Any]) -> None:
    np.save(folder / "positions.npy", np.zeros((9, 9, 128), np.float32))
    digest = sha256_of_file(folder / "positions.npy")
    write(folder, manifest | {"positions": manifest["positions"] | {"sha256": digest}})
    assert python_refuses(folder) is not None
    assert "positions.npy: not the position table of this model's base grid" in str(c_refuses(library, folder))


def test_opening_needs_no_graph(library: Library, folder: Path, exported: Path) -> None:
    shutil.copy(exported / "bundle.json", folder)
    assert not (folder / "backbone.onnx").exists()
    with Bundle(library, folder) as bundle:
        assert bundle.info().precisions == 1
