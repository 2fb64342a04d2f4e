"""Local Blend on joint attention: the maps that it blends by, and what it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_edit.attention.engine.joint import JointSite
from attention_edit.attention.engine.run import Phase
from attention_edit.attention.methods.local_blend import LocalBlend
from attention_edit.attention.methods.p2p import P2P
from attention_edit.inversion.generated import GeneratedSource
from followed_words import BLEND, CAT, DOG, follow, inverted
from tiny_joint import joint_latent, joint_model, joint_prompt, joint_run
from torch import Tensor

SOME = pytest.mark.parametrize("kind", ["Flux", "Flux2", "SD3", "ZImage", "QwenImage"])


def heads_of(x: Tensor, heads: int) -> Tensor:
    return (x if x.ndim == 4 else x.unflatten(-1, (heads, -1))).transpose(1, 2)


@SOME
@pytest.mark.parametrize("rewritten", [False, True])
def test_blends_by_the_columns_of_both_softmaxes(kind: str, rewritten: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over steps and middle blocks, of source and target, against softmax written out; the target's rewritten."""
    model = joint_model(kind)
    with torch.inference_mode():
        given = {"samples": joint_latent(1, kind)}
        conditioning = joint_prompt(5, kind, tokens=CAT.length)
        inversion = GeneratedSource(4, seed=7)(model, given, conditioning).inversion
    tokens = joint_latent(1, kind).shape[-1] ** 2 // (1 if kind == "Flux2" else 4)
    maps: dict[Phase, list[Tensor]] = {Phase.CAPTURE: [], Phase.EDIT: []}
    states, plain, look = [], JointSite.__call__, LocalBlend.look

    def spy(self: Any, func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        options = kwargs["transformer_options"]
        block = options.get("block_type", "double"), options.get("block_index")
        layers = self.run.family.layers
        place = next((la.index for la in layers if la.block == block), None)
        middle = range(len(layers) // 6, len(layers) - len(layers) // 6)
        a, b = (t if kwargs.get("skip_reshape") else heads_of(t, heads) for t in (q, k))
        first = a.shape[2] - tokens  # 0 where SD3 attends to the image alone
        if place in middle and self.run.phase in maps and first:
            length = (CAT if self.run.phase is Phase.CAPTURE else DOG).length
            words = slice(first - length, first) if kind == "Flux2" else slice(length)
            shares = (a[:, :, first:].double() @ b.double().mT / a.shape[-1] ** 0.5).softmax(-1).mean(1)
            maps[self.run.phase].append(shares[..., words])
        return plain(self, func, q, k, v, heads, *args, **kwargs)

    def seen(self: Any, call: Any) -> None:
        states.append(call.state)
        look(self, call)

    monkeypatch.setattr(JointSite, "__call__", spy)
    monkeypatch.setattr(LocalBlend, "look", seen)
    p2p = P2P(CAT, DOG, cross=(0.0, 1.0), self_window=(0.0, 0.0))
    controls = (p2p, replace(BLEND, threshold=1.0)) if rewritten else (replace(BLEND, threshold=1.0),)
    positive = joint_prompt(2, kind, tokens=DOG.length)
    joint_run(model, inversion, *controls, kind=kind, cfg=1.0, positive=positive)
    source, target = (torch.stack(maps[phase]) for phase in (Phase.CAPTURE, Phase.EDIT))
    assert len(source) == len(target) > 4
    if rewritten:
        mapping = p2p.mapping.gated(p2p.gate(0, 4))
        target = source @ mapping.transfer.double() + target * mapping.keep.double()
    for name, shares, word in (("source", source, CAT.find("cat")), ("target", target, DOG.find("dog"))):
        expected = shares[..., list(word)].sum(-1).sum(0)
        assert torch.allclose(states[-1].maps[name].flatten(1).double(), expected, atol=1e-5), name


@SOME
def test_the_source_stays_outside_the_mask(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inversion = inverted(kind)
    masks, mask = [], LocalBlend.mask

    def seen(self: Any, *args: Any) -> Any:
        masks.append(mask(self, *args))
        return masks[-1]

    monkeypatch.setattr(LocalBlend, "mask", seen)
    out = follow(model, inversion, P2P(CAT, DOG, layers="all"), replace(BLEND, threshold=0.93), kind=kind)
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    kept = (masks[-1].reshape(1, *out.shape[-2:]) == 0)[0]
    error = (out - image).abs().amax(1).reshape(kept.shape)
    assert 0 < float(kept.float().mean()) < 1
    assert float(error[kept].max()) < 1e-4 and float(error[~kept].mean()) > 1e-2
