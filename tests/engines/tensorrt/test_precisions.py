"""TensorRT-RTX engines of a LookWhere bundle in every converted precision, for a frame and for a batch of whole grids."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saccade.cli.main import main

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install '.[tensorrt-rtx]' in the clone")

Built = Callable[..., dict[str, Any]]
SELECTOR_BLOCKS, EXTRACTOR_BLOCKS = 1, 2
BEYOND = ["--max-batch", "8", "--max-k", "1369"]  # a grid of 518 pixels, all of it kept


@pytest.fixture(scope="module")
def bundle(converted_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of one's own: others compare what they list of the shared one's engines."""
    folder = tmp_path_factory.mktemp("rtx") / "bundle"
    return Path(shutil.copytree(converted_bundle, folder, ignore=shutil.ignore_patterns("engines")))


@pytest.fixture
def built(bundle: Path, capsys: pytest.CaptureFixture[str]) -> Built:
    """Return a function that builds the bundle's engine as options say, and returns what the command says of it."""

    def build(precision: str, *options: str) -> dict[str, Any]:
        capsys.readouterr()
        command = ["build", str(bundle), "--engine", "tensorrt-rtx", "--precision", precision, "--json"]
        assert main([*command, *options]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return build


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
@pytest.mark.parametrize("limits", [[], BEYOND], ids=["a frame", "8 whole grids"])
def test_every_attention_is_fused_and_every_block_runs_in_its_precision(
    precision: str, limits: list[str], built: Built
) -> None:
    data = built(precision, *limits)
    for role, blocks in (("selector", SELECTOR_BLOCKS), ("extractor", EXTRACTOR_BLOCKS)):
        audit = data["audit"][role]
        assert (audit["attention_blocks"], audit["fused_attention"], audit["softmax_kernels"]) == (blocks, blocks, 0)
        assert audit["gemms"][precision] >= 3 * blocks  # int8 leaves the selector's fc2 in floating point
        assert audit["warnings"] == []
    if limits:
        assert (data["conditions"]["max_batch"], data["conditions"]["max_k"]) == ("8", "1369")
