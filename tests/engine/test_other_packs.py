"""Other packs beside edits, in both orders; the tables in Edit Setup's help say what is found here.

`WRITE_TABLES=1 python tests --only-pytest tests/engine/test_other_packs.py` writes them.
"""

from __future__ import annotations

import os

import pytest
from house import PACK
from other_joint_packs import FLUX_OTHERS, SD3_OTHERS
from other_packs import OTHERS
from pairs import FLUX, SD1, SD3, SILENT, Bench, cells, does_something

PAGE = PACK / "js/docs/AttnEditSetup.md"
BEGIN, END = "<!-- begin: written by tests/engine/test_other_packs.py -->\n", "<!-- end -->\n"
PAIRS = [
    (bench, other) for bench, others in ((SD1, OTHERS), (FLUX, FLUX_OTHERS), (SD3, SD3_OTHERS)) for other in others
]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _table(*benches: Bench) -> str:
    """Markdown of the rows of benches with the same methods, as they are found."""
    methods = list(benches[0].methods)
    lines = [_line([bench.name, other.name, *cells(bench, other)]) for bench, other in PAIRS if bench in benches]
    return f"{_line(['model', 'other', *methods])}|{' --- |' * (len(methods) + 2)}\n{''.join(lines)}"


def tables() -> str:
    """All tables, and with what the rows were tested."""
    others = dict.fromkeys((other.name, other.source) for _, other in PAIRS)
    notes = "".join(f"- {name}: {source}\n" for name, source in others)
    return f"\n{_table(SD1)}\n{_table(FLUX, SD3)}\nTested with:\n\n{notes}\n"


@pytest.mark.parametrize(("bench", "other"), PAIRS, ids=lambda given: given.name)
def test_nothing_is_dead_in_silence(bench, other):
    """Both act in either order, or it is refused or said on the node that one of them does not."""
    assert does_something(bench, other), "it does nothing alone"
    assert not [cell for cell in cells(bench, other) if SILENT in cell], cells(bench, other)


def test_the_help_s_tables_are_what_was_found():
    """Edit Setup's help page has these rows; WRITE_TABLES=1 puts them there."""
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    written, after = rest.split(END)
    if os.environ.get("WRITE_TABLES"):
        written = tables()
        PAGE.write_text(f"{before}{BEGIN}{written}{END}{after}", "utf-8")
    assert written == tables()
