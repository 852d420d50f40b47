"""Torch's attention in a module: the same numbers by another kernel, in that module alone."""
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from saccade.export.modules import Attention  # noqa: E402
from saccade.validate.torch_attention import with_torch_attention  # noqa: E402


def test_it_has_the_numbers_of_the_attention_that_is_written_out() -> None:
    ours = Attention(128)
    theirs = with_torch_attention(Attention(128))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs(x), ours(x))


def test_it_runs_torchs_kernel_in_the_given_module_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def counted(*tensors: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return fused(*tensors)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    x, plain = torch.randn(1, 3, 64), torch.nn.Sequential(Attention(64))
    with_torch_attention(torch.nn.Sequential(Attention(64), Attention(64)))(x)
    assert len(calls) == 2
    plain(x)
    assert len(calls) == 2
