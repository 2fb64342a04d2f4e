"""The methods without a mask, as `demo/evaluate.py --injection` measures them: one file of measure/judged/ for each.

A method is judged by having a file there; nothing else names it.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from machine.pack import pack_module
from measure import report
from measure.injected import Judged, inject
from measure.methods import METHODS, Setup
from scenes.tasks import make_task

rules = pack_module("attention.engine.layers")
fpe_control = pack_module("attention.methods.fpe").FPE

_FILES = sorted(path.stem for path in Path(__file__).with_name("judged").glob("*.py"))
_TABLE: Judged = [entry for name in _FILES for entry in importlib.import_module(f"measure.judged.{name}").JUDGED]
NAMES = tuple(method.name for method, _ in _TABLE)
CLAIMS = {method.name: tasks for method, tasks in _TABLE}
"""The tasks that a method is measured on; others of the table are measured on all."""

STUDY = {
    "none": None,
    "all": rules.ALL,
    "4 to 14 (paper)": rules.PAPER,
    "up to 32 x 32": rules.RESOLUTION,
}
"""FPE's layer study: which layers take the source's maps."""


def register() -> None:
    """Add the methods to the table."""
    for method, _ in _TABLE:
        METHODS[method.name] = method


def layer_study(setup: Setup, count: int, folder: Path) -> Path:
    """FPE with different layers on recoloured scenes, as one figure.

    Returns:
        the figure's path.
    """
    task = make_task("recolour", count)
    columns = {"before": task.source, "truth": task.truth}
    for name, layers in STUDY.items():
        control = None if layers is None else replace(fpe_control(), layers=layers)
        columns[name] = inject(setup, task, control)
    labels = [f"{a} | {b}" for a, b in zip(task.source_captions, task.full_prompts, strict=True)]
    path = folder / "fpe layers.png"
    report.save_sheet(path, columns, labels)
    return path
