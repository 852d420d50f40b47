"""What TensorRT measures is kept from build to build, and what its inspector says on a GPU is what is audited."""
from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
from small_graphs import job

from saccade.bundle import Bundle
from saccade.engines import tensorrt_build
from saccade.engines.audit import audit_of_text
from saccade.errors import SaccadeError


class Timings:
    """The timing caches of a builder config: each holds bytes, and those of another GPU are refused."""

    def __init__(self, refused: bytes = b"another GPU") -> None:
        self.refused, self.current, self.tried = refused, b"", list[bytes]()

    def create_timing_cache(self, content: bytes) -> Any:
        return types.SimpleNamespace(content=content, serialize=lambda: memoryview(content + b"+more"))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.tried.append(cache.content)
        self.current = cache
        return cache.content != self.refused

    def get_timing_cache(self) -> Any:
        return self.current


@pytest.mark.parametrize(
    ("known", "tried"),
    [(None, [b""]), (b"this GPU", [b"this GPU"]), (b"another GPU", [b"another GPU", b""])],
    ids=["none yet", "of this GPU", "of another GPU"],
)
def test_timings_are_taken_where_they_fit_and_kept_for_the_next_build(
    bundle: Bundle, tmp_path: Path, known: bytes | None, tried: list[bytes]
) -> None:
    path, config = tmp_path / ".tensorrt.timings", Timings()
    if known is not None:
        path.write_bytes(known)
    tensorrt_build._take_timings(path, config)
    assert config.tried == tried
    tensorrt_build._keep_timings(job(bundle, tmp_path, timing_cache=str(path)), config)
    assert path.read_bytes() == tried[-1] + b"+more"


def test_rtx_measures_nothing_and_keeps_nothing(bundle: Bundle, built: Any, tmp_path: Path) -> None:
    tensorrt_build._keep_timings(job(bundle, tmp_path), Timings())
    assert list(tmp_path.iterdir()) == []
    assert not (bundle.engines_path / ".tensorrt.timings").exists()


# ---- what the inspector on a GPU says


def inspector(layers: str, *, loads: bool = True) -> Any:
    """Return a binding whose engines say that of themselves."""
    found = types.SimpleNamespace(get_engine_information=lambda form: {"oneline": layers}[form])
    engine = types.SimpleNamespace(create_engine_inspector=lambda: found) if loads else None
    runtime = types.SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    forms = types.SimpleNamespace(ONELINE="oneline")
    return types.SimpleNamespace(Runtime=lambda log: runtime, LayerInformationFormat=forms)


LOGGED = types.SimpleNamespace(
    lines=["Parsing node: a [Softmax]", "Name: _gemm_mha_v2, LayerType: kgen, "], error_line=lambda otherwise: otherwise
)


def test_on_a_gpu_the_layers_are_those_of_the_engine_itself_and_no_layer_counts_twice(
    bundle: Bundle, tmp_path: Path
) -> None:
    on_gpu = job(bundle, tmp_path, device=0, precision="fp16")
    text = tensorrt_build._layers_text(inspector("Name: x_mha_y, LayerType: kgen, "), on_gpu, LOGGED, b"plan")
    assert text.splitlines() == ["Parsing node: a [Softmax]", "Name: x_mha_y, LayerType: kgen, "]
    assert audit_of_text(text, "fp16").fused_attention == 1
    without = tensorrt_build._layers_text(None, job(bundle, tmp_path), LOGGED, b"plan")
    assert without.splitlines() == LOGGED.lines


def test_a_plan_that_does_not_load_where_it_was_built_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"cannot load the extractor it has just built \(no reason given\)"):
        tensorrt_build._layers_text(inspector("", loads=False), job(bundle, tmp_path, device=0), LOGGED, b"plan")
