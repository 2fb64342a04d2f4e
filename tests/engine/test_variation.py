"""Edit Setup's variation: a seed that matters, a share of none that changes nothing, and a source that stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import source as source_module
from attention_edit.attention.engine.variation import Variation
from comfy.sample import prepare_noise
from comfy_extras.nodes_custom_sampler import RandomNoise
from custom_sampler import custom
from every_method import METHODS, outputs
from torch import Tensor

MASK = edits.box()
CELLS = edits.box()[:, ::8, ::8]
"""The box has its edges on those of cells."""
every = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def inversion(model):
    return edits.invert(model, steps=3)


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


def set_up(model: Any, inversion: Any, share: float, seed: int = 1, **given: Any) -> tuple[Any, ...]:
    return outputs("Setup", model=model, inversion=inversion, seed=seed, variation=share, **given)


def ksampler(model: Any, latent: Any, seed: int) -> Tensor:
    import nodes

    given = (tiny.prompt(2), tiny.prompt(3), latent)
    return nodes.KSampler().sample(model, seed, 3, 4.0, "euler", "normal", *given)[0]["samples"]


def samples(*given: Any) -> Tensor:
    return custom(*given)["samples"]


@every
def test_the_seed_matters_as_much_as_is_asked_for(name, model, inversion):
    """A share of 0 is bit for bit the run without it; else the same seed gives the same, and another one another."""
    edited = METHODS[name](model, inversion)
    plain, _, _, latent = outputs("Setup", model=edited, inversion=inversion)
    none = set_up(edited, inversion, 0.0, variation_mask=MASK.float())[0]
    assert torch.equal(ksampler(none, latent, 7), ksampler(plain, latent, 7))
    varied = set_up(edited, inversion, 0.5)[0]
    one = ksampler(varied, latent, 7)
    assert torch.equal(ksampler(varied, latent, 7), one)
    assert edits.difference(ksampler(varied, latent, 8), one) > 1e-3


def test_the_mix_keeps_the_noises_variance_and_the_image(inversion):
    """x = x_0 + sigma (sqrt(1 - s) e + sqrt(s) n), with the host's own noise of the seed; all of it at a share of 1."""
    fresh = prepare_noise(inversion.latents[0], 5)
    for sigma in (inversion.sigmas[-1], inversion.sigmas[1]):
        image, own = inversion.latents[0], inversion.at(sigma)
        noise = (own - image) / sigma
        expected = image + sigma * (0.6**0.5 * noise + 0.4**0.5 * fresh)
        assert edits.difference(Variation(0.4, 5).start(inversion, sigma, 1), expected) < 1e-6
        assert edits.difference(Variation(1.0, 5).start(inversion, sigma, 1), image + sigma * fresh) < 1e-6
    assert pytest.approx(1.0) == (0.6**0.5) ** 2 + (0.4**0.5) ** 2


def test_outside_the_mask_the_noise_is_untouched(model, inversion):
    before = outputs("Setup", model=model, inversion=inversion)[3]["samples"]
    after = set_up(model, inversion, 0.7, variation_mask=MASK.float())[3]["samples"]
    inside = CELLS[:, None].expand_as(before)
    assert torch.equal(after[~inside], before[~inside])
    assert float((after - before)[inside].abs().min()) > 0
    touched = torch.zeros(1, edits.PIXELS, edits.PIXELS)
    touched[:, 9, 9] = 1
    one = set_up(model, inversion, 0.7, variation_mask=touched)[3]["samples"]
    assert (one != before).any(1).sum() == 1, "a cell varies as a whole, where any of its pixels does"


def test_the_source_replays_exactly(model, inversion, monkeypatch):
    """The rows that methods read are the image's own, whatever the edit starts with."""
    seen: list[Tensor] = []
    original = source_module.comfy.samplers.calc_cond_batch

    def spy(inner, conds, x, *rest):
        seen.append(x.clone())
        return original(inner, conds, x, *rest)

    monkeypatch.setattr(source_module.comfy.samplers, "calc_cond_batch", spy)
    pinned, noise, sigmas, latent = set_up(METHODS["masactrl"](model, inversion), inversion, 1.0, keep_source="off")
    samples(pinned, noise, sigmas, latent)
    kept = [x for x in seen if len(x) == 1 and any(torch.equal(x, inversion.at(float(s))) for s in sigmas)]
    assert len(kept) >= 2


def test_the_background_stays_exact(model, inversion):
    pinned, _, _, latent = set_up(METHODS["background"](model, inversion), inversion, 1.0)
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    out = ksampler(pinned, latent, 7)
    outside = ~CELLS[:, None].expand_as(out)
    # The node's masks are dilated a little, and the cells at their edge with them.
    far = ~torch.nn.functional.max_pool2d(CELLS[:, None].float(), 3, 1, 1).bool().expand_as(out)
    assert outside.any() and float((out - image)[far].abs().max()) < 1e-5


def test_both_sampler_nodes_vary_alike(model, inversion):
    """By the noise that the sampler brings, or by its seed; also without Edit Setup's model, from its latent."""
    edited = METHODS["fpe"](model, inversion)
    pinned, noise, sigmas, latent = set_up(edited, inversion, 0.5, 7)
    one = ksampler(pinned, latent, 7)
    assert edits.difference(samples(pinned, noise, sigmas, latent), one) < 1e-6
    assert edits.difference(samples(edited, noise, sigmas, latent), one) < 1e-5
    assert edits.difference(samples(pinned, RandomNoise.execute(7).args[0], sigmas, latent), one) < 1e-6
    assert edits.difference(samples(pinned, RandomNoise.execute(8).args[0], sigmas, latent), one) > 1e-3


def test_two_runs_of_a_varied_start_are_one(model, inversion):
    """The noise is mixed in once, where the run begins."""
    pinned, noise, sigmas, latent = set_up(METHODS["fpe"](model, inversion), inversion, 0.5, 7)
    whole = samples(pinned, noise, sigmas, latent)
    half = samples(pinned, noise, sigmas[:2], latent)
    assert edits.difference(samples(pinned, noise, sigmas[1:], {"samples": half}), whole) < 1e-5


def test_denoise_varies_the_trajectorys_noise(model, inversion):
    """A later start holds less noise, of which the share is taken: the image in it stays."""
    *_, sigmas, before = outputs("Setup", model=model, inversion=inversion, denoise=0.5)
    after = set_up(model, inversion, 1.0, denoise=0.5)[3]
    scale = model.get_model_object("latent_format").process_in(after["samples"]) - inversion.latents[0]
    assert float(scale.std()) == pytest.approx(float(sigmas[0]), rel=0.1)
    assert not torch.equal(after["samples"], before["samples"])


@pytest.mark.parametrize("name", ["cpam", "p2p", "masactrl, words"])
def test_each_row_of_a_batch_has_noise_of_its_own(name, model):
    """As the host numbers them: row i of a batch is image i alone with that batch index."""
    inversion = edits.invert(model, steps=3, batch=2)
    pinned, _, _, latent = set_up(METHODS[name](model, inversion), inversion, 0.5)
    both = ksampler(pinned, latent, 7)
    for i in range(2):
        alone = replace(inversion, latents=inversion.latents[:, i : i + 1])
        single = set_up(METHODS[name](model, alone), alone, 0.5)[0]
        given = {"samples": latent["samples"][i : i + 1], "batch_index": [i]}
        assert edits.difference(ksampler(single, given, 7), both[i : i + 1]) < 1e-4
    one_image = replace(inversion, latents=inversion.latents[:, :1])
    pinned = set_up(METHODS["fpe"](model, one_image), one_image, 0.5)[0]
    rows = ksampler(pinned, latent, 7)
    assert edits.difference(rows[:1], rows[1:]) > 1e-3, "one image in a batch: each row varies by itself"


def test_masks_that_do_not_fit_are_refused(model, inversion):
    with pytest.raises(ValueError, match=r"^Draw the variation_mask"):
        set_up(model, inversion, 0.5, variation_mask=edits.NONE.float())
    with pytest.raises(ValueError, match="another shape"):
        set_up(model, inversion, 0.5, variation_mask=torch.ones(1, 64, 128))
    pinned = set_up(model, inversion, 0.5, variation_mask=MASK.float())[0]
    with pytest.raises(ValueError, match="Edit Setup's latent"):
        ksampler(pinned, {"samples": torch.zeros(1, 4, 8, 8)}, 7)
    masks = torch.cat([MASK, MASK, MASK]).float()
    with pytest.raises(ValueError, match=r"^Give Edit Setup one variation_mask"):
        set_up(model, inversion, 0.5, variation_mask=masks)
