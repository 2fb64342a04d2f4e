"""Attention maps on joint attention: columns of its softmax written out, on tiny random transformers."""

from __future__ import annotations

from typing import Any

import edits
import pytest
import torch
from attention_edit.attention.engine.install import install
from attention_edit.attention.engine.layers import ALL, MIDDLE, VITAL, layers_of
from attention_edit.attention.maps.heat import heat_map
from attention_edit.attention.maps.recorder import Recording, RecordMaps, recorder
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.p2p import P2P
from attention_edit.host.families import family_of
from attention_edit.inversion.ddim_inversion import DDIMInversion
from every_method import outputs
from other_texts import read
from tiny_joint import joint_latent, joint_model, joint_prompt, joint_run, joint_sample
from torch import Tensor

SOME = pytest.mark.parametrize("kind", ["Flux", "Flux2", "SD3", "ZImage", "QwenImage"])
"""With their own ways: nothing of it, texts filled up ahead, no positions, positions behind the text, frames."""
PROMPT = read("Chroma", "a red cat on a mat")
SOURCE = read("Chroma", "a cat on a mat")
SIGMAS = torch.tensor([1.0, 0.6, 0.0])


def control(model: Any, own: bool = False, blocks: str = MIDDLE, end: float = 1.0) -> RecordMaps:
    """A recorder of the prompt's words; a size that a transformer has not stands for its own."""
    return recorder(PROMPT, family_of(model), (4,), (4,) if own else (), 0.0, end, blocks)


def draw(model: Any, kind: str, x: Tensor | None = None, cfg: float = 1.0, **options: Any) -> Tensor:
    x = joint_latent(1, kind) if x is None else x
    positive, negative = joint_prompt(2, kind, PROMPT.length, **options), joint_prompt(3, kind, **options)
    return joint_sample(model, positive, negative, torch.zeros_like(x), x, SIGMAS, cfg)


def heads_of(x: Tensor, heads: int) -> Tensor:
    return (x if x.ndim == 4 else x.unflatten(-1, (heads, -1))).transpose(1, 2)


def written_out(model: Any, kind: str, x: Tensor, pads: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Each block's softmax (B, N, n) float64, mean over heads: the words' columns, and the image's over their sum."""
    patch = 1 if kind == "Flux2" else 2
    tokens = (x.shape[-2] // patch) * (x.shape[-1] // patch)
    words: list[Tensor] = []
    image: list[Tensor] = []

    def watch(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        options = kwargs.get("transformer_options") or {}
        a, b = (t if kwargs.get("skip_reshape") else heads_of(t, heads) for t in (q, k))
        first = a.shape[2] - tokens - pads
        inside = first > 0 and (kind not in ("ZImage", "Lumina2") or options.get("block_index") is not None)
        if inside:
            end = first + tokens
            shares = (a[:, :, first:end].double() @ b.double().mT / a.shape[-1] ** 0.5).softmax(-1).mean(1)
            place = slice(first - PROMPT.length, first) if kind == "Flux2" else slice(PROMPT.length)
            words.append(shares[..., place][..., list(PROMPT.content)])
            image.append(shares[..., first:end] / shares[..., first:end].sum(-1, keepdim=True))
        return func(q, k, v, heads, *args, **kwargs)

    watched = model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = watch
    draw(watched, kind, x)
    return words, image


def mean_of_middle(model: Any, found: list[Tensor]) -> Tensor:
    """Mean over the steps and the middle two thirds of the blocks."""
    count = len(family_of(model).layers)
    chosen = range(count // 6, count - count // 6)
    assert len(found) == 2 * count, "each block once in each of two steps"
    return torch.stack([found[step * count + i] for step in (0, 1) for i in chosen]).mean(0)


@SOME
def test_records_the_columns_of_the_joint_softmax(kind: str) -> None:
    model, x = joint_model(kind), joint_latent(1, kind, batch=2)
    made = control(model, own=True)
    draw(install(model, made), kind, x)
    found = made.maps.recording
    words, image = (mean_of_middle(model, of) for of in written_out(model, kind, x))
    ((scale, cross),), ((_, own),) = found.cross.items(), found.own.items()
    patch = 1 if kind == "Flux2" else 2
    assert scale == patch and cross.shape == (x.shape[-2] // patch, x.shape[-1] // patch)
    assert cross.values.shape == (2, cross.shape[0] * cross.shape[1], len(PROMPT.content))
    assert torch.allclose(cross.values.double(), words, atol=1e-6)
    assert torch.allclose(own.values.double(), image, atol=1e-6)
    assert heat_map(found, (PROMPT.content[1],)).shape[1:] == tuple(
        side * (16 if kind == "Flux2" else 8) for side in x.shape[-2:]
    )


def test_pads_behind_the_image_are_none_of_its_columns() -> None:
    """Z-Image at a size that it fills up: 20 x 12 cells are 60 tokens and 4 more."""
    model = joint_model("ZImage")
    x = torch.randn(1, 16, 20, 12, generator=torch.Generator().manual_seed(4))
    made = control(model, own=True)
    draw(install(model, made), "ZImage", x)
    words, image = written_out(model, "ZImage", x, pads=4)
    cross, own = made.maps.recording.cross[2], made.maps.recording.own[2]
    assert cross.shape == own.shape == (10, 6)
    assert torch.allclose(cross.values.double(), mean_of_middle(model, words), atol=1e-6)
    assert torch.allclose(own.values.double(), mean_of_middle(model, image), atol=1e-6)


@SOME
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_changes_nothing(kind: str, cfg: float) -> None:
    model = joint_model(kind)
    stock = draw(model, kind, cfg=cfg)
    assert torch.equal(draw(install(model, control(model, own=True, blocks=ALL)), kind, cfg=cfg), stock)
    assert torch.equal(draw(model, kind, cfg=cfg), stock), "nothing is left on the model"
    options = model.model_options["transformer_options"]
    assert "optimized_attention_override" not in options and not options.get("patches_replace")


def inverted(model: Any, kind: str, given: Any = None, batch: int = 1, prompt: Any = SOURCE) -> Any:
    with torch.inference_mode():
        latent = {"samples": joint_latent(1, kind, batch)}
        conditioning = joint_prompt(5, kind, tokens=prompt.length)
        return DDIMInversion(3, flow_iterations=1)(given or model, latent, conditioning).inversion


@SOME
@pytest.mark.parametrize("packed", [False, True])
def test_changes_nothing_beside_an_edit(kind: str, packed: bool) -> None:
    """Ahead of the edits or behind them, of which each takes another share of the attention anew."""
    model = joint_model(kind)
    inversion = inverted(model, kind)
    given = {"kind": kind, "cfg": 3.0, "packed": packed, "positive": joint_prompt(2, kind, tokens=PROMPT.length)}
    edit = P2P(SOURCE, PROMPT, self_window=(0.5, 1.0), layers="all"), FPE(layers="all", end=0.5)
    alone = joint_run(model, inversion, *edit, **given)
    before, behind = control(model, own=True), control(model, own=True)
    assert torch.equal(joint_run(model, inversion, before, *edit, behind, **given), alone)
    for name in ("cross", "own"):
        one, other = (getattr(made.maps.recording, name) for made in (before, behind))
        assert all(torch.equal(one[scale].values, other[scale].values) for scale in one)


@SOME
def test_packed_is_apart_and_a_batch_is_its_images(kind: str) -> None:
    model = joint_model(kind)
    found: list[Recording] = []
    pair = inverted(model, kind, batch=2)
    positive = joint_prompt(2, kind, tokens=PROMPT.length)
    for packed in (False, True):
        made = control(model, own=True)
        edit = FPE(layers="all", end=1.0)
        joint_run(model, pair, made, edit, kind=kind, cfg=3.0, packed=packed, batch=2, positive=positive)
        found.append(made.maps.recording)
    for name in ("cross", "own"):
        one, other = (next(iter(getattr(of, name).values())).values for of in found)
        assert edits.difference(one, other) < 2e-5
    x = joint_latent(1, kind, batch=2)
    both = control(model)
    draw(install(model, both), kind, x)
    for i in range(2):
        alone = control(model)
        draw(install(model, alone), kind, x[i : i + 1])
        of_both, of_one = (next(iter(made.maps.recording.cross.values())).values for made in (both, alone))
        assert torch.allclose(of_both[i : i + 1], of_one, atol=1e-6)


@SOME
def test_records_an_inversion(kind: str) -> None:
    """Which is the same bit for bit."""
    model = joint_model(kind)
    made = control(model)
    plain = inverted(model, kind, prompt=PROMPT)
    assert torch.equal(inverted(model, kind, install(model, made), prompt=PROMPT).latents, plain.latents)
    (cross,) = made.maps.recording.cross.values()
    assert cross.layers == len(layers_of(family_of(model), MIDDLE))
    assert torch.isfinite(cross.values).all() and float(cross.values.min()) > 0


def test_guidance_and_half_precision_record_the_prompts_rows() -> None:
    model = joint_model("SD3")
    first = []
    for cfg in (1.0, 3.0):
        made = control(model, end=0.5)
        draw(install(model, made), "SD3", cfg=cfg)
        first.append(made.maps.recording.cross[2].values)
    assert torch.allclose(*first, atol=1e-6)
    made, half = control(model, own=True), joint_model("SD3", dtype=torch.bfloat16)
    draw(install(half, made), "SD3", cfg=3.0)
    assert made.maps.recording.cross[2].values.dtype == torch.float32
    assert torch.isfinite(made.maps.recording.own[2].values).all()


def test_refusals() -> None:
    model = joint_model("SD3")
    with pytest.raises(ValueError, match=r"^Choose 'middle .* no list of vital blocks is published for SD3"):
        control(model, blocks=VITAL)
    with pytest.raises(ValueError, match="range of layer numbers from 0 to 2"):
        control(model, blocks="5-9")
    with pytest.raises(
        ValueError, match=r"positive conditioning has 12 text tokens, Record Attention Maps's target_prompt 9"
    ):
        positive, x = joint_prompt(2, "SD3"), joint_latent(1, "SD3")
        joint_sample(install(model, control(model)), positive, positive, torch.zeros_like(x), x, SIGMAS)


@SOME
def test_the_nodes_take_a_transformers_maps(kind: str) -> None:
    """With the defaults of all widgets: words as a mask, as heat over the picture, and pixels as clusters."""
    x = joint_latent(1, kind)
    model, maps = outputs("RecordMaps", model=joint_model(kind), prompt=PROMPT, self_maps="quarter")
    latent = {"samples": draw(model, kind, x)}
    side = x.shape[-1] * (16 if kind == "Flux2" else 8)
    mask, heat = outputs("MapMask", maps=maps, after=latent, words="cat, red", sharpen=1)
    assert mask.shape == heat.shape == (1, side, side)
    assert 0 < float(mask.mean()) < 1 and torch.equal(mask, (mask > 0).float())
    image = torch.rand(1, side, side, 3)
    (picture,) = outputs("MapViewer", maps=maps, after=latent, image=image, words="cat")
    assert picture.shape[0] == 1 and picture.shape[2] >= side
    _, _, chosen, background, report = outputs("SelfMaps", maps=maps, after=latent, words="cat", clusters=3)
    assert chosen.shape == background.shape == (1, side, side)
    assert len(report.splitlines()) == 3


def test_blocks_are_chosen_by_number() -> None:
    model = joint_model("Flux")
    found = []
    for blocks in ("0", "4", "0, 4"):
        patched, maps = outputs("RecordMaps", model=model, prompt=PROMPT, blocks="range below", block_range=blocks)
        draw(patched, "Flux")
        found.append(maps.recording.cross[2])
    assert [of.layers for of in found] == [1, 1, 2]
    assert torch.allclose((found[0].values + found[1].values) / 2, found[2].values, atol=1e-6)
    assert edits.difference(found[0].values, found[1].values) > 1e-2
