"""Edits that keep what they read of the source, and what the log says of their evaluations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import folder_paths
import tiny
from every_method import outputs
from torch import Tensor

STEPS, CALLS = 3, 2
"""Of the papers' count, and calls of the network in a run of so many."""
LARGE = 1 << 40


@contextmanager
def own_temp_folder(folder: Path) -> Iterator[Path]:
    """Run with another folder as the host's temp folder; gives where files of features lie in it."""
    before = folder_paths.get_temp_directory()
    folder_paths.set_temp_directory(str(folder))
    try:
        yield Path(folder_paths.get_temp_directory()) / "attention-edit"
    finally:
        folder_paths.set_temp_directory(before)


def sample(edited: Any, inversion: Any, seed: int = 7, cfg: float = 4.0, positive: int = 2, **given: Any) -> Tensor:
    import nodes

    set_up, _, _, latent = outputs("Setup", model=edited, inversion=inversion, **given)
    prompts = tiny.prompt(positive), tiny.prompt(3)
    return nodes.KSampler().sample(set_up, seed, STEPS, cfg, "euler", "normal", *prompts, latent)[0]["samples"]


def told(caplog: Any) -> tuple[int, int, int]:
    """Evaluations of the last run: planned for the source, planned for the target, and counted."""
    planned = re.findall(r"plans \d+ UNet evaluations \((\d+) source, (\d+) target\)", caplog.text)[-1]
    return int(planned[0]), int(planned[1]), int(re.findall(r"Edit: (\d+) UNet evaluations", caplog.text)[-1])
