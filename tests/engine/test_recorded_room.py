"""Where what is kept of the source lies, how much of it there is, and when it goes."""

from __future__ import annotations

import gc
import logging
from typing import Any

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import recorded, recording, shelves
from attention_edit.attention.engine.install import pin
from attention_edit.attention.engine.recorded import Keeping, held_of
from attention_edit.attention.engine.shelves import DISK, OFF, RAM
from comfy.model_management import InterruptProcessingException
from every_method import METHODS
from kept import CALLS, STEPS, own_temp_folder, sample, told
from safetensors import SafetensorError


@pytest.fixture
def inversion(model):
    return edits.invert(model, steps=STEPS)


@pytest.fixture(autouse=True)
def files(tmp_path):
    """Runs as the host runs nodes, with a temp folder of their own; gives where files of features lie in it."""
    with own_temp_folder(tmp_path) as folder, torch.inference_mode():
        yield folder


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


def test_the_record_ends_with_its_inversion(model, files):
    """In RAM and on disk: nothing is left when the host lets go of the inversion."""
    for where in (RAM, DISK):
        inversion = edits.invert(model, steps=STEPS)
        sample(METHODS["cpam"](model, inversion), inversion, keep_source=where)
        assert held_of(inversion) > 0 and (where == RAM or list(files.rglob("*.safetensors")))
        del inversion
        gc.collect()
        assert not recorded._records
    assert not list(files.rglob("*.safetensors"))


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


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_is_no_error(error, model, inversion, monkeypatch, caplog):
    edited = METHODS["cpam"](model, inversion)
    plain = sample(edited, inversion, keep_source=OFF)

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(shelves.safetensors.torch, "save_file", full)
    assert torch.equal(sample(edited, inversion, keep_source=DISK), plain)
    assert held_of(inversion) == 0 and "No space left" in caplog.text


def test_files_that_are_gone_are_made_anew(model, inversion, caplog, files):
    """As when the host's temp folder is emptied between two edits."""
    edited = METHODS["cpam"](model, inversion)
    plain = sample(edited, inversion, keep_source=DISK)
    for file in files.rglob("*.safetensors"):
        file.unlink()
    caplog.set_level(logging.INFO)
    assert torch.equal(sample(edited, inversion, keep_source=DISK), plain)
    assert "cannot be read, and is made anew" in caplog.text
    sample(edited, inversion, keep_source=DISK)
    assert told(caplog)[0] == 0


def test_no_file_outlives_what_it_holds(model, inversion, files):
    """Steps that another method adds to are written again; the old files go, and with the record all."""
    for name in ("cpam", "fpe", "p2p"):
        sample(METHODS[name](model, inversion), inversion, keep_source=DISK)
        gc.collect()
        assert sum(file.stat().st_size for file in files.rglob("*.safetensors")) < 1.01 * held_of(inversion) + 4096
    sample(METHODS["cpam"](model, inversion), inversion, keep_source=OFF)
    gc.collect()
    assert held_of(inversion) == 0 and not list(files.rglob("*.safetensors"))


def test_a_smaller_budget_lets_steps_go(model, inversion):
    sample(METHODS["cpam"](model, inversion), inversion)
    half = held_of(inversion) * 0.6
    sample(METHODS["cpam"](model, inversion), inversion, keep_gb=half / 1e9)
    assert 0 < held_of(inversion) <= half


def test_short_memory_keeps_nothing_more(model, inversion, monkeypatch):
    monkeypatch.setattr(shelves.Shelf, "room", lambda *_: 1000)
    sample(METHODS["cpam"](model, inversion), inversion)
    assert held_of(inversion) == 0
