"""Improvements have one signature, by which report, plot and disk cache serve one that they have never seen."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any, ClassVar

import edits
import folder_paths
import pytest
import tiny
import torch
from attention_edit.attention.engine import install as engine
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.host.cost import measured
from attention_edit.inversion import cache, report
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.direct import DirectInversion
from attention_edit.inversion.fixed_point import FixedPointInversion
from attention_edit.inversion.improvement import Found, Improvement
from attention_edit.inversion.negative_prompt import NegativePromptInversion
from attention_edit.inversion.null_text import NullTextInversion
from attention_edit.inversion.reconstruct import reconstruct, relative_errors
from attention_edit.inversion.record import Inversion
from attention_edit.inversion.steps import sample
from attention_edit.inversion.walk import evaluations, walk_inversion


@dataclass(frozen=True)
class Sampled(Improvement):
    """The example of Improvement's docstring, with a setting."""

    name: ClassVar[str] = "Sampled source"
    strength: float = 1.0

    def improve(self, model: Any, inversion: Inversion, negative: Any, guidance: float) -> Found:
        def walk(predict, z):
            return sample(predict, z, inversion.schedule, inversion.prediction)

        planned = evaluations(len(inversion.sigmas) - 1, inversion.batch, guidance)
        with measured(model, self.name, f"{planned} UNet evaluations") as (counted, cost):
            visited = walk_inversion(counted, walk, inversion, inversion.schedule, negative, guidance)
        errors = relative_errors(visited, inversion)
        return Found(replace(inversion, latents=torch.stack(visited[::-1]), errors=errors), cost)


IMPROVEMENTS = [DirectInversion(0.5), FixedPointInversion(), NegativePromptInversion(), NullTextInversion(), Sampled()]
BY_NAME = pytest.mark.parametrize("improvement", IMPROVEMENTS, ids=lambda improvement: improvement.name)


@BY_NAME
def test_is_called_as_every_other_and_keeps_its_settings(improvement):
    arguments = list(inspect.signature(type(improvement).improve).parameters)
    assert arguments == ["self", "model", "inversion", "negative", "guidance"]
    assert type(improvement).__call__ is Improvement.__call__
    with pytest.raises(FrozenInstanceError):
        improvement.name = "another"


@BY_NAME
def test_refuses_an_edited_model_and_another_one(model, inversion, improvement):
    patched = engine.install(model, ExactBackground(edits.box()), inversion)
    with pytest.raises(ValueError, match=f"connected to {improvement.name} already carries edits"):
        improvement(patched, inversion, tiny.prompt(3), 7.5)
    with pytest.raises(ValueError, match=r"SD1\.x.*SD2\.x"):
        improvement(tiny.tiny_model("SD2", True), inversion, tiny.prompt(3), 7.5)


@pytest.mark.parametrize("improvement", [one for one in IMPROVEMENTS if not isinstance(one, NegativePromptInversion)])
def test_guidance_needs_a_negative_prompt(model, inversion, improvement):
    with pytest.raises(ValueError, match=r"negative prompt.*[Cc]onnect an empty"):
        improvement(model, inversion, None, 7.5)


def test_one_that_the_pack_does_not_know(model, inversion, caplog):
    """It is counted and logged as planned, with progress, and finds what plain sampling finds."""
    with torch.inference_mode(), caplog.at_level("INFO"):
        found = Sampled()(model, inversion, tiny.prompt(3), 7.5)
        expected = reconstruct(model, inversion, 7.5, tiny.prompt(3)).errors
    assert found.inversion.errors == expected
    assert found.cost.forward == 2 * (len(inversion.sigmas) - 1)
    assert f"Sampled source plans {found.cost.forward} UNet evaluations" in caplog.text
    assert f"Sampled source: {found.cost.forward} UNet evaluations" in caplog.text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    return cache.entries_folder()


def test_plot_report_and_disk_cache_serve_it(folder, model, inversion):
    """From disk come the same inversion and plot, and the report says so; any other input is another entry."""

    def run(strength=1.0, guidance=7.5, negative=3):
        with torch.inference_mode():
            return report.improved(Sampled(strength), model, inversion, tiny.prompt(negative), guidance, True)

    first, plot, text = run()
    again, same_plot, from_disk = run()
    assert torch.equal(again.latents, first.latents) and torch.equal(plot, same_plot)
    assert f"It took {2 * (len(inversion.sigmas) - 1)} UNet evaluations" in text
    assert "read from the cache on disk" in from_disk and "It took" not in from_disk
    for other in ({"strength": 2.0}, {"guidance": 2.0}, {"negative": 4}):
        assert "It took" in run(**other)[2]
    assert len(list(folder.iterdir())) == 4


def test_fixed_points_say_where_iterations_were_too_few(inversion):
    done, open_ = (replace(inversion, errors=(1e-6, error)) for error in (1e-5, 0.5))
    improvement = FixedPointInversion(tolerance=1e-4, iterations=3)
    assert improvement.caption(done, 1.0)[1] == "1e-05 at most"
    assert improvement.caption(open_, 1.0)[1] == "0.5 at most (3 iterations were too few)"


def test_errors_of_an_empty_latent_are_finite(model):
    """Empty Latent Image has no length that an error could be relative to."""
    with torch.inference_mode():
        empty = {"samples": torch.zeros(1, 4, 4, 4)}
        inversion = DDIMInversion(3, 0)(model, empty, tiny.prompt(5)).inversion
    assert not inversion.latents[0].any()
    visited = [latent + 1 for latent in inversion.latents.flip(0)]
    assert relative_errors(visited, inversion)[-1] == pytest.approx(8.0)  # of 64 values
