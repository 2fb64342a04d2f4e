"""Acts and windows: the one rule of steps, the released codes' truncation, and what is derived from declarations."""

from __future__ import annotations

from types import SimpleNamespace

import edits
import pytest
import torch
from attention_edit.attention.engine.acts import Act, How, Site, Window
from attention_edit.attention.engine.control import only_looks
from attention_edit.attention.engine.install import install
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.local_blend import LocalBlend
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.attention.methods.p2p import P2P
from attention_edit.attention.methods.pnp import PnP
from attention_edit.host.families import SD1
from prompts import prompt

CAT, DOG = prompt("a cat on a mat"), prompt("a dog on a mat")


def steps_of(window, steps=50):
    runs = (SimpleNamespace(step=step, steps=steps, last=steps - 1) for step in range(steps))
    return [run.step for run in runs if window.holds(run)]


def test_shares_are_rounded_to_the_nearest_step():
    assert steps_of(Window(0.0, 0.75)) == list(range(38))
    assert steps_of(Window(0.75, 1.0)) == list(range(38, 50))


def test_a_late_start_acts_in_the_last_step_and_an_empty_window_never():
    assert steps_of(Window(0.95, 1.0), 5) == [4]
    assert steps_of(Window(0.95, 0.95), 5) == steps_of(Window(1.0, 1.0), 5) == []


def test_released_shares_are_truncated():
    assert steps_of(Window(0.0, 0.75, released=True)) == list(range(37))
    assert steps_of(Window(0.0, 0.58, released=True)) == list(range(29)), "0.58 * 50 is 28.999999 in floats"
    assert steps_of(Window(0.0, 0.8, released=True, further=1)) == list(range(40)), "int(0.8 * 51)"


@pytest.mark.parametrize(
    ("control", "end"),
    [
        (P2P(CAT, DOG, cross=(0.0, 0.0), self_window=(0.0, 0.75)), 37),
        (FPE(end=0.75), 37),
        (PnP(attention_end=0.75, feature_end=0.75), 37),
        (MasaCtrl(start=0.0, end=0.75), 37),
        (CPAM(edits.masks(), end=0.75), 37),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_methods_with_a_released_code_truncate(control, end):
    """State which method uses which: these do; so does Local Blend's start, below."""
    windows = [act.during for act in control.acts_on(SD1) if act.during.end == 0.75]
    assert windows and all(steps_of(window) == list(range(end)) for window in windows)


def test_local_blend_begins_where_the_released_code_does():
    blend = LocalBlend(CAT, DOG, ["cat"], ["dog"], start=0.75)
    assert blend.first(SimpleNamespace(steps=50), None) == 37


def test_windows_overlap_by_steps_where_their_number_is_known():
    one, two = Window(0.0, 0.505), Window(0.501, 1.0)
    assert one.overlaps(two, None)
    assert not one.overlaps(two, 50), "both are step 25"
    assert Window(0.0, 0.9, released=True, further=1).overlaps(Window(0.9, 1.0), 9), "the table's row more acts too"


def test_only_acts_that_replace_the_same_attention_at_one_time_exclude_each_other():
    layers = SD1.layers[:4]
    first = Act(Site.SELF, layers, during=Window(0.0, 0.5))
    assert first.excludes(Act(Site.SELF, SD1.layers[3:6]), 50) == SD1.layers[3:4]
    assert not first.excludes(Act(Site.CROSS, layers), 50)
    assert not first.excludes(Act(Site.SELF, layers, how=How.STANDS_ON), 50)
    assert not first.excludes(Act(Site.SELF, layers, during=Window(0.5, 1.0)), 50)


def test_a_control_that_only_looks_says_so_by_its_acts():
    assert not only_looks(CPAM(edits.masks()), SD1)
    assert not only_looks(FPE(), SD1)


@pytest.mark.parametrize(
    ("control", "parts"), [(FPE(), "qk"), (MasaCtrl(start=0.0), "kv"), (PnP(), "qk"), (CPAM(edits.masks()), "kv")]
)
def test_only_the_features_that_an_act_reads_are_kept(model, inversion, monkeypatch, control, parts):
    """On a GPU each kept part of each layer is memory that plain sampling does not take."""
    from attention_edit.attention.engine.run import Run

    kept, forget = [], Run.forget_source

    def spy(self):
        for (site, _place), roles in self.captured.items():
            for features in roles.values():
                kept.append((site, {part for part in "qkv" if getattr(features, part) is not None}))
        forget(self)

    monkeypatch.setattr(Run, "forget_source", spy)
    edits.run(model, inversion, control)
    assert kept and all(found == set(parts) for site, found in kept if site is Site.SELF)
    assert not any(site is Site.CROSS for site, _ in kept)


def test_what_was_not_kept_is_not_read_in_silence(model, inversion):
    class Forgetful(FPE):
        def acts_on(self, family):
            (act,) = super().acts_on(family)
            return (Act(act.at, act.layers, during=act.during, do=self.attend, reads="k"),)

    with pytest.raises(RuntimeError, match="source's q was not kept"):
        edits.run(model, inversion, Forgetful())


def test_exclusions_are_told_before_a_run(model, inversion):
    patched = install(model, FPE(), inversion)
    with pytest.raises(ValueError, match=r"FPE and MasaCtrl do not go together.*self-attention"):
        install(patched, MasaCtrl(), inversion)
    assert torch.isfinite(edits.run(model, inversion, FPE(end=0.5), MasaCtrl(start=0.5))).all()
