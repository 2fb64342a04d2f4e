"""What a run says on its node: settings that are not honoured, and what is likely to disappoint."""

from __future__ import annotations

import logging
from dataclasses import replace

import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.p2p import P2P
from attention_edit.attention.methods.regions import RegionPrompts, make_region
from attention_edit.host import progress, remarks
from attention_edit.host.remarks import Kind, Remarks
from attention_edit.inversion import file_format
from attention_edit.inversion.ddim_inversion import DDIMInversion
from comfy_execution.utils import CurrentNodeContext
from prompts import prompt

CAT, DOG = prompt("a cat"), prompt("a dog")
TEXTS = 5, 2
"""Seeds of the source's and the edit's prompt in `edits`."""


@pytest.fixture
def said(monkeypatch):
    """The remarks of the runs of a test, as (kind, text)."""
    made, add = [], Remarks.add

    def note(self, kind, text):
        made.append((kind, text))
        add(self, kind, text)

    monkeypatch.setattr(Remarks, "add", note)
    return made


def without_line(said):
    return [(kind, text) for kind, text in said if kind is not Kind.USED]


def plain_inversion(model, seed=3):
    """An inversion with the prompt that `edits.run` takes as negative one, as CPAM wants it."""
    with torch.inference_mode():
        return DDIMInversion(4)(model, {"samples": tiny.latent(1)}, tiny.prompt(seed)).inversion


def test_an_edit_with_nothing_to_remark_has_its_line_only(model, said):
    edits.run(model, plain_inversion(model), CPAM(edits.masks()))
    assert [kind for kind, _ in said] == [Kind.USED]
    assert said[0][1].startswith("Edit Setup: 3 steps from noise level")
    assert "sampler euler, cfg 7.5. Not used: the sampler node's own schedule of 1 steps" in said[0][1]


def test_the_line_says_what_of_the_sampler_s_settings_counts(model, inversion, said):
    pinned = engine.pin(model, inversion, tuple(inversion.schedule))
    tiny.sample(pinned, tiny.prompt(2), tiny.prompt(3), edits.run_start(), torch.tensor(inversion.schedule))
    assert said[0][1].endswith("Not used: nothing, all settings of the sampler node count.")


@pytest.mark.parametrize(
    ("control", "kind", "text"),
    [
        (lambda: P2P(CAT, CAT), Kind.DOUBTFUL, "Change a word in the target prompt"),
        (lambda: P2P(prompt(""), CAT), Kind.DOUBTFUL, "Describe the photograph in the source prompt"),
        (lambda: CPAM(edits.masks()), Kind.DOUBTFUL, "Leave the source prompt of the inversion and the negative"),
        (lambda: CPAM(edits.masks(target=edits.NONE)), Kind.IGNORED, "Choose another task in Edit Masks"),
        (lambda: ExactBackground(edits.box(height=3, width=3)), Kind.DOUBTFUL, "Paint a larger mask"),
        (lambda: FPE(end=0.1), Kind.IGNORED, "Widen FPE's window"),
        (lambda: FPE(end=0.0), Kind.IGNORED, "Check FPE's start and end"),
    ],
    ids=["same prompts", "empty source", "caption for CPAM", "prompt of a removal", "tiny mask", "window", "no window"],
)
def test_what_was_asked_for_and_will_not_be(model, inversion, said, control, kind, text):
    edits.run(model, inversion, control())
    assert [k for k, t in without_line(said) if t.startswith(text)] == [kind]


def test_the_same_prompt_twice_and_a_batch_of_one_photograph(model, inversion, said):
    edits.run(model, inversion, FPE(), positive=3, batch=2)
    starts = {text.split(":")[0] for _, text in without_line(said)}
    assert starts == {
        "Write into the positive prompt what the edit shall show",
        "Give the sampler a latent of one image",
    }


def test_with_prompts_of_regions_the_sampler_s_may_be_empty(model, said):
    regions = RegionPrompts((make_region(edits.box().float(), tiny.prompt(7)),))
    edits.run(model, plain_inversion(model), regions, positive=3)
    assert not without_line(said)


def test_a_removal_needs_no_prompt(model, said):
    edits.run(model, plain_inversion(model), CPAM(edits.masks(target=edits.NONE)), positive=3)
    assert not without_line(said)


@pytest.mark.parametrize("steps", [4, 10, 20])
@pytest.mark.parametrize("start", [0.9, 0.95, 0.99])
def test_a_late_start_acts_in_the_last_step(model, steps, start):
    """On the schedule of offset 0 no step has the last number of the papers' count."""
    inversion = edits.invert(model, steps=steps)
    out, stock = edits.run(model, inversion, ExactBackground(edits.box(), start)), edits.run(model, inversion)
    kept = ~edits.box()[:, ::8, ::8]
    source = model.get_model_object("latent_format").process_out(inversion.latents[0])
    assert torch.equal(out[:, :, kept[0]], source[:, :, kept[0]])
    assert not torch.equal(out, stock)


def test_exact_background_that_never_starts_is_said(model, inversion, said):
    out = edits.run(model, inversion, ExactBackground(edits.box(), 1.0))
    assert torch.equal(out, edits.run(model, inversion))
    assert [kind for kind, text in said if text.startswith("Check Exact Background's start")] == [Kind.IGNORED]


@pytest.mark.parametrize(("kind", "other"), [("SD1", "SDXL"), ("SDXL", "SD1")])
def test_a_text_of_another_model_s_clip_is_refused(kind, other):
    """By width of the tokens, and of SDXL's vector."""
    model = tiny.tiny_model(kind)
    foreign = [[states if kind == "SDXL" else states[..., :8], options] for states, options in tiny.prompt(2, other)]
    with pytest.raises(ValueError, match="Encode the source prompt with the CLIP of the same checkpoint"):
        DDIMInversion(3)(model, {"samples": tiny.latent(1)}, foreign)
    inversion = edits.invert(model, kind, steps=3)
    patched = engine.pin(engine.install(model, FPE(), inversion), inversion, tuple(inversion.schedule))
    with pytest.raises(ValueError, match="Encode the positive prompt with the CLIP of the same checkpoint"):
        tiny.sample(patched, foreign, tiny.prompt(3, kind), edits.run_start(), torch.tensor([14.6, 0.0]))


def test_another_table_of_noise_levels_is_refused(model, inversion):
    """As ModelSamplingDiscrete with zsnr or lcm makes one."""
    other = replace(inversion, sigmas=tuple(sigma * 1.01 for sigma in inversion.sigmas))
    with pytest.raises(ValueError, match=r"^Invert the image with the model that is sampled.*none of its noise levels"):
        edits.run(model, other, FPE())


class _Server:
    client_id = "someone"

    def __init__(self):
        self.texts, self.events = [], []

    def send_progress_text(self, text, node_id):
        self.texts.append((node_id, text))

    def send_sync(self, event, data, client_id):
        self.events.append((event, data, client_id))


def with_patch(model, strength):
    """The model with a change of one layer's weights, as LoRAs make them."""
    patched = model.clone()
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    assert patched.add_patches({key: ("diff", (torch.ones(128, 128),))}, strength)
    return patched


def test_other_weights_than_the_inversion_s_are_said(model, said, tmp_path):
    """A LoRA on one of the two models only, or of another strength; another checkpoint; from a file too."""
    patched = with_patch(model, 0.5)
    made = {"plain": plain_inversion(model), "patched": plain_inversion(patched)}
    file_format.write(made["plain"], tmp_path / "plain")
    made["file"] = file_format.read(tmp_path / "plain", "plain")

    def told(name, edited):
        said.clear()
        edits.run(edited, made[name], FPE())
        return [text for kind, text in said if kind is Kind.DOUBTFUL and "load the same checkpoint and LoRAs" in text]

    assert told("plain", patched) and told("patched", model) and told("patched", with_patch(model, 0.4))
    assert told("plain", tiny.tiny_model(seed=1)) and told("file", patched)
    assert not (told("plain", model) or told("patched", patched) or told("patched", with_patch(model, 0.5)))
    assert not (told("file", model) or told("plain", tiny.tiny_model()))


def test_an_inversion_of_an_older_file_is_judged_by_no_weights(model, said, tmp_path):
    file_format.write(replace(plain_inversion(model), weights=""), tmp_path / "old")
    edits.run(with_patch(model, 0.5), file_format.read(tmp_path / "old", "old"), FPE())
    assert not without_line(said)


def test_remarks_are_shown_on_the_node_that_runs(model, inversion, monkeypatch, caplog):
    """At the start, and after the run in place of what was said on the way; each once, in the log too."""
    server = _Server()
    monkeypatch.setattr(progress, "_server", lambda: server)
    with caplog.at_level(logging.INFO), CurrentNodeContext("run", "7"):
        edits.run(model, inversion, FPE(), sampler="euler_ancestral")
        progress.show("something on the way")
        remarks.remark(Kind.IGNORED, "Do this: that was not honoured.")
    assert {node for node, _ in server.texts} == {"7"}
    first, last = server.texts[0][1].splitlines(), server.texts[-1][1].splitlines()
    assert first[0].startswith("Edit Setup: 3 steps") and first[1].startswith("likely to disappoint: Use euler, ddim")
    assert last == [*first, "not honoured: Do this: that was not honoured."]
    event, data, client = server.events[-1]
    assert (event, data["node"], data["prompt_id"], client) == (remarks.EVENT, "7", "run", "someone")
    assert [kind for kind, _ in data["remarks"]] == ["used", "likely to disappoint", "not honoured"]
    assert caplog.text.count("adds noise of its own") == 1


def test_nodes_do_not_share_remarks():
    with CurrentNodeContext("run", "1"):
        remarks.remark(Kind.DOUBTFUL, "one")
    with CurrentNodeContext("run", "2"):
        remarks.remark(Kind.DOUBTFUL, "two")
        assert [made.text for made in remarks.remarks_here().made] == ["two"]
