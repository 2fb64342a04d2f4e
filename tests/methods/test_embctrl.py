"""EmbCtrl: only the text states of changed words are the target's."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import comfy.samplers
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine.install import pin
from attention_edit.attention.methods.embctrl import changed_tokens, embctrl
from prompts import prompt

CAT, DOG, BLACK = prompt("a cat on a mat"), prompt("a dog on a mat"), prompt("a black cat on a mat")


def test_the_same_prompt_gives_the_sources_states():
    source = tiny.prompt(1)
    assert torch.equal(embctrl(CAT, source, CAT, tiny.prompt(2))[0][0], source[0][0])


def test_exactly_the_changed_tokens_are_the_targets():
    before, after = tiny.prompt(1), tiny.prompt(2)
    states = embctrl(CAT, before, DOG, after)[0][0]
    (changed,) = DOG.find("dog")
    assert torch.equal(states[:, changed], after[0][0][:, changed])
    others = [place for place in range(77) if place != changed]
    assert torch.equal(states[:, others], before[0][0][:, others])


def test_added_words_are_aligned():
    found = changed_tokens(CAT, BLACK)
    assert found[BLACK.find("black")[0]] is None
    assert found[BLACK.find("mat")[0]] == CAT.find("mat")[0]
    assert found[-1] == 76 and found.count(None) == 1


def test_what_comes_beside_the_states_is_the_targets():
    after = tiny.prompt(2, "SDXL")
    result = embctrl(CAT, tiny.prompt(1, "SDXL"), DOG, after)
    assert torch.equal(result[0][1]["pooled_output"], after[0][1]["pooled_output"])
    assert result[0][0] is not after[0][0] and result[0][1] is not after[0][1]


def test_other_conditionings_are_refused():
    with pytest.raises(ValueError, match=r"source conditioning holds 154 text tokens.*77"):
        embctrl(CAT, tiny.prompt(1, tokens=154), DOG, tiny.prompt(2))
    with pytest.raises(ValueError, match=r"target conditioning holds 77, 77 .*2 part"):
        embctrl(CAT, tiny.prompt(1), DOG, tiny.prompt(2) + tiny.prompt(3))
    with pytest.raises(ValueError, match="the same CLIP"):
        embctrl(CAT, [[torch.zeros(1, 77, 8), {}]], DOG, tiny.prompt(2))


def test_algorithm_4_written_out(model, inversion):
    """From z*_T with the exchanged states, and in every step the inversion's null text of that step."""
    pairs = len(inversion.sigmas) - 1
    states = torch.stack([tiny.prompt(20 + pair)[0][0] for pair in range(pairs)])
    null = replace(inversion, null_states=states)
    exchanged = embctrl(CAT, inversion.conditioning, DOG, tiny.prompt(2))

    def loop(sampled, x, sigmas, extra_args, **_):
        guider, options = sampled.inner_model, extra_args["model_options"]

        def denoised(prompt, x, sigma):
            conds = [guider.conds[prompt]]
            return comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, sigma.expand(1), options)[0]

        x = inversion.at(float(sigmas[0]))
        for step, (sigma, after) in enumerate(pairwise(sigmas)):
            positive, empty = denoised("positive", x, sigma), denoised(f"null {pairs - 1 - step}", x, sigma)
            x = x + (x - empty - 7.5 * (positive - empty)) / sigma * (after - sigma)
        return x / (1 + sigmas[-1] ** 2) ** 0.5

    guider = comfy.samplers.CFGGuider(model)
    texts = {f"null {pair}": [[text, {}]] for pair, text in enumerate(states)}
    guider.inner_set_conds({"positive": exchanged, "negative": tiny.prompt(3), **texts})
    sigmas = torch.tensor(inversion.schedule)
    with torch.inference_mode():
        sampler = comfy.samplers.KSAMPLER(loop)
        expected = guider.sample(
            edits.run_start(), edits.run_start(), sigmas=sigmas, sampler=sampler, disable_pbar=True
        )
    patched = pin(model, null, tuple(null.schedule))
    found = tiny.sample(patched, exchanged, tiny.prompt(3), edits.run_start(), torch.tensor([14.6, 0.0]))
    assert edits.difference(found, expected) < 1e-4
