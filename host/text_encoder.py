"""A prompt as a function of some of its tokens' embeddings, through the host's own CLIP, and the way back.

The host splices a vector into its text wherever a token is one instead of a number, so the encoding goes the host's
own way: weights, parts of 77 tokens, clip skip, LoRA. Its layers add in place to what autograd has saved; within
`slope`, PyTorch keeps a copy of what they are about to overwrite. That holds for this thread and this call: nothing is
put on the encoder, and its own encodings stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.quant_ops
import torch
from torch import Tensor

from .gradients import constant, gradient

Vectors = Mapping[str, Tensor]
"""By the host's name of the text encoder ("l", "g", "h"): (P, C) float32, the embeddings of P tokens."""
Chunks = list[list[tuple[Any, float]]]
"""The parts of a prompt as the host's tokenizer gives them: a number or a vector, and a weight, for each place."""


@dataclass(frozen=True, eq=False)
class LearnableText:
    """A prompt some of whose tokens' embeddings are free.

    Attributes:
        clip: host CLIP.
        positions: P places on the context's token axis, those of the free tokens.
    """

    clip: Any
    positions: tuple[int, ...]
    _chunks: Mapping[str, Chunks] = field(repr=False)

    def vectors(self) -> dict[str, Tensor]:
        """The free tokens' own embeddings, with which `encode` gives the prompt's own states."""
        return {name: self._own(name, chunks) for name, chunks in self._chunks.items()}

    def encode(self, vectors: Vectors) -> Tensor:
        """The text states (1, L, C) float32 with other embeddings for the free tokens, as the host encodes them.

        SDXL's pooled output is not among them: it is a summary of the whole prompt that no layer attends to.
        """
        model, device = self.clip.cond_stage_model, self.clip.patcher.load_device
        model.reset_clip_options()
        if self.clip.layer_idx is not None:
            model.set_clip_options({"layer": self.clip.layer_idx})
        model.set_clip_options({"execution_device": device})
        spliced = {name: self._spliced(chunks, vectors[name]) for name, chunks in self._chunks.items()}
        return model.encode_token_weights(spliced)[0]

    def slope(self, vectors: Vectors, along: Tensor) -> dict[str, Tensor]:
        """The gradient of (states * along).sum() by the vectors; along (1, L, C).

        Raises:
            ValueError: it is not finite.
        """
        with constant(self.clip.cond_stage_model, self.clip.patcher.load_device, torch.float32):
            leaves = {name: value.detach().clone().requires_grad_() for name, value in vectors.items()}
            with torch.autograd.graph.allow_mutation_on_saved_tensors():
                states = self.encode(leaves)
                found = gradient((states * along.to(states)).sum(), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def _own(self, name: str, chunks: Chunks) -> Tensor:
        flat = [value for chunk in chunks for value, *_ in chunk]
        device = self.clip.patcher.load_device
        table = _encoder(self.clip, name).transformer.get_input_embeddings()
        with torch.inference_mode(False), torch.no_grad():
            rows = []
            for value in (flat[position] for position in self.positions):
                if isinstance(value, Tensor):
                    rows.append(value.detach().clone().float().to(device))
                else:
                    rows.append(table(torch.tensor([int(value)], device=device), out_dtype=torch.float32)[0].clone())
            return torch.stack(rows)

    def _spliced(self, chunks: Chunks, vectors: Tensor) -> Chunks:
        found, places = [list(chunk) for chunk in chunks], [(i, j) for i, c in enumerate(chunks) for j in range(len(c))]
        for position, vector in zip(self.positions, vectors, strict=True):
            part, place = places[position]
            found[part][place] = (vector, *found[part][place][1:])
        return found


def learnable(clip: Any, text: str, positions: Sequence[int]) -> LearnableText:
    """A prompt with free tokens, on a CLIP that is loaded.

    Args:
        positions: on the context's token axis, none of them begin, end or padding.

    Raises:
        ValueError: a quantised encoder.
    """
    chunks = clip.tokenize(text)
    for name in chunks:
        _check_weights(name, _encoder(clip, name))
    clip.load_model()
    return LearnableText(clip, tuple(positions), chunks)


def _encoder(clip: Any, name: str) -> Any:
    return getattr(clip.cond_stage_model, f"clip_{name}")


def _check_weights(name: str, encoder: torch.nn.Module) -> None:
    """Refuse weights through which there is no gradient."""
    quantised = getattr(comfy.quant_ops, "QuantizedTensor", ())
    for weight in encoder.parameters():
        if isinstance(weight, quantised) or not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
            kind = type(weight).__name__ if isinstance(weight, quantised) else str(weight.dtype)
            raise ValueError(
                f"Text encoder clip_{name} is quantised ({kind}), and gradients cannot go through it. Connect the CLIP "
                "of the checkpoint itself, or load the encoder in fp16, bf16 or fp32."
            )
