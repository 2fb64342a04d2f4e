"""Tiny random-weight text encoders of every family on the host's own classes, as wide as the tiny UNets read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import tiny
import torch

_CLASSES = {
    "SD1": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
    "SD2": (comfy.text_encoders.sd2_clip.SD2Tokenizer, comfy.text_encoders.sd2_clip.SD2ClipModel),
    "SDXL": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
}
ENCODERS = {"SD1": ("l",), "SD2": ("h",), "SDXL": ("g", "l")}


def _config(width: int) -> dict[str, int]:
    return {"num_hidden_layers": 3, "hidden_size": width, "num_attention_heads": 2, "intermediate_size": 2 * width}


def tiny_clip(
    kind: str = "SD1", dtype: torch.dtype = torch.float32, seed: int = 0, device: torch.device = tiny.CPU
) -> Any:
    """A host CLIP with random weights, whose states a tiny UNet of the same kind reads."""
    tokenizer, model = _CLASSES[kind]
    width = tiny.CONTEXT // len(ENCODERS[kind])
    names = ("clip_l", "clip_g", "clip_h", "")
    options: dict[str, Any] = {f"{name}_model_config": _config(width) for name in names} | {"dtype": dtype}
    options |= {"load_device": device, "offload_device": tiny.CPU, "initial_device": tiny.CPU}
    clip = comfy.sd.CLIP(SimpleNamespace(params={}, clip=model, tokenizer=tokenizer), model_options=options)
    rng = torch.Generator().manual_seed(seed)
    for name, weight in clip.cond_stage_model.named_parameters():
        if weight.ndim > 1:
            scale = 1.0 if "embedding" in name else 0.5
            weight.data = (torch.randn(weight.shape, generator=rng) * scale).to(weight.dtype)
        elif "logit" not in name:
            weight.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return clip


def encoded(clip: Any, text: str, kind: str = "SD1", seed: int = 7) -> list[Any]:
    """CONDITIONING of a text; SDXL's pooled output is random, for the tiny encoder's is too short."""
    with torch.inference_mode():
        states, options = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]
    return [[states, {**options, **tiny.prompt(seed, kind)[0][1]}]]


def plain_encoder(encoder, rows, last):
    """A CLIP text transformer in float64, written out: rows (N, C) embeddings to states of a layer."""
    model = encoder.transformer.text_model
    state = {key: value.detach().double() for key, value in model.state_dict().items()}
    x = rows + state["embeddings.position_embedding.weight"]
    heads = model.encoder.layers[0].self_attn.heads

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def act(x):
        if encoder.transformer.text_model.encoder.layers[0].mlp.activation is torch.nn.functional.gelu:
            return x * 0.5 * (1 + torch.erf(x / 2**0.5))
        return x * torch.sigmoid(1.702 * x)

    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    for number in range(len(model.encoder.layers) + (last or 0) + (0 if last is None else 1)):
        at = f"encoder.layers.{number}"
        y = norm(x, f"{at}.layer_norm1")
        q, k, v = (
            linear(y, f"{at}.self_attn.{part}_proj").unflatten(-1, (heads, -1)).transpose(0, 1) for part in "qkv"
        )
        weights = torch.softmax((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf), -1)
        x = x + linear((weights @ v).transpose(0, 1).flatten(1), f"{at}.self_attn.out_proj")
        x = x + linear(act(linear(norm(x, f"{at}.layer_norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
    return norm(x, "final_layer_norm") if encoder.layer_norm_hidden_state else x


def written_out(clip, text, positions, vectors):
    """All of the host's encoding in float64: parts, weights by distance to the empty prompt, both of SDXL's."""
    states = []
    for name in ("l", "g", "h"):
        if name not in vectors:
            continue
        encoder = getattr(clip.cond_stage_model, f"clip_{name}")
        table = encoder.transformer.get_input_embeddings().weight.detach().double()
        chunks, free = clip.tokenize(text)[name], dict(zip(positions, vectors[name], strict=True))
        pad = encoder.special_tokens["pad"]
        empty = plain_encoder(encoder, table[torch.tensor([49406, 49407] + [pad] * 75)], encoder.layer_idx)
        parts = []
        for number, chunk in enumerate(chunks):
            rows = [free.get(77 * number + place, table[value]) for place, (value, _) in enumerate(chunk)]
            found = plain_encoder(encoder, torch.stack(rows), encoder.layer_idx)
            weights = torch.tensor([weight for _, weight in chunk], dtype=torch.float64)[:, None]
            parts.append((found - empty) * weights + empty)
        states.append(torch.cat(parts))
    return torch.cat(states, -1)[None]
