"""What tests of edits share: an inversion of a tiny model, masks, and a pinned run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import tiny
import torch
from attention_edit.attention.engine.acts import Act, Site, Window
from attention_edit.attention.engine.control import Control
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.masks.edit_masks import EditMasks
from attention_edit.attention.words.prompt import Prompt, read_prompt
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.record import Inversion
from attention_edit.inversion.schedule import levels
from comfy.sd1_clip import SD1Tokenizer
from torch import Tensor

PIXELS = tiny.SIZE * 8


def invert(model: Any, kind: str = "SD1", batch: int = 1, steps: int = 4, offset: int = 0) -> Inversion:
    """Invert random latents with the prompt of seed 5."""
    with torch.inference_mode():
        return DDIMInversion(steps, offset)(model, {"samples": tiny.latent(1, batch)}, tiny.prompt(5, kind)).inversion


def box(top: int = 32, left: int = 40, height: int = 48, width: int = 40) -> Tensor:
    """A rectangle as a mask (1, H, W) bool."""
    mask = torch.zeros(1, PIXELS, PIXELS, dtype=torch.bool)
    mask[:, top : top + height, left : left + width] = True
    return mask


def masks(source: Tensor | None = None, target: Tensor | None = None, retain: bool = False) -> EditMasks:
    """Edit masks, by default of a box."""
    source = box() if source is None else source
    target = source if target is None else target
    return EditMasks(source=source, target=target, retain=retain, changed=source | target)


def run_start(batch: int = 1) -> Tensor:
    """A latent for a pinned run, which brings its own start."""
    return torch.zeros(batch, 4, tiny.SIZE, tiny.SIZE)


NONE = torch.zeros(1, PIXELS, PIXELS, dtype=torch.bool)
ALL = ~NONE


def run(  # noqa: PLR0913
    model: Any,
    inversion: Inversion,
    *controls: Any,
    kind: str = "SD1",
    cfg: float = 7.5,
    packed: bool = False,
    positive: int = 2,
    sampler: str = "euler",
    seed: int = 0,
    batch: int = 1,
) -> Tensor:
    """Run controls on the inversion's schedule; without controls this is the stock run from inverted noise."""
    for control in controls:
        model = install(model, control, inversion, packed)
    model = pin(model, inversion, tuple(inversion.schedule))
    start, stub = run_start(batch), torch.tensor([14.6, 0.0])
    return tiny.sample(model, tiny.prompt(positive, kind), tiny.prompt(3, kind), start, stub, cfg, sampler, seed)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


class _EnoughError(Exception):
    """Ends a run after its first step."""


def recorded(model: Any, steps: int = 50, prompt_seed: int = 5) -> Inversion:
    """A trajectory of random latents, for tests that ask how much is run and not what comes out."""
    sigmas = levels(model.get_model_object("model_sampling"), steps, 0)
    latents = torch.stack([tiny.latent(i) / 4 for i in range(len(sigmas))])
    return Inversion(latents, tuple(sigmas), steps, 0, "SD1.x", "eps", tiny.prompt(prompt_seed))


def planned(model: Any, inversion: Inversion, *controls: Any, cfg: float = 7.5) -> tuple[int, int]:
    """UNet evaluations, source rows and target rows, that a run of SD1.x plans before its first step."""
    found: list[tuple[int, int]] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "plans" in record.msg and isinstance(record.args, tuple):
                found.append(record.args[1:3])  # type: ignore[arg-type]

    def stop(*_: Any) -> None:
        raise _EnoughError

    for control in controls:
        model = install(model, control, inversion)
    model = pin(model, inversion, tuple(inversion.schedule))
    log, handler = logging.getLogger("attention_edit"), Listen(logging.INFO)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        tiny.sample(model, tiny.prompt(2), tiny.prompt(3), run_start(), torch.tensor([14.6, 0.0]), cfg, callback=stop)
    except _EnoughError:
        pass
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    return found[0]


@dataclass(frozen=True, eq=False)
class SourceLook(Control):
    """Every target row attends to the source's keys and values (MasaCtrl without gates): touches all machinery."""

    name = "source look"

    def acts_on(self, family):
        return (Act(Site.SELF, family.layers, during=self.during, do=self.look, reads="kv"),)

    during = Window()

    def look(self, call):
        return call.attend(call.q, call.source.k, call.source.v)


@dataclass(frozen=True, eq=False)
class Idle(SourceLook):
    """A control whose window is empty."""

    during = Window(0.0, 0.0)


def words(text: str) -> Prompt:
    """A prompt's words by the tokenizer of SD1.x."""
    tokenizer = SD1Tokenizer()
    clip = SimpleNamespace(
        tokenizer=tokenizer, tokenize=lambda t, return_word_ids: tokenizer.tokenize_with_weights(t, return_word_ids)
    )
    return read_prompt(clip, text)
