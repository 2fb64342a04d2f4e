"""What an edit has read of the source is kept for the next edit: the same result, without a row of the source."""

from __future__ import annotations

import gc
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import edits
import folder_paths
import pytest
import tiny
import torch
from attention_edit.attention.engine import recorded, recording, shelves
from attention_edit.attention.engine.install import install, pin, with_plan
from attention_edit.attention.engine.plan import plan_of
from attention_edit.attention.engine.recorded import Keeping, held_of
from attention_edit.attention.engine.shelves import DEVICE, DISK, OFF, RAM
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from comfy.model_management import InterruptProcessingException
from every_method import BESIDE, METHODS, outputs
from tiny_joint import joint_inversion, joint_model, joint_prompt, joint_sample
from torch import Tensor

STEPS, CALLS = 3, 2
"""Of the papers' count, and calls of the network in a run of so many."""
every = pytest.mark.parametrize("name", [*METHODS, *BESIDE])
LARGE = 1 << 40


@pytest.fixture
def inversion(model):
    return edits.invert(model, steps=STEPS)


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


def sample(edited: Any, inversion: Any, seed: int = 7, cfg: float = 4.0, positive: int = 2, **given: Any) -> Tensor:
    import nodes

    set_up, _, _, latent = outputs("Setup", model=edited, inversion=inversion, **given)
    prompts = tiny.prompt(positive), tiny.prompt(3)
    return nodes.KSampler().sample(set_up, seed, STEPS, cfg, "euler", "normal", *prompts, latent)[0]["samples"]


def told(caplog: Any) -> tuple[int, int, int]:
    """Evaluations of the last run: planned for the source, planned for the target, and counted."""
    planned = re.findall(r"plans \d+ UNet evaluations \((\d+) source, (\d+) target\)", caplog.text)[-1]
    return int(planned[0]), int(planned[1]), int(re.findall(r"Edit: (\d+) UNet evaluations", caplog.text)[-1])


@every
def test_a_second_edit_is_the_same_and_costs_plain_sampling(name, model, inversion, caplog):
    """Every method: bit for bit as without, in the run that keeps and in the one that reads what is kept."""
    edited = (METHODS | BESIDE)[name](model, inversion)
    plain = sample(apart(edited), inversion, keep_source=OFF)
    caplog.set_level(logging.INFO)
    first = sample(edited, inversion)
    source, target, counted = told(caplog)
    assert torch.equal(first, plain) and counted >= source + target
    second = sample(edited, inversion)
    again, same, less = told(caplog)
    assert torch.equal(second, plain) and (again, same) == (0, target)
    assert counted - less == source
    assert (held_of(inversion) > 0) == (source > 0)


def apart(edited: Any) -> Any:
    """The model with its source in calls of its own, as it is where features are kept."""
    return with_plan(edited, replace(plan_of(edited), packed=False))


@pytest.mark.parametrize("where", [RAM, DEVICE, DISK])
def test_another_method_reads_what_one_has_kept(where, model, inversion, caplog):
    """CPAM keeps keys and values, FPE needs queries too: both are kept then, and neither runs the source again."""
    cpam, fpe = (METHODS[name](model, inversion) for name in ("cpam", "fpe"))
    plain = [sample(each, inversion, keep_source=OFF) for each in (cpam, fpe)]
    caplog.set_level(logging.INFO)
    found = [sample(each, inversion, keep_source=where) for each in (cpam, fpe)]
    assert told(caplog)[0] > 0
    again = [sample(each, inversion, keep_source=where) for each in (cpam, fpe)]
    assert told(caplog)[0] == 0
    assert all(torch.equal(a, b) for a, b in zip([*plain, *plain], [*found, *again], strict=True))


def test_another_prompt_mask_guidance_or_seed_keeps_the_record(model, inversion, caplog):
    sample(METHODS["cpam"](model, inversion), inversion)
    caplog.set_level(logging.INFO)
    moved = install(model, CPAM(edits.masks(edits.box(left=8))), inversion)
    sample(moved, inversion, cfg=2.0, positive=9, seed=1)
    assert told(caplog)[0] == 0
    assert "2 of 2 steps that read the source are known" in caplog.text


class Nothing:
    """A patch of another pack, which changes nothing."""

    def __call__(self, h: Tensor, skip: Tensor, options: Any) -> tuple[Tensor, Tensor]:
        return h, skip


def test_a_change_of_the_model_drops_the_record_and_says_so(model, inversion, caplog):
    cpam = CPAM(edits.masks())
    sample(install(model, cpam, inversion), inversion)
    caplog.set_level(logging.INFO)
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    weight = model.model.state_dict()[key]
    stronger = model.clone()
    stronger.add_patches({key: ("diff", (torch.ones_like(weight),))})
    sample(install(stronger, cpam, inversion), inversion)
    assert told(caplog)[0] == CALLS and "since LoRAs or patches of the model's weights have changed" in caplog.text
    patched = model.clone()
    patched.set_model_output_block_patch(Nothing())
    sample(install(patched, cpam, inversion), inversion)
    assert told(caplog)[0] == CALLS
    caplog.clear()
    sample(install(patched, cpam, inversion), inversion)
    assert told(caplog)[0] == 0
    sample(install(model, cpam, inversion), inversion)
    assert told(caplog)[0] == CALLS and "since patches of other nodes on the model have changed" in caplog.text


def test_both_halves_of_guidance_go_with_their_negative_prompt(model, inversion, caplog):
    """FPE with both halves runs the source with the sampler's negative prompt too."""
    import nodes

    edited = install(model, FPE(both_halves=True, end=1.0), inversion)
    set_up, _, _, latent = outputs("Setup", model=edited, inversion=inversion)
    plain = outputs("Setup", model=edited, inversion=inversion, keep_source=OFF)[0]

    def drawn(on: Any, negative: int) -> Tensor:
        given = tiny.prompt(2), tiny.prompt(negative), latent
        return nodes.KSampler().sample(on, 0, STEPS, 4.0, "euler", "normal", *given)[0]["samples"]

    drawn(set_up, 3)
    caplog.set_level(logging.INFO)
    drawn(set_up, 3)
    assert told(caplog)[0] == 0
    other = drawn(set_up, 4)
    assert told(caplog)[0] == 2 * CALLS
    assert torch.equal(other, drawn(plain, 4))


def test_what_is_told_before_the_run_is_what_is_kept(model, inversion, monkeypatch):
    told_bytes = []
    monkeypatch.setattr(recording, "make_way", lambda _, wanted: told_bytes.append(wanted))
    for name in ("cpam", "p2p", "pnp"):
        before = held_of(inversion)
        sample(METHODS[name](model, inversion), inversion)
        # Prompt-to-Prompt's text has as many tokens as are reckoned with; parts are filled up to 64 numbers each.
        assert 0 <= held_of(inversion) - before - told_bytes[-1] < 3 * 16 * 64 * 4 * CALLS
        recorded.free_records()


def test_what_does_not_fit_runs_the_source_each_time(model, inversion, caplog):
    """A budget of one step and a half keeps one step; the plan says what was needed before the run."""
    edited = METHODS["cpam"](model, inversion)
    plain = sample(edited, inversion, keep_source=OFF)
    sample(edited, inversion)
    whole, steps = held_of(inversion), len(recorded._records[inversion]._steps)
    pinned = pin(edited, inversion, tuple(inversion.schedule), keeping=Keeping(RAM, int(1.5 * whole / steps)))
    recorded.free_records()
    caplog.set_level(logging.INFO)
    for rows in (steps, steps - 1):
        start = {"samples": model.get_model_object("latent_format").process_out(inversion.at(inversion.schedule[0]))}
        import nodes

        prompts = tiny.prompt(2), tiny.prompt(3)
        found = nodes.KSampler().sample(pinned, 7, STEPS, 4.0, "euler", "normal", *prompts, start)[0]["samples"]
        assert torch.equal(found, plain)
        assert told(caplog)[0] == rows
    assert held_of(inversion) <= 1.5 * whole / steps and "raise keep_gb" in caplog.text


def test_the_record_of_another_image_makes_way(model, caplog):
    """The budget is that of all images together."""
    first, second = (edits.invert(model, steps=STEPS) for _ in range(2))
    sample(METHODS["cpam"](model, first), first)
    size = held_of(first)
    pinned = pin(METHODS["cpam"](model, second), second, tuple(second.schedule), keeping=Keeping(RAM, size))
    zeros, stub = edits.run_start(), torch.tensor([14.6, 0.0])
    tiny.sample(pinned, tiny.prompt(2), tiny.prompt(3), zeros, stub, 4.0, "euler", 0)
    assert held_of(first) == 0 and held_of(second) == size


def test_the_record_ends_with_its_inversion(model):
    """In RAM and on disk: nothing is left when the host lets go of the inversion."""
    root = Path(folder_paths.get_temp_directory()) / "attention-edit"
    for where in (RAM, DISK):
        inversion = edits.invert(model, steps=STEPS)
        sample(METHODS["cpam"](model, inversion), inversion, keep_source=where)
        assert held_of(inversion) > 0 and (where == RAM or list(root.rglob("*.safetensors")))
        del inversion
        gc.collect()
        assert not recorded._records
    assert not list(root.rglob("*.safetensors"))


def test_an_interrupted_run_keeps_whole_steps(model, inversion, monkeypatch, caplog):
    """What a cut run has kept is right for the next one."""
    edited = METHODS["cpam"](model, inversion)
    plain = sample(edited, inversion, keep_source=OFF)
    put, count = shelves.Shelf.put, []

    def cut(self: Any, captured: Any) -> Any:
        count.append(0)
        if len(count) == 2:
            raise InterruptProcessingException
        return put(self, captured)

    with monkeypatch.context() as patch:
        patch.setattr(shelves.Shelf, "put", cut)
        with pytest.raises(InterruptProcessingException):
            sample(edited, inversion)
    caplog.set_level(logging.INFO)
    assert torch.equal(sample(edited, inversion), plain)
    assert told(caplog)[0] == CALLS - 1


def test_a_full_disk_is_no_error(model, inversion, monkeypatch, caplog):
    edited = METHODS["cpam"](model, inversion)
    plain = sample(edited, inversion, keep_source=OFF)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shelves.safetensors.torch, "save_file", full)
    assert torch.equal(sample(edited, inversion, keep_source=DISK), plain)
    assert held_of(inversion) == 0 and "No space left" in caplog.text


def test_short_memory_keeps_nothing_more(model, inversion, monkeypatch):
    monkeypatch.setattr(shelves.Shelf, "room", lambda *_: 1000)
    sample(METHODS["cpam"](model, inversion), inversion)
    assert held_of(inversion) == 0


@pytest.mark.parametrize("kind", ["SD3", "Flux", "ZImage"])
def test_transformers_read_what_is_kept(kind, caplog):
    """The text beside the image is kept with it, and moved to where another prompt's image stands."""
    model = joint_model(kind)
    inversion = joint_inversion(model, kind)
    edited = install(model, CPAM(edits.masks()), inversion)
    caplog.set_level(logging.INFO)

    def drawn(keeping: Keeping | None, tokens: int) -> Tensor:
        pinned = pin(edited, inversion, tuple(inversion.schedule), keeping=keeping)
        zeros, stub = torch.zeros_like(inversion.latents[0]), torch.tensor([1.0, 0.0])
        prompts = joint_prompt(2, kind, tokens), joint_prompt(3, kind)
        return joint_sample(pinned, *prompts, zeros, zeros, stub, 4.0)

    keeping = Keeping(RAM, LARGE)
    drawn(keeping, 12)
    found = drawn(keeping, 17)
    assert told(caplog)[0] == 0
    assert torch.equal(found, drawn(None, 17))
