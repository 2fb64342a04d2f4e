"""Local Blend on the demo transformer: the object of the named word is recoloured, and the rest is the photograph's."""

from __future__ import annotations

import demo_swap
import torch
from attention_edit.attention.engine.install import install
from attention_edit.attention.methods.local_blend import LocalBlend
from attention_edit.attention.methods.p2p import P2P
from bundle import transformer


def test_words_keep_the_background_without_a_mask() -> None:
    """Beside Prompt-to-Prompt alone, with the defaults of both: nothing says where the object is but its word."""
    demo = transformer.load_demo_transformer()
    with torch.inference_mode():
        swap = demo_swap.swap(demo, flow_iterations=2)
        edited = install(demo[0], P2P(*swap.words), swap.inversion)
        blended = install(edited, LocalBlend(*swap.words, [swap.shape], [swap.shape]), swap.inversion)
        near = [swap.far(edit) for edit in (edited, blended)]
    assert near[1] > near[0] + 6, "less than half the error"
