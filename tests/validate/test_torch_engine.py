"""PyTorch's modules as a network on a device, on the host as a GPU: the whole chain equals PyTorch by the parity gate."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from saccade.errors import SaccadeError  # noqa: E402
from saccade.export import modules  # noqa: E402
from saccade.export.golden_cases import golden_cases  # noqa: E402
from saccade.validate import gpu_model  # noqa: E402
from saccade.validate.gpu_model import MODELS, TASK, Subject, open_chain, seeded_subject  # noqa: E402
from saccade.validate.parity import measure_parity  # noqa: E402
from saccade.validate.torch_attention import FusedAttention  # noqa: E402
from saccade.validate.torch_engine import TorchBound, TorchEngine  # noqa: E402


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return seeded_subject(tmp_path_factory.mktemp("subject"), MODELS["small"], seed=1)


@pytest.fixture(scope="module")
def cases(subject: Subject) -> Any:
    return golden_cases(subject.checkpoint, TASK, subject.bundle.manifest.defaults, lambda phase: None)


class InOrder(TorchEngine):
    """Torch on the host computes at once; as part of a stream it must wait for its turn."""

    device: Any

    def bind(self, batch: int, k: int, addresses: Mapping[str, int]) -> TorchBound:
        bound = super().bind(batch, k, addresses)
        enqueue = bound.enqueue
        bound.enqueue = lambda stream: self.device.enqueue(self.role, (), lambda: enqueue(stream), stream)  # type: ignore[method-assign]
        return bound


@pytest.fixture
def chain(subject: Subject, new_device: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that opens the chain on a GPU of ours."""
    device = new_device()
    monkeypatch.setattr(gpu_model, "TorchEngine", type("OnOurs", (InOrder,), {"device": device}))
    return lambda precision, **options: open_chain(subject, device, precision, where="cpu", **options)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_chain_on_torchs_modules_equals_pytorch(chain: Callable[..., Any], cases: Any, precision: str) -> None:
    with chain(precision) as pipeline:
        result = measure_parity(pipeline, cases[1:])
        assert pipeline.engines["selector"].parameter.dtype == (torch.float32 if precision == "fp32" else torch.float16)
    numbers = {measure.name: measure.value for measure in result.measures}
    if precision == "fp32":
        assert result.passed, numbers
    else:  # the bounds are a ViT-B's: in a narrow model each rounding weighs more
        assert 0 < numbers["cls"] < 1e-5
        assert numbers["unexplained_swaps"] == 0


def test_a_module_that_is_wrong_does_not_pass(
    chain: Callable[..., Any], cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gelu = torch.nn.functional.gelu
    monkeypatch.setattr(modules.Mlp, "forward", lambda self, x: self.fc2(gelu(self.fc1(x), approximate="tanh")))
    with chain("fp32") as pipeline:
        assert not measure_parity(pipeline, cases[1:]).passed


def test_run_and_bind_give_the_same(subject: Subject) -> None:
    engine = TorchEngine(
        "selector", subject.bundle.graph("selector", "fp32"), gpu_model.load_modules(subject.checkpoint, TASK)[0]
    )
    lowres = np.random.default_rng(0).standard_normal((2, 3, 154, 154), np.float32)
    expected = engine.run({"lowres": lowres})
    arrays = {"lowres": lowres} | {name: np.zeros_like(array) for name, array in expected.items()}
    bound = engine.bind(2, 1, {name: array.ctypes.data for name, array in arrays.items()})
    bound.check_capturable(0)
    bound.enqueue(0)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
    bound.close()
    engine.close()
    with pytest.raises(SaccadeError, match="selector: the engine is closed"):
        engine.bind(1, 1, {})


def test_the_selectors_head_stays_in_float32(subject: Subject) -> None:
    selector = gpu_model.in_precision(gpu_model.load_modules(subject.checkpoint, TASK)[0], torch.float16, "cpu")
    assert {each.dtype for each in selector.head.parameters()} == {torch.float32}
    assert {each.dtype for each in selector.backbone.parameters()} == {torch.float16}
    scores, prefix = selector(torch.zeros(1, 3, 154, 154, dtype=torch.float16))
    assert (scores.dtype, prefix.dtype) == (torch.float32, torch.float16)


def test_the_chain_has_torchs_attention_whoever_ran_before_and_the_reference_ours(chain: Callable[..., Any]) -> None:
    def kinds(module: Any) -> set[type]:
        return {type(each) for each in module.modules() if isinstance(each, modules.Attention)}

    for _ in range(2):
        with chain("fp32") as pipeline:
            assert kinds(pipeline.engines["selector"].forward) == {FusedAttention}
            assert kinds(pipeline.engines["extractor"].forward) == {FusedAttention}
        assert kinds(modules.Attention(128)) == {modules.Attention}


def test_the_bundle_describes_the_checkpoint(subject: Subject, tmp_path: Path) -> None:
    again = seeded_subject(tmp_path, MODELS["small"], seed=1)
    assert again.bundle.manifest == subject.bundle.manifest
    np.testing.assert_array_equal(again.bundle.positions(), subject.checkpoint.base_positions.numpy())
