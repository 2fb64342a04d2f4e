"""Two runs in a row are one run: with every method, split anywhere, by the host's own sampler nodes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import edits
import every_method
import pytest
import tiny
import torch
from attention_edit.attention.engine.install import pin
from attention_edit.attention.engine.plan import plan_of
from attention_edit.attention.methods.local_blend import LocalBlend
from comfy_extras.nodes_custom_sampler import SplitSigmas
from custom_sampler import custom
from every_method import BESIDE, METHODS, outputs, put
from house import PACK

STEPS = 5
SPLITS = (1, 2, 4)
every = pytest.mark.parametrize("name", METHODS)
GATHERING = {"cpam, refined mask": "Refine Mask", "local_blend": "Local Blend", "masactrl, words": "MasaCtrl"}
"""Methods that cannot go on without what they have gathered, by the name that they refuse with."""


@pytest.fixture(scope="module")
def inversion(model):
    return edits.invert(model, steps=STEPS, offset=1)


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


def stepped(  # noqa: PLR0913, PLR0917 (the node's inputs)
    model: Any,
    latent: Any,
    start: int,
    end: int,
    seed: int = 7,
    scheduler: str = "ddim_uniform",
    left: str = "enable",
    noise: str = "disable",
    sampler: str = "euler",
) -> Any:
    """A LATENT from KSampler (Advanced)."""
    import nodes

    return nodes.KSamplerAdvanced().sample(
        model, noise, seed, STEPS, 4.0, sampler, scheduler, tiny.prompt(2), tiny.prompt(3), latent, start, end, left
    )[0]


def same(one: Any, other: Any) -> bool:
    return edits.difference(one["samples"], other["samples"]) <= 1e-5


def test_every_method_is_here(model, inversion):
    files = {path.stem for path in Path(PACK, "attention/methods").iterdir() if not path.name.startswith("__")}
    known = {**METHODS, **BESIDE}
    assert {name.split(",")[0] for name in known} | every_method.NO_CONTROL == files | {"recorder"}
    found = set().union(*(every_method.controls_of(on(model, inversion)) for on in known.values()))
    assert found == every_method.kinds_of_control()


@every
def test_two_runs_of_edit_setups_model_are_one(name, model, inversion):
    """The second sampler's seed does not count; its scheduler need not be the inversion's."""
    pinned, noise, sigmas, latent = outputs("Setup", model=METHODS[name](model, inversion), inversion=inversion, seed=7)
    whole = custom(pinned, noise, sigmas, latent)
    plain, *_ = outputs("Setup", model=model, inversion=inversion)
    assert name == "recorder" or not same(custom(plain, noise, sigmas, latent), whole), "it does nothing"
    for split, scheduler in zip(SPLITS, ("ddim_uniform", "normal", "ddim_uniform"), strict=True):
        half = stepped(pinned, latent, 0, split, scheduler=scheduler)
        assert not same(half, whole)
        assert same(stepped(pinned, half, split, STEPS, 8, scheduler, "disable"), whole)


@every
def test_two_runs_on_split_sigmas_are_one(name, model, inversion):
    """With Edit Setup's sigmas and without its model; the first run's latent may be gone on from twice."""
    edited = METHODS[name](model, inversion)
    _, noise, sigmas, latent = outputs("Setup", model=edited, inversion=inversion, seed=7)
    whole = custom(edited, noise, sigmas, latent)
    for split in SPLITS:
        high, low = SplitSigmas.execute(sigmas, split).args
        half = custom(edited, noise, high, latent)
        for _ in range(2 if split == 2 else 1):
            assert same(custom(edited, noise, low, half), whole)


@pytest.mark.parametrize("name", BESIDE)
def test_methods_with_images_of_their_own_refuse_a_part_of_a_run(name, model, inversion):
    pinned, noise, sigmas, latent = outputs("Setup", model=BESIDE[name](model, inversion), inversion=inversion, seed=7)
    plain, *_ = outputs("Setup", model=model, inversion=inversion, seed=7)
    half = custom(plain, noise, sigmas[:3], latent)
    for run in (
        lambda: custom(pinned, noise, sigmas[:3], latent),
        lambda: custom(pinned, noise, sigmas[2:], half),
        lambda: stepped(pinned, latent, 2, STEPS),
    ):
        with pytest.raises(ValueError, match=r"^Let one sampler do all steps: MaSaFusion"):
            run()
    varied, *_ = outputs("Setup", model=BESIDE[name](model, inversion), inversion=inversion, variation=0.5)
    with pytest.raises(ValueError, match=r"^Set Edit Setup's variation to 0: MaSaFusion"):
        custom(varied, noise, sigmas, latent)


def test_three_runs_of_a_two_stage_sampler_are_one(model, inversion):
    """Heun asks the model at the end of its step too, where the next run begins."""
    edited = METHODS["local_blend"](model, inversion)
    pinned, noise, sigmas, latent = outputs("Setup", model=edited, inversion=inversion)
    whole = custom(pinned, noise, sigmas, latent, "heun")
    first = custom(pinned, noise, sigmas[:3], latent, "heun")
    second = custom(pinned, noise, sigmas[2:4], first, "heun")
    assert same(custom(pinned, noise, sigmas[3:], second, "heun"), whole)


def test_null_text_is_that_of_the_step(model, inversion):
    texts = torch.randn(STEPS, 1, 77, tiny.CONTEXT, generator=torch.Generator().manual_seed(4))
    with_text = replace(inversion, null_states=texts)
    pinned, noise, sigmas, latent = outputs("Setup", model=METHODS["fpe"](model, with_text), inversion=with_text)
    whole = custom(pinned, noise, sigmas, latent)
    assert same(custom(pinned, noise, sigmas[2:], custom(pinned, noise, sigmas[:3], latent)), whole)


@every
def test_a_method_for_the_last_steps_counts_on_or_refuses_by_name(name, model, inversion):
    """Another model ran the first steps: then what is gathered over steps is not there."""
    plain, noise, sigmas, latent = outputs("Setup", model=model, inversion=inversion, seed=7)
    half = custom(plain, noise, sigmas[:4], latent)
    pinned, *_ = outputs("Setup", model=METHODS[name](model, inversion), inversion=inversion, seed=7)
    if name in (*GATHERING, "proximal"):
        gathering = GATHERING.get(name, "Proximal Guidance's hold")
        with pytest.raises(ValueError, match=rf"^Sample with {gathering} from the first step on"):
            custom(pinned, noise, sigmas[3:], half)
        return
    out, unpinned = custom(pinned, noise, sigmas[3:], half), METHODS[name](model, inversion)
    expected = custom(unpinned, noise, sigmas[3:], half)["samples"]
    if plan_of(unpinned).inversion is None:  # then nobody knows that the last level is the inversion's
        expected = expected / (1 + sigmas[-1] ** 2) ** 0.5
    assert same(out, {"samples": expected})


def test_another_model_for_the_last_steps(model, inversion):
    """A method in the first run only is one whose window ends there."""
    whole_model = pin(put("FPE", end=0.4)(model, inversion), inversion, tuple(inversion.schedule))
    _, noise, sigmas, latent = outputs("Setup", model=model, inversion=inversion)
    whole = custom(whole_model, noise, sigmas, latent)
    first, *_ = outputs("Setup", model=put("FPE", end=1.0)(model, inversion), inversion=inversion)
    last, *_ = outputs("Setup", model=model, inversion=inversion)
    half = custom(first, noise, sigmas[:3], latent)
    assert same(custom(last, noise, sigmas[2:], half), whole)
    assert not same(custom(first, noise, sigmas[2:], half), whole)


def test_what_runs_leave_is_the_whole_runs(model, inversion):
    """Recorded maps, refined masks and MAG-Edit's curve: of both parts."""
    recording = outputs("RecordMaps", model=model, prompt=every_method.DOG, self_maps="quarter")
    chosen, refined = outputs("RefineMask", masks=every_method.masks(), prompt=every_method.DOG, words="dog")
    edited = put("CPAM", masks=chosen)(recording[0], inversion)
    pinned, noise, sigmas, latent = outputs("Setup", model=edited, inversion=inversion)
    whole = custom(pinned, noise, sigmas, latent)
    maps, shown = recording[1].of(whole), refined.of(whole).by_step
    two = custom(pinned, noise, sigmas[2:], custom(pinned, noise, sigmas[:3], latent))
    for kind in ("cross", "own"):
        one, other = (getattr(of, kind)[4].values for of in (maps, recording[1].of(two)))
        assert edits.difference(other, one) < 1e-5
    assert refined.of(two).by_step.keys() == shown.keys()
    assert all(torch.equal(refined.of(two).by_step[step], mask) for step, mask in shown.items())

    given = {"target_prompt": every_method.DOG, "mask": edits.box()[0].float(), "words": "dog", "preset": "custom"}
    guided, curve = outputs("MAG", model=model, inversion=inversion, **given, iterations=2, end=0.9)
    pinned, *_ = outputs("Setup", model=guided, inversion=inversion)
    one = curve.of(custom(pinned, noise, sigmas, latent)).points
    two = curve.of(custom(pinned, noise, sigmas[2:], custom(pinned, noise, sigmas[:3], latent))).points
    assert [p.ratio for p in two] == pytest.approx([p.ratio for p in one], rel=1e-4)
    assert [(p.step, p.iteration) for p in two] == [(p.step, p.iteration) for p in one]


def test_added_noise_starts_at_the_inverted_noise(model, inversion):
    """As KSampler has it; a run that goes on does so, whatever noise its sampler was told to add."""
    pinned, noise, sigmas, latent = outputs("Setup", model=METHODS["fpe"](model, inversion), inversion=inversion)
    whole, empty = custom(pinned, noise, sigmas, latent), {"samples": torch.zeros_like(latent["samples"])}
    half = stepped(pinned, empty, 0, 2, noise="enable")
    assert same(half, stepped(pinned, latent, 0, 2))
    assert same(stepped(pinned, half, 2, STEPS, noise="enable", left="disable"), whole)


def test_a_start_inside_with_edit_setups_latent_is_on_the_trajectory(model, inversion):
    """As Edit Setup's denoise: the image's own latent of that level."""
    edited = METHODS["fpe"](model, inversion)
    pinned, _, _, latent = outputs("Setup", model=edited, inversion=inversion)
    later, noise, sigmas, start = outputs("Setup", model=edited, inversion=inversion, denoise=0.6)
    assert len(sigmas) == STEPS - 1
    assert same(stepped(pinned, latent, 2, STEPS), custom(later, noise, sigmas, start))


def test_what_cannot_be_one_run_is_refused_by_name(model, inversion):
    pinned, noise, _, latent = outputs("Setup", model=METHODS["fpe"](model, inversion), inversion=inversion)
    ended = stepped(pinned, latent, 0, 2, left="disable")
    with pytest.raises(ValueError, match=r"^Set return_with_leftover_noise of the first sampler to enable"):
        stepped(pinned, ended, 2, STEPS)
    elsewhere = stepped(model, latent, 0, 2, scheduler="normal")
    with pytest.raises(ValueError, match=r"^Split Edit Setup's sigmas"):
        stepped(pinned, elsewhere, 2, STEPS, scheduler="normal")
    with pytest.raises(ValueError, match=r"^Let this sampler end later"):
        custom(pinned, noise, torch.tensor([14.6, 14.0]), latent)


def test_windows_are_not_counted_on_a_part_of_an_unknown_whole(model, inversion):
    """Without an inversion nobody knows which share of all steps a sampler's part is."""
    start, sigmas = {"samples": tiny.latent(4)}, torch.tensor([14.6, 5.0, 2.0, 0.5, 0.0])
    noise = outputs("Setup", model=model, inversion=inversion)[1]
    part = outputs("RecordMaps", model=model, prompt=every_method.DOG, start=0.3)[0]
    custom(part, noise, sigmas, start)
    with pytest.raises(ValueError, match=r"^Set Record Attention Maps's start to 0 and its end to 1"):
        custom(part, noise, sigmas[:3], start)
    recorder, maps = outputs("RecordMaps", model=model, prompt=every_method.DOG)
    whole = custom(recorder, noise, sigmas, start)
    two = custom(recorder, noise, sigmas[2:], custom(recorder, noise, sigmas[:3], start))
    assert same(two, whole)
    assert edits.difference(maps.of(two).cross[4].values, maps.of(whole).cross[4].values) < 1e-5


def test_a_sampler_that_looks_back_is_said_to(model, inversion, caplog):
    pinned, noise, sigmas, latent = outputs("Setup", model=METHODS["fpe"](model, inversion), inversion=inversion)
    with caplog.at_level(logging.WARNING):
        half = custom(pinned, noise, sigmas[:3], latent, "dpmpp_2m")
        assert "looks back" not in caplog.text
        custom(pinned, noise, sigmas[2:], half, "dpmpp_2m")
    assert "dpmpp_2m looks back at earlier steps" in caplog.text


def test_what_a_run_has_left_goes_with_its_nodes(model, inversion):
    """A cached latent may be there after its model's nodes are gone."""
    import gc
    import weakref

    edited = METHODS["local_blend"](model, inversion)
    pinned, noise, sigmas, latent = outputs("Setup", model=edited, inversion=inversion)
    custom(pinned, noise, sigmas[:3], latent)
    found = weakref.ref(plan_of(pinned).controls[-1])
    assert isinstance(found(), LocalBlend)
    del edited, pinned
    gc.collect()
    assert found() is None
