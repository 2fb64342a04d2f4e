"""Every workflow has a transformer twin: with Demo Model's other network it runs, or is refused with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from machine.prompt_result import PromptError
from made import FOLDER, execute, prompt_of
from show.workflow_file import without_download

if TYPE_CHECKING:
    from machine.comfy_server import ComfyServer

pytestmark = pytest.mark.server
NOT_YET = r"{} does not work on (transformers|rectified flows) such as Flux\.1 yet"
REFUSED = {
    "dynamic-prompt-learning": NOT_YET.format("Dynamic Prompt Learning"),
    "mag-edit": NOT_YET.format("MAG-Edit blending"),
    "masafusion": NOT_YET.format("MaSaFusion"),
    "masafusion-sketch": NOT_YET.format("MaSaFusion"),
    "null-text-inversion": NOT_YET.format("Null-text inversion"),
    "pnp": NOT_YET.format("Plug-and-Play"),
    "proposal-mask": NOT_YET.format("Difference Mask"),
    "region-edit": NOT_YET.format("Region Prompts"),
    "style-aligned": NOT_YET.format("StyleAligned"),
    "sweep": r"'2-12' chooses no layers of DemoTransformer .* Give one of",
    "two-regions": NOT_YET.format("Region Prompts"),
}
"""What these are refused with; all others run."""


@pytest.mark.parametrize("name", sorted(path.stem for path in without_download(FOLDER)))
def test_runs_on_the_demo_transformer_or_says_what_to_do(name: str, server: ComfyServer) -> None:
    """In two steps: what is drawn is other tests' matter."""
    prompt = prompt_of(server, name)
    for entry in prompt.values():
        if entry["class_type"] == "AttnEditDemoModel":
            entry["inputs"]["network"] = "transformer"
        if isinstance(entry["inputs"].get("steps"), int):
            entry["inputs"]["steps"] = min(2, entry["inputs"]["steps"])
    if name in REFUSED:
        with pytest.raises(PromptError, match=REFUSED[name]):
            execute(server, name, prompt)
    else:
        assert execute(server, name, prompt).images


def test_no_refusal_is_out_of_date() -> None:
    assert set(REFUSED) <= {path.stem for path in Path(FOLDER).glob("*.json")}
