"""Branches: images sampled beside the run's own come out as if each had been sampled alone."""

from __future__ import annotations

from dataclasses import dataclass

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.engine.acts import Act, Site
from attention_edit.attention.engine.branches import OWN, Branch, BranchControl, BranchPart
from attention_edit.attention.engine.substitute import attend_with
from attention_edit.attention.methods.fpe import FPE

BESIDE = {"second": (31, 12), "third": (32, 13)}
"""Images beside the run's own: the seeds of their starts and of their prompts."""


def start(seed, sigma):
    """A latent in the sampler's scale."""
    return tiny.latent(seed) / 4 * (1 + sigma * sigma) ** 0.5


@dataclass(frozen=True, eq=False)
class Three(BranchControl):
    """Two images beside the run's own, with starts and prompts of theirs."""

    name = "three"
    reads: str = ""

    def branches(self, run):
        sigma = run.sigmas[0]
        own = Branch(OWN, (BranchPart(),), run.inversion.at(sigma).expand(run.batch, -1, -1, -1))
        return own, *(
            Branch(name, (BranchPart(name, prompt=tiny.prompt(text)),), start(seed, sigma))
            for name, (seed, text) in BESIDE.items()
        )

    def acts_on(self, family):
        """With `reads`, the run's own image takes the second's queries and keys, and the second the third's."""
        if not self.reads:
            return ()
        return tuple(
            Act(Site.SELF, family.layers[3:8], do=self.take, reads=self.reads, on=on, of=of)
            for on, of in ((OWN, "second"), ("second", "third"))
        )

    def take(self, call):
        return attend_with(call, self.reads)

    def finish(self, run, state, latent):
        seen["ended"] = run.ended


seen: dict[str, dict[str, torch.Tensor]] = {}
"""What the last run's branches ended with."""


def alone(model, inversion, name, sampler, cfg):
    """A branch sampled by itself, by the host alone."""
    seed, text = BESIDE[name]
    sigmas = torch.tensor(inversion.schedule)
    begin = model.get_model_object("latent_format").process_out(start(seed, float(sigmas[0])))
    out = tiny.sample(model, tiny.prompt(text), tiny.prompt(3), begin, sigmas, cfg, sampler)
    return model.get_model_object("latent_format").process_in(out) / (1 + float(sigmas[-1]) ** 2) ** 0.5


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("sampler", "cfg"),
    [("euler", 7.5), ("euler", 1.0), ("dpmpp_2m", 7.5), ("lms", 7.5), ("dpm_2", 7.5), ("euler_cfg_pp", 7.5)],
)
def test_each_image_is_stepped_by_the_samplers_own_rule(model, inversion, sampler, cfg, packed):
    own = edits.run(model, inversion, Three(), cfg=cfg, sampler=sampler, packed=packed)
    stock = edits.run(model, inversion, cfg=cfg, sampler=sampler)
    assert edits.difference(own, stock) < 1e-4
    for name in BESIDE:
        assert edits.difference(seen["ended"][name], alone(model, inversion, name, sampler, cfg)) < 1e-4


def test_each_image_has_noise_of_its_own(model, inversion):
    """An ancestral sampler draws noise for every image of a batch, so that two from one start part."""

    class Twins(Three):
        def branches(self, run):
            own = super().branches(run)[0]
            return own, Branch("second", (BranchPart("second"),), own.start)

    own = edits.run(model, inversion, Twins(), sampler="euler_ancestral")
    twin = model.get_model_object("latent_format").process_out(seen["ended"]["second"])
    assert torch.isfinite(own).all() and edits.difference(twin, own) > 1e-2
    own = edits.run(model, inversion, Twins(), sampler="euler")
    twin = model.get_model_object("latent_format").process_out(seen["ended"]["second"])
    assert edits.difference(twin, own) < 1e-5


def test_what_an_image_reads_of_others_is_there_in_one_call_or_several(model, inversion, monkeypatch):
    """Short of memory the host runs each prompt alone, in an order of its own."""
    control = Three("qk")
    apart = edits.run(model, inversion, control)
    ended = seen["ended"]
    assert edits.difference(apart, edits.run(model, inversion, Three())) > 1e-3
    packed = edits.run(model, inversion, control, packed=True)
    assert edits.difference(packed, apart) < 1e-4
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 0)
    split = edits.run(model, inversion, control, packed=True)
    assert edits.difference(split, apart) < 1e-4
    for name in BESIDE:
        assert edits.difference(seen["ended"][name], ended[name]) < 1e-4


def test_out_of_memory_in_one_call_the_images_run_one_after_another(model, inversion, caplog):
    """The network refuses more than two rows at a time, as a full GPU would."""
    expected = edits.run(model, inversion, Three("qk"))

    def limited(apply, given):
        if len(given["input"]) > 2:
            raise torch.cuda.OutOfMemoryError("too many rows")
        return apply(given["input"], given["timestep"], **given["c"])

    small = model.clone()
    small.set_model_unet_function_wrapper(limited)
    found = edits.run(small, inversion, Three("qk"), packed=True)
    assert "out of memory with one_call" in caplog.text and torch.equal(found, expected)


def test_others_see_the_runs_own_image_only(model, inversion):
    """Its preview, and the acts of controls that name no part."""
    rows = set()
    patched = engine.install(engine.install(model, Three(), inversion), FPE(), inversion)
    patched = engine.pin(patched, inversion, tuple(inversion.schedule))

    def callback(step, denoised, x, total):
        rows.update((len(denoised), len(x)))

    stub = torch.tensor([14.6, 0.0])
    own = tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), edits.run_start(), stub, callback=callback)
    assert rows == {1}
    assert edits.difference(own, edits.run(model, inversion, FPE())) < 1e-4
    for name in BESIDE:
        assert edits.difference(seen["ended"][name], alone(model, inversion, name, "euler", 7.5)) < 1e-4


def test_rows_are_planned_and_counted(model, inversion, caplog):
    with caplog.at_level("INFO"):
        edits.run(model, inversion, Three())
    assert "plans 18 UNet evaluations (0 source, 18 target)" in caplog.text
    assert "Attention Edit: 18 UNet evaluations" in caplog.text


def test_what_cannot_be_done_is_refused(model, inversion):
    with pytest.raises(ValueError, match=r"dpm_adaptive chooses its steps by all images of a batch, and three samples"):
        edits.run(model, inversion, Three(), sampler="dpm_adaptive")
    with pytest.raises(ValueError, match=r"Remove one of three and three"):
        edits.run(model, inversion, Three(), Three())
    patched = engine.install(model, Three(), inversion)
    with pytest.raises(ValueError, match=r"Connect Edit Setup's model to the sampler: three samples several images"):
        tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), tiny.latent(4), torch.tensor(inversion.schedule))
