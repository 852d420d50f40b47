"""The C library finds the engines that Python built, passes over what is none, and says why none serves as Python does.

How an engine was built (`audit`, `seconds`, `saccade`) is not its business, and neither are the graphs that a built engine
came from; each such difference is a test below.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from binding import Bundle, Library, Model, NativeError, Session, Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated

import saccade
from saccade import SaccadeError, read_bundle
from saccade.engines import store


def receipt_of(conditions: dict[str, str]) -> dict[str, Any]:
    """Return the receipt of an engine, as the store writes them."""
    files = {"selector": "selector.blob", "extractor": "extractor.blob"}
    return {
        "key": store.key_of(conditions), "engine": conditions["engine"], "precision": conditions["precision"],
        "conditions": conditions, "files": files, "sha256": dict.fromkeys(files.values(), "0" * 64),
        "realised": "as asked", "audit": None, "seconds": 1.5, "saccade": "0.1.0",
    }  # fmt: skip


def place_receipt(folder: Path, receipt: dict[str, Any], key: str) -> None:
    """Make it the only engine of a bundle."""
    shutil.rmtree(folder / "engines", ignore_errors=True)
    engine = folder / "engines" / f"openvino-fp32-{key}"
    engine.mkdir(parents=True)
    (engine / "receipt.json").write_text(json.dumps(receipt))


def found_by_both(library: Library, folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the engines that Python and C see, of those engines that C knows."""
    known = ("openvino", "tensorrt", "tensorrt-rtx")
    python = [path.name for path, receipt in store.receipts(read_bundle(folder)) if receipt.engine in known]
    with Bundle(library, folder) as bundle:
        return python, [engine.folder.decode() for engine in bundle.engines()]


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)  # C reads a name up to its \0


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(conditions=st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=5))
def test_a_key_is_made_of_any_conditions_alike(library: Library, folder: Path, conditions: dict[str, str]) -> None:
    receipt = receipt_of(conditions | {"engine": "openvino", "precision": "fp32"})
    place_receipt(folder, receipt, receipt["key"])
    python, c = found_by_both(library, folder)
    assert python == c == [f"openvino-fp32-{receipt['key']}"]


@settings(max_examples=800, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_receipt_is_taken_or_passed_over_by_both(library: Library, folder: Path, data: st.DataObject) -> None:
    receipt = receipt_of({"engine": "openvino", "precision": "fp32", "version": "1", "cpu": "one"})
    key = receipt["key"]
    read = {name: value for name, value in receipt.items() if name not in ("audit", "seconds", "saccade")}
    mutated(data, read)
    unread = {name: receipt[name] for name in ("audit", "seconds", "saccade")}
    place_receipt(folder, unread | read, key)
    python, c = found_by_both(library, folder)
    assert python == c


@pytest.mark.parametrize(("field", "value"), [("audit", {"selector": 1}), ("seconds", "long"), ("saccade", None)])
def test_how_an_engine_was_built_is_not_read_by_c(library: Library, folder: Path, field: str, value: object) -> None:
    receipt = receipt_of({"engine": "openvino", "precision": "fp32"}) | {field: value}
    place_receipt(folder, receipt, receipt["key"])
    assert found_by_both(library, folder) == ([], [f"openvino-fp32-{receipt['key']}"])


@pytest.mark.parametrize("name", ["a file", ".hidden-0123456789abcdef", "no-receipt", "a-link"])
def test_what_else_lies_among_engines_is_passed_over_by_both(library: Library, folder: Path, name: str) -> None:
    receipt = receipt_of({"engine": "openvino", "precision": "fp32"})
    place_receipt(folder, receipt, receipt["key"])
    engines = folder / "engines"
    if name == "a file":
        (engines / "a-file").write_text("x")
    elif name == "a-link":
        (engines / "a-link").symlink_to("nowhere")
    else:
        (engines / name).mkdir()
    python, c = found_by_both(library, folder)
    assert python == c == [f"openvino-fp32-{receipt['key']}"]


# ---- which engine serves


@pytest.fixture
def built(built_bundle: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a bundle with its fp32 engine."""
    return shutil.copytree(built_bundle("dinov2"), tmp_path / "built")


def rewrite_conditions(bundle: Path, **changes: str) -> None:
    """Let the fp32 engine be one that was built under other conditions."""
    (folder,) = (bundle / "engines").glob("openvino-fp32-*")
    receipt = store.read_receipt(folder)
    conditions = receipt.conditions | changes
    changed = msgspec.structs.replace(receipt, conditions=conditions, key=store.key_of(conditions))
    (folder / "receipt.json").write_bytes(msgspec.json.encode(changed))
    folder.rename(folder.with_name(f"openvino-fp32-{changed.key}"))


@pytest.mark.parametrize("changes", [
    {"version": "2025.0.0-1-releases/2025/0"}, {"cpu": "another CPU"}, {"selector_sha256": "0" * 64},
    {"version": "2030.1.0", "cpu": "another CPU of a name that is longer than forty letters"},
])  # fmt: skip
def test_an_engine_for_other_conditions_is_refused_with_pythons_reason(
    library: Library, engine_library: Path, built: Path, changes: dict[str, str]
) -> None:
    rewrite_conditions(built, **changes)
    with pytest.raises(SaccadeError) as stale:
        saccade.load(built, build=False)
    reason = str(stale.value).rpartition("; '")[0]
    assert "the built openvino fp32 engine is for other conditions (" in reason
    with Bundle(library, built) as bundle, pytest.raises(NativeError) as refused:
        Model(bundle, "fp32", engine_library)
    assert refused.value.status == Status.NOT_FOUND
    assert str(refused.value).startswith(f"{reason}; build it here, with OpenVINO 20")
    assert f"by 'saccade build {built} --engine openvino --precision fp32'" in str(refused.value)


def test_an_engine_of_another_form_is_listed_as_none_of_ours_and_is_no_nearest_one(
    library: Library, engine_library: Path, built: Path
) -> None:
    rewrite_conditions(built, static_k="8")
    with pytest.raises(SaccadeError, match="no openvino fp32 engine is built yet"):
        saccade.load(built, build=False)
    with Bundle(library, built) as bundle, pytest.raises(NativeError, match="no openvino fp32 engine is built yet"):
        assert [engine.runs for engine in bundle.engines() if engine.precision == 0] == [0]
        Model(bundle, "fp32", engine_library)


def shorten_tokens(path: Path) -> None:
    """Let an extractor give five tokens fewer than it was given patches."""
    model = onnx.load(path)
    (giver,) = [node for node in model.graph.node if "tokens" in node.output]
    giver.output[list(giver.output).index("tokens")] = "all_tokens"
    ends = {"starts": [0], "ends": [-5], "axes": [1]}
    for name, values in ends.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
    model.graph.node.append(onnx.helper.make_node("Slice", ["all_tokens", *ends], ["tokens"]))
    onnx.save(model, path)


def test_a_graph_that_gives_less_than_it_says_is_refused_and_nothing_is_written(
    library: Library, engine_library: Path, built: Path, photographs: list[np.ndarray]
) -> None:
    shutil.rmtree(built / "engines")
    shorten_tokens(built / "extractor.onnx")
    manifest = json.loads((built / "bundle.json").read_text())
    digest = hashlib.sha256((built / "extractor.onnx").read_bytes()).hexdigest()
    manifest["graphs"]["extractor"]["fp32"]["sha256"] = digest
    (built / "bundle.json").write_text(json.dumps(manifest))
    with (
        Bundle(library, built) as bundle,
        Model(bundle, "fp32", engine_library, compile=1) as model,
        Session(model) as session,
    ):
        for _ in range(2):
            with pytest.raises(NativeError, match=r"the extractor gave \d+ bytes of tokens and not \d+") as refused:
                session.run(photographs[:1], size=(126, 126), k=20)
            assert refused.value.status == Status.INVALID_BUNDLE


def test_a_bundle_is_opened_whatever_openssl_is_configured_to(built: Path, tmp_path: Path) -> None:
    config = tmp_path / "openssl.cnf"
    config.write_text("openssl_conf=a\n[a]\nalg_section=b\n[b]\ndefault_properties=fips=yes\n")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from binding import Bundle, Library; "
        "Bundle(Library(Path(sys.argv[2])), Path(sys.argv[3])).__enter__()"
    )
    library = Path(__file__).parents[3] / "build" / "lib" / "libsaccade.so"
    arguments = [sys.executable, "-c", program, Path(__file__).parent, library, built]
    subprocess.run(arguments, env=os.environ | {"OPENSSL_CONF": str(config)}, check=True, timeout=60)


def drop_field(receipt: Path) -> None:
    content = json.loads(receipt.read_text())
    del content["realised"]
    receipt.write_text(json.dumps(content))


def edit_engine(receipt: Path) -> None:
    receipt.write_text(receipt.read_text().replace('"engine": "openvino",\n  "prec', '"engine": "tensorrt",\n  "prec'))


@pytest.mark.parametrize(("damage", "words"), [
    (Path.unlink, "receipt.json is missing; "), (lambda path: path.write_text("{"), "receipt.json: not a JSON object; "),
    (drop_field, "receipt.json: field 'realised' is missing; "), (edit_engine, "receipt.json: it contradicts itself, "),
    (lambda path: (path.unlink(), path.mkdir()), "receipt.json is not a regular file; "),
])  # fmt: skip
def test_a_damaged_receipt_is_refused_by_both_and_not_taken_for_none(
    library: Library, engine_library: Path, built: Path, damage: Callable[[Path], object], words: str
) -> None:
    (receipt,) = (built / "engines").glob("openvino-fp32-*/receipt.json")
    damage(receipt)
    with pytest.raises(SaccadeError, match=re.escape(str(receipt))):
        saccade.load(built)
    for compiles in (0, 1):
        with Bundle(library, built) as bundle, pytest.raises(NativeError) as refused:
            Model(bundle, "fp32", engine_library, compile=compiles)
        assert str(refused.value).startswith(f"{receipt.parent}/{words}")
        assert str(refused.value).endswith("delete its folder and build again")


@pytest.mark.parametrize("name", ["selector.blob", "extractor.blob"])
def test_a_damaged_engine_file_is_refused_by_both(library: Library, engine_library: Path, built: Path, name: str) -> None:
    (blob,) = (built / "engines").glob(f"openvino-fp32-*/{name}")
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    with pytest.raises(SaccadeError, match=f"{name} was changed or cut short"):
        saccade.load(built, build=False)
    with Bundle(library, built) as bundle, pytest.raises(NativeError, match=f"{name} was changed or cut short") as refused:
        Model(bundle, "fp32", engine_library)
    assert refused.value.status == Status.INVALID_BUNDLE


def test_c_runs_a_built_engine_whose_graph_files_are_gone(library: Library, engine_library: Path, built: Path) -> None:
    for role in ("selector", "extractor"):
        (built / f"{role}.onnx").unlink()
    with pytest.raises(SaccadeError, match=r"selector\.onnx is missing"):
        saccade.load(built, build=False)
    with Bundle(library, built) as bundle, Model(bundle, "fp32", engine_library) as model:
        assert "openvino-fp32-" in model.notes[0][1]


def test_c_refuses_to_compile_a_graph_that_was_changed(library: Library, engine_library: Path, built: Path) -> None:
    shutil.rmtree(built / "engines")
    with (built / "extractor.onnx").open("ab") as file:
        file.write(b"\0")
    with Bundle(library, built) as bundle, pytest.raises(NativeError, match=r"extractor\.onnx was changed") as refused:
        Model(bundle, "fp32", engine_library, compile=1)
    assert refused.value.status == Status.INVALID_BUNDLE


def test_a_precision_without_graphs_is_refused_by_both(library: Library, engine_library: Path, built: Path) -> None:
    with pytest.raises(SaccadeError, match="no int8 graphs"):
        saccade.load(built, precision="int8", build=False)
    with Bundle(library, built) as bundle, pytest.raises(NativeError, match="no int8 graphs; make them with") as refused:
        Model(bundle, "int8", engine_library)
    assert refused.value.status == Status.NOT_FOUND
