"""What a method computes goes through the attention function that the host has at that moment."""

from __future__ import annotations

from typing import Any

import edits
import pytest
import torch
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.host.attention import host_attention
from comfy.ldm.modules import attention


def test_a_function_that_another_pack_put_there_later_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    states = torch.randn(1, 4, 8)
    monkeypatch.setattr(attention, "optimized_attention", lambda q, *_, **__: torch.full_like(q, 7.0))
    assert (host_attention(states, states, states, {"n_heads": 1}) == 7).all()


def test_an_edit_goes_through_it(model: Any, inversion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """MasaCtrl's own attention reads the source's keys, another tensor than the layer's: counted by their number."""
    before, calls = attention.optimized_attention, []

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return before(*args, **kwargs)

    monkeypatch.setattr(attention, "optimized_attention", counting)
    plain = edits.run(model, inversion)
    of_the_host = len(calls)
    edited = edits.run(model, inversion, MasaCtrl(start=0.0))
    assert not torch.equal(plain, edited)
    assert len(calls) - of_the_host > of_the_host, "the host's, the source's, and what MasaCtrl puts in their place"
