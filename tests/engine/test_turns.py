"""Editing in turns: the record of an edit's own run is the next edit's source, exactly, with every method."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import edits
import pytest
import tiny
import tiny_joint
import torch
from attention_edit.attention.engine.control import Control
from attention_edit.attention.engine.install import install
from attention_edit.attention.engine.variation import Variation
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.inversion import file_format
from attention_edit.inversion.record import Inversion
from comfy.patcher_extension import WrappersMP
from custom_sampler import custom
from every_method import BESIDE, METHODS, masks, outputs, put
from torch import Tensor

STEPS = 3
ALL = {**METHODS, **BESIDE}


@pytest.fixture(scope="module")
def inversion(model):
    return edits.invert(model, steps=STEPS, offset=1)


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


def ksampler(model: Any, latent: Any, seed: int = 7, sampler: str = "euler", positive: int = 2) -> Any:
    """A LATENT from KSampler."""
    import nodes

    prompts = tiny.prompt(positive), tiny.prompt(3)
    return nodes.KSampler().sample(model, seed, STEPS, 4.0, sampler, "normal", *prompts, latent)[0]


def recorded(edited: Any, source: Inversion, **given: Any) -> tuple[Any, ...]:
    """What Edit Setup gives with record_turn on."""
    return outputs("Setup", model=edited, inversion=source, record_turn=True, keep_source="off", **given)


def turn(edited: Any, source: Inversion, run: Any = ksampler, text: Any = None, **given: Any) -> tuple[Any, Inversion]:
    """An edit that is sampled and recorded: its LATENT, and the edited image as the next source."""
    pinned, _, _, start = recorded(edited, source, **given)
    latent = run(pinned, start)
    return latent, outputs("NextTurn", model=pinned, latent=latent, source=text)[0]


def scaled(model: Any, latent: Any) -> Tensor:
    return model.get_model_object("latent_format").process_in(latent["samples"])


def counted(model: Any) -> tuple[Any, list[int]]:
    """A clone of a model that counts the rows that go through its UNet."""
    rows: list[int] = []

    def count(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    found = model.clone()
    found.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "counts", count)
    return found, rows


@dataclass(frozen=True, eq=False)
class Watch(Control):
    """Keeps what the network is given, by noise level."""

    seen: dict[float, Tensor] = field(default_factory=dict)
    name = "watch"

    def acts(self, run, state):
        return True

    def sees(self, run, state, x):
        self.seen[run.sigma] = x.clone()


@pytest.mark.parametrize("name", ALL)
def test_a_turn_is_what_was_sampled_and_costs_nothing(name, model, inversion):
    """The same picture bit for bit and as many evaluations; the source is then where the edit was at every level."""
    counting, rows = counted(model)
    edited = ALL[name](counting, inversion)
    plain, _, _, start = outputs("Setup", model=edited, inversion=inversion, keep_source="off")
    expected = ksampler(plain, start)
    before = list(rows)
    rows.clear()
    watch = Watch()
    latent, found = turn(install(ALL[name](counting, inversion), watch), inversion)
    assert torch.equal(latent["samples"], expected["samples"])
    assert rows == before
    assert edits.difference(found.latents[0], scaled(model, latent)) < 1e-6
    assert len(watch.seen) == STEPS
    for sigma, x in watch.seen.items():
        assert edits.difference(found.at(sigma), x) < 1e-6
    assert not torch.equal(found.latents, inversion.latents) or name == "recorder"
    assert torch.equal(found.conditioning[0][0], tiny.prompt(2)[0][0])


@pytest.mark.parametrize("name", ["cpam", "local_blend", "mag", "masafusion", "pnp"])
def test_keeping_everything_is_the_turn_before(name, model, inversion):
    """The replay of the record: with an empty mask the second edit returns the first one's picture."""
    latent, found = turn(ALL[name](model, inversion), inversion)
    kept = install(put("FPE", end=1.0)(model, found), ExactBackground(edits.NONE), found)
    again, replayed = turn(kept, found)
    assert edits.difference(again["samples"], latent["samples"]) < 1e-5
    assert torch.equal(replayed.latents, found.latents)


def test_three_turns_leave_the_background_as_it_was(model, inversion):
    """Exact Background outside a box: every level, bit for bit, and the result to rounding."""
    kept = ~edits.box()[:, ::8, ::8].expand(4, -1, -1)
    source, edited = inversion, []
    for method in (put("CPAM", masks=masks(), normal_share=0.0), put("FPE", end=1.0), put("MasaCtrl", start=0.0)):
        on = put("Background", masks=masks(dilation=0.0))(method(model, source), source)
        latent, source = turn(on, source)
        photograph = model.get_model_object("latent_format").process_out(inversion.latents[0])
        assert float((latent["samples"][0][kept] - photograph[0][kept]).abs().max()) < 1e-5
        assert torch.equal(source.latents[:, 0][:, kept], inversion.latents[:, 0][:, kept])
        edited.append(latent["samples"])
    assert edits.difference(edited[1], edited[0]) > 1e-2 < edits.difference(edited[2], edited[1])


def test_without_an_edit_sampling_finds_the_turn_again(model, inversion):
    """The record begins at the noise from which the same prompts lead to the same picture, its null text included."""
    texts = torch.randn(STEPS, 1, 77, tiny.CONTEXT, generator=torch.Generator().manual_seed(4))
    for source in (inversion, replace(inversion, null_states=texts, null_guidance=4.0)):
        latent, found = turn(model, source)
        pinned, _, _, start = outputs("Setup", model=model, inversion=found)
        assert edits.difference(ksampler(pinned, start)["samples"], latent["samples"]) < 1e-5
        assert (found.null_states is None) == (source.null_states is None)
        assert found.null_guidance == source.null_guidance


def test_a_null_text_that_is_the_sources_only_ends_with_it(model, inversion):
    """MaSaFusion's target is drawn with the sampler's own negative prompt."""
    texts = torch.randn(STEPS, 1, 77, tiny.CONTEXT, generator=torch.Generator().manual_seed(4))
    source = replace(inversion, null_states=texts, null_guidance=4.0)
    _, found = turn(BESIDE["masafusion"](model, source), source)
    assert found.null_states is None and found.null_guidance is None and not found.null_options


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
def test_the_record_is_the_samplers_own_way(sampler, model, inversion):
    """The latents of its callback, whatever it asks the model between the levels; with both sampler nodes."""
    pinned, noise, sigmas, start = recorded(METHODS["fpe"](model, inversion), inversion)
    own: list[Tensor] = []
    given = pinned, tiny.prompt(2), tiny.prompt(3), start["samples"], sigmas, 4.0, sampler
    out = tiny.sample(*given, callback=lambda step, denoised, x, total: own.append(x.clone()))
    found = outputs("NextTurn", model=pinned, latent={"samples": out})[0]
    for sigma, x in zip(sigmas.tolist()[:-1], own, strict=True):
        assert edits.difference(found.at(sigma), x) < 1e-6
    for latent in (custom(pinned, noise, sigmas, start, sampler), ksampler(pinned, start, sampler=sampler)):
        assert torch.equal(outputs("NextTurn", model=pinned, latent=latent)[0].latents, found.latents)


def test_runs_of_one_model_are_not_mixed(model, inversion):
    """Each sampler's latent finds its own record, in whatever order; another latent finds none."""
    pinned, _, _, start = recorded(METHODS["fpe"](model, inversion), inversion)
    runs = [ksampler(pinned, start, positive=seed) for seed in (2, 4, 6)]
    for seed, latent in ((4, runs[1]), (6, runs[2]), (2, runs[0])):
        found = outputs("NextTurn", model=pinned, latent=latent)[0]
        assert edits.difference(found.latents[0], scaled(model, latent)) < 1e-6
        assert torch.equal(found.conditioning[0][0], tiny.prompt(seed)[0][0])
    with pytest.raises(ValueError, match=r"^Connect the latent of the sampler that runs Edit Setup's model"):
        outputs("NextTurn", model=pinned, latent={"samples": (runs[0]["samples"] + runs[1]["samples"]) / 2})


@pytest.mark.parametrize("cut", [comfy.model_management.InterruptProcessingException, RuntimeError])
def test_a_run_that_is_cut_off_leaves_no_record(cut, model, inversion):
    pinned, _, sigmas, start = recorded(METHODS["fpe"](model, inversion), inversion)
    last: list[Tensor] = []

    def end(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        last.append(x.clone())
        if step == STEPS - 1:
            raise cut

    with pytest.raises(cut):
        tiny.sample(pinned, tiny.prompt(2), tiny.prompt(3), start["samples"], sigmas, 4.0, callback=end)
    with pytest.raises(ValueError, match=r"^Connect the latent of the sampler"):
        outputs("NextTurn", model=pinned, latent={"samples": last[-1]})
    latent = ksampler(pinned, start)
    assert (
        edits.difference(outputs("NextTurn", model=pinned, latent=latent)[0].latents[0], scaled(model, latent)) < 1e-6
    )


def test_a_run_in_two_parts_is_one_turn(model, inversion):
    """The second part adds to the first; a part alone is none."""
    edited = METHODS["fpe"](model, inversion)
    pinned, noise, sigmas, start = recorded(edited, inversion)
    whole = outputs("NextTurn", model=pinned, latent=custom(pinned, noise, sigmas, start))[0]
    pinned, noise, sigmas, start = recorded(edited, inversion)
    half = custom(pinned, noise, sigmas[:3], start)
    with pytest.raises(ValueError, match=r"^Connect the latent of the sampler that runs Edit Setup's model to its end"):
        outputs("NextTurn", model=pinned, latent=half)
    two = outputs("NextTurn", model=pinned, latent=custom(pinned, noise, sigmas[2:], half))[0]
    assert edits.difference(two.latents, whole.latents) < 1e-5
    plain, noise, sigmas, start = outputs("Setup", model=model, inversion=inversion)
    with pytest.raises(ValueError, match=r"^Sample with Edit Setup's record_turn from the first step on"):
        custom(pinned, noise, sigmas[2:], custom(plain, noise, sigmas[:3], start))


def test_a_later_start_has_the_sources_way_above_it(model, inversion):
    """Edit Setup's denoise; with noise of its own there is no such way."""
    latent, found = turn(put("FPE", end=1.0)(model, inversion), inversion, denoise=0.6)
    assert torch.equal(found.latents[3:], inversion.latents[3:])
    assert edits.difference(found.latents[2], inversion.latents[2]) < 1e-6
    assert not torch.equal(found.latents[1], inversion.latents[1])
    assert edits.difference(found.latents[0], scaled(model, latent)) < 1e-6
    with pytest.raises(ValueError, match=r"^Set Edit Setup's denoise to 1, or its variation to 0"):
        turn(METHODS["fpe"](model, inversion), inversion, denoise=0.6, variation=0.5)
    _, varied = turn(METHODS["fpe"](model, inversion), inversion, variation=0.5, seed=7)
    assert (
        edits.difference(varied.at(varied.sigmas[-1]), Variation(0.5, 7).start(inversion, inversion.sigmas[-1], 1))
        < 1e-6
    )


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_sde", "lcm", "dpm_fast", "dpm_adaptive"])
def test_samplers_that_leave_the_schedule_are_refused_by_name(sampler, model, inversion):
    with pytest.raises(ValueError, match=rf"^Use euler, ddim, heun or dpmpp_2m: Next Turn .* {sampler} adds noise"):
        turn(model, inversion, lambda pinned, start: ksampler(pinned, start, sampler=sampler))


def test_models_that_record_nothing_are_refused_by_name(model, inversion):
    edited = METHODS["fpe"](model, inversion)
    pinned, _, _, start = outputs("Setup", model=edited, inversion=inversion)
    latent = ksampler(pinned, start)
    with pytest.raises(ValueError, match=r"^Switch record_turn on in the Edit Setup"):
        outputs("NextTurn", model=pinned, latent=latent)
    for other in (model, edited):
        with pytest.raises(ValueError, match=r"^Connect the model of Edit Setup"):
            outputs("NextTurn", model=other, latent=latent)
    pinned, _, _, start = recorded(edited, inversion)
    latent = ksampler(pinned, start)
    with pytest.raises(ValueError, match=r"^Connect a CLIP Text Encode directly: the source of Next Turn"):
        outputs("NextTurn", model=pinned, latent=latent, source=[*tiny.prompt(5), *tiny.prompt(6)])
    found = outputs("NextTurn", model=pinned, latent=latent, source=tiny.prompt(5))[0]
    assert torch.equal(found.conditioning[0][0], tiny.prompt(5)[0][0])


def test_a_turn_is_kept_in_a_file(model, inversion, tmp_path):
    """As any inversion: what is read is bit for bit what was written, and is edited alike."""
    _, found = turn(METHODS["cpam"](model, inversion), inversion)
    file_format.write(found, tmp_path / "turn.safetensors")
    read = file_format.read(tmp_path / "turn.safetensors", "turn")
    assert torch.equal(read.latents, found.latents) and read.method == found.method == "Next Turn"
    one, other = (turn(METHODS["masactrl"](model, source), source)[0]["samples"] for source in (found, read))
    assert torch.equal(one, other)


def test_a_batch_of_one_image_becomes_one_source_each(model, inversion):
    pinned, _, _, start = recorded(model, inversion, variation=0.5)
    latent = ksampler(pinned, {"samples": start["samples"].repeat(2, 1, 1, 1)})
    found = outputs("NextTurn", model=pinned, latent=latent)[0]
    assert found.batch == 2 and not torch.equal(found.latents[:, 0], found.latents[:, 1])
    assert edits.difference(found.latents[0], scaled(model, latent)) < 1e-6


@pytest.mark.parametrize("kind", ["Flux", "SD3", "QwenImage"])
def test_transformers(kind):
    """CPAM, then MasaCtrl, with an exact background: kept cells are the photograph's in every level."""
    model = tiny_joint.joint_model(kind)
    inversion = tiny_joint.joint_inversion(model, kind)
    mask = torch.zeros(1, *(side * 8 for side in inversion.latents.shape[-2:]))
    mask[:, 16:48, 16:40] = 1
    area = outputs("Masks", mask=mask, task="edit a part or region", dilation=0.0)[0]
    source, kept, text = inversion, mask[0, ::8, ::8] == 0, tiny_joint.joint_prompt(7, kind)

    def run(pinned: Any, start: Any) -> Any:
        given = tiny_joint.joint_prompt(2, kind), tiny_joint.joint_prompt(3, kind), start["samples"]
        return {"samples": tiny.sample(pinned, *given, torch.tensor([1.0, 0.0]), 2.0)}

    for method in (put("CPAM", masks=area, normal_share=0.0), put("MasaCtrl", start=0.0, first_layer=1)):
        latent, found = turn(put("Background", masks=area)(method(model, source), source), source, run, text)
        assert found.conditioning[0][1].get("guidance") == (1.0 if kind == "Flux" else None), "as it is inverted at"
        assert torch.equal(found.latents[..., kept], inversion.latents[..., kept])
        assert not torch.equal(found.latents, source.latents)
        assert edits.difference(found.latents[0], scaled(model, latent)) < 1e-6
        source = found
