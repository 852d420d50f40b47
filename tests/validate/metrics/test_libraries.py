"""The tasks import without any library of the extra, and what is missing is named when it is needed."""
from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import saccade.validate.metrics
from saccade.errors import SaccadeError
from saccade.validate.metrics.libraries import library

MODULES = sorted(module.name for module in pkgutil.iter_modules(saccade.validate.metrics.__path__))
IMPORT_ALL = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(f"saccade.validate.metrics.{name}")
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def test_tasks_import_neither_torch_nor_an_engine_nor_the_extra() -> None:
    assert {"knn", "retrieval", "communities", "compare"} <= set(MODULES)
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps(MODULES)]
    loaded = set(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert not loaded & {"torch", "openvino", "onnxruntime", "sklearn", "scipy", "infomap"}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("scipy.ndimage", r"scipy cannot be imported; pip install '\.\[evaluate\]' in the clone$"),
        ("infomap", r"infomap cannot be imported; pip .* in the clone \(it needs Python 3\.11 or later\)"),
    ],
)
def test_a_missing_library_is_named_with_the_extra(module: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SaccadeError, match=message):
        library(module)
