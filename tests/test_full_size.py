"""What only a full-size ViT-B can show: memory, and TensorRT-RTX engines built without a GPU."""
from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import saccade
from saccade import read_bundle
from saccade.engines import store
from saccade.engines.engine import EngineRequest

pytestmark = pytest.mark.slow
MB = 1e6

# Runs one image in a fresh process while a thread samples its memory; /proc gives kB.
MEASURE = """
import json, sys, threading, time
peak = {"RssAnon": 0, "VmHWM": 0}
def sample():
    for line in open("/proc/self/status"):
        name, _, value = line.partition(":")
        if name in peak:
            peak[name] = max(peak[name], int(value.split()[0]) * 1024)
def watch():
    while True:
        sample()
        time.sleep(0.001)
threading.Thread(target=watch, daemon=True).start()
import saccade
out = saccade.load(sys.argv[1], build=False)("examples/china.jpg", size=518)
sample()
assert out.cls.shape == (1, 768)
print(json.dumps(peak))
"""


def test_opening_and_running_openvino_stays_within_its_memory(readme_folder: Path) -> None:
    weights = sum((readme_folder / "lookwhere" / name).stat().st_size for name in ("selector.onnx", "extractor.onnx"))
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, "lookwhere"], cwd=readme_folder, check=True, capture_output=True, text=True
    )
    peak = json.loads(answer.stdout)
    print(f"weights {weights / MB:.0f} MB, resident {peak['VmHWM'] / MB:.0f} MB, anonymous {peak['RssAnon'] / MB:.0f} MB")
    assert peak["VmHWM"] < 2.0 * weights + 200 * MB
    assert peak["RssAnon"] < 1.2 * weights + 100 * MB


def test_a_static_pair_without_tokens_gives_the_cls_of_the_engine_that_takes_everything(readme_folder: Path) -> None:
    bundle = readme_folder / "lookwhere"
    with saccade.load(bundle) as plain, saccade.load(bundle, static=136, cls_only=True) as fast:
        expected, found = (pipe(readme_folder / "examples" / "china.jpg", k=136) for pipe in (plain, fast))
    assert set(found.indices[0]) == set(expected.indices[0])
    np.testing.assert_allclose(found.cls, expected.cls, rtol=1e-4, atol=1e-4)  # fp32, in another order of sums


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx has no wheel for this machine")
def test_tensorrt_rtx_builds_both_graphs_without_a_gpu(readme_folder: Path) -> None:
    bundle = read_bundle(readme_folder / "lookwhere")
    request = EngineRequest(engine="tensorrt-rtx", device="0", max_batch=8, max_k=1369, opt_k=136)
    _, receipt = store.ensure(bundle, request, lambda phase: None, lambda line: None)
    print(f"both engines built in {receipt.seconds:.1f} s")
    assert receipt.audit is not None
    blocks = {role: (found["attention_blocks"], found["gemms"]) for role, found in receipt.audit.items()}
    assert blocks["selector"][0] == 3
    assert blocks["extractor"][0] == 12
    assert set(blocks["extractor"][1]) == {"fp32"}
    assert receipt.seconds < 20  # 8 s is the aim on a quiet machine, see the README; a loaded one gets room
