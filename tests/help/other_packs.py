"""Other packs' patches: the host's own nodes where it has them, else the mechanism that the pack works by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.hooks
import comfy.model_patcher
import comfy.samplers
import node_helpers
import tiny
import torch
from comfy.controlnet import ControlBase
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from torch import Tensor

from nodes import ConditioningCombine, ConditioningSetTimestepRange

Conditioning = list[Any]


def made_by(node: Any, *settings: Any) -> Callable[[Any], Any]:
    """What a node of the host makes of a MODEL."""
    return lambda model: node.execute(model, *settings).result[0]


def _as_it_is(given: Any) -> Any:
    return given


@dataclass(frozen=True)
class Other:
    """What another pack puts on a MODEL, or into the edit prompt's conditioning."""

    name: str
    source: str
    """The node of the host that is used, or the mechanism that is imitated."""
    on: Callable[[Any], Any] = _as_it_is
    prompt: Callable[[Conditioning], Conditioning] = _as_it_is
    steps: int = 2
    """Of the inversion: a cache needs some steps before it skips one."""

    @property
    def has_order(self) -> bool:
        """Whether it is a node in the MODEL's line, before or after ours."""
        return self.on is not _as_it_is


def _nothing(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    return torch.zeros_like(q)


def _whole_block(name: str) -> Callable[[Any], Any]:
    """One attention of one block gives nothing, as patches do that replace it."""

    def on(model: Any) -> Any:
        clone = model.clone()
        getattr(clone, f"set_model_{name}_replace")(_nothing, "output", 3)
        return clone

    return on


def _blurred(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """Attention with its queries blurred over the picture, by a blur without end."""
    return optimized_attention(q.mean(1, keepdim=True).expand_as(q), k, v, options["n_heads"])


def _seg(model: Any) -> Any:
    """One more call in each step, with blurred queries in the middle block, and guidance away from it."""
    clone = model.clone()

    def guide(args: dict[str, Any]) -> Tensor:
        change = comfy.model_patcher.set_model_options_patch_replace
        options = change(args["model_options"].copy(), _blurred, "attn1", "middle", 0)
        call = args["model"], [args["cond"]], args["input"], args["sigma"], options
        (seg,) = comfy.samplers.calc_cond_batch(*call)
        return args["denoised"] + (args["cond_denoised"] - seg) * 30.0

    clone.set_model_sampler_post_cfg_function(guide)
    return clone


def _picture_attention(out: Tensor, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], **_: Any) -> Tensor:
    """Attention to four tokens of a reference picture, whose keys the negative prompt has zeros for."""
    width, rows = k.shape[-1], q.shape[0] // len(options["cond_or_uncond"])
    known = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(width)).to(q)
    tokens = torch.cat([(known, torch.zeros_like(known))[i].repeat(rows, 1, 1) for i in options["cond_or_uncond"]])
    return optimized_attention(q, tokens, tokens, options["n_heads"]).to(out)


class _AttentionPlus:
    """Text attention, and behind it what is added; further nodes add to the one that is there.

    The lists have these names in ComfyUI_IPAdapter_plus, and in InstantID's and PuLID's nodes after it.
    """

    def __init__(self, callback: Any, **given: Any) -> None:
        self.callback, self.kwargs = [callback], [given]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        out = optimized_attention(q, k, v, options["n_heads"])
        sigma = float(options["sigmas"][0])
        for one, given in zip(self.callback, self.kwargs, strict=True):
            if given["sigma_end"] <= sigma <= given["sigma_start"]:
                out = out + one(out, q, k, v, options, **given)
        return out

    def add(self, callback: Any, **given: Any) -> None:
        self.callback.append(callback)
        self.kwargs.append(given)


def _adapter(depths: Callable[[int], range] | None = None) -> Callable[[Any], Any]:
    """Cross-attention of the middle and some output blocks by whole blocks, or by their layers (`depths`)."""

    def on(model: Any) -> Any:
        clone = model.clone()
        options = clone.model_options["transformer_options"] = clone.model_options["transformer_options"].copy()
        replace = options["patches_replace"] = options.get("patches_replace", {}).copy()
        patches = replace["attn2"] = replace.get("attn2", {}).copy()
        blocks = [("middle", 0), ("output", 3), ("output", 4)]
        keys = blocks if depths is None else [(*block, depth) for block in blocks for depth in depths(block[1])]
        for key in keys:
            if key in patches:
                patches[key].add(_picture_attention, sigma_start=1e9, sigma_end=0.0)
            else:
                patches[key] = _AttentionPlus(_picture_attention, sigma_start=1e9, sigma_end=0.0)
        return clone

    return on


class _Residuals(ControlBase):
    """A ControlNet whose strength follows the steps: a residual for the middle block."""

    def get_control(self, x: Tensor, t: Tensor, cond: Any, batched_number: int, options: Any) -> dict[str, Any]:
        rows, _, height, width = x.shape
        strength = float(t.max()) / 14.6
        seeded = torch.randn(1, 128, -(-height // 8), -(-width // 8), generator=torch.Generator().manual_seed(4))
        return {"middle": [(seeded * strength).to(x).expand(rows, -1, -1, -1)]}

    def copy(self) -> _Residuals:
        return _Residuals()


def _controlled(conditioning: Conditioning) -> Conditioning:
    return node_helpers.conditioning_set_values(conditioning, {"control": _Residuals(), "control_apply_to_uncond": 1})


def _scheduled(conditioning: Conditioning) -> Conditioning:
    """Another prompt in the second half of the steps."""
    half = ConditioningSetTimestepRange().set_range
    parts = half(conditioning, 0.0, 0.5)[0], half(tiny.prompt(9), 0.5, 1.0)[0]
    return ConditioningCombine().combine(*parts)[0]


def _hooked(conditioning: Conditioning) -> Conditioning:
    """Weights of the middle block that only this prompt's rows see."""
    key = "diffusion_model.middle_block.1.proj_in.weight"
    change = torch.randn(128, 128, 1, 1, generator=torch.Generator().manual_seed(6))
    hooks = comfy.hooks.create_hook_lora({f"{key.removesuffix('.weight')}.diff": change / 4}, 1.0, 1.0)
    return comfy.hooks.set_hooks_for_conditioning(conditioning, hooks)


def _couple(model: Any) -> Any:
    """The positive rows' cross-attention runs once for each of two texts, and their halves are put together."""
    clone = model.clone()

    def texts(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        states = tiny.prompt(8)[0][0]
        other = states.repeat(1, -(-k.shape[1] // states.shape[1]), 1)[:, : k.shape[1]]
        count = len(options["cond_or_uncond"])
        made: list[tuple[Tensor, Tensor, Tensor]] = []
        chunks = zip(q.chunk(count), k.chunk(count), v.chunk(count), options["cond_or_uncond"], strict=True)
        for one, keys, values, kind in chunks:
            made.append((one, keys, values))
            if kind == 0:
                made.append((one, other.to(keys).expand_as(keys), other.to(values).expand_as(values)))
        q, k, v = (torch.cat(parts) for parts in zip(*made, strict=True))
        return q, k, v

    def together(out: Tensor, options: dict[str, Any]) -> Tensor:
        kinds = options["cond_or_uncond"]
        rows = iter(out.chunk(sum(2 if kind == 0 else 1 for kind in kinds)))
        half = out.shape[1] // 2
        made = []
        for kind in kinds:
            one = next(rows)
            made.append(torch.cat([one[:, :half], next(rows)[:, half:]], 1) if kind == 0 else one)
        return torch.cat(made)

    clone.set_model_attn2_patch(texts)
    clone.set_model_attn2_output_patch(together)
    return clone


def attention_override(model: Any) -> Any:
    """Another function in attention's place, all over the model; its queries are halved, so that it can be told."""
    clone = model.clone()
    options = clone.model_options["transformer_options"] = clone.model_options["transformer_options"].copy()
    options["optimized_attention_override"] = lambda func, q, *args, **kwargs: func(q * 0.5, *args, **kwargs)
    return clone


def cache_of_calls(model: Any) -> Any:
    """Every second call of the model for the same conditionings is answered with what the one before gave."""
    clone, kept = model.clone(), {}

    def answer(call: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        key = (*given["cond_or_uncond"], given["input"].shape)
        if key in kept:
            return kept.pop(key)
        kept[key] = call(given["input"], given["timestep"], **given["c"])
        return kept[key]

    clone.set_model_unet_function_wrapper(answer)
    return clone


OTHERS = (
    Other("Block's self-attention replaced", "imitated: `attn1_replace` on a block", _whole_block("attn1")),
    Other("Block's cross-attention replaced", "imitated: `attn2_replace` on a block", _whole_block("attn2")),
    Other("PAG", "ComfyUI's Perturbed-Attention Guidance", made_by(PerturbedAttentionGuidance, 30.0)),
    Other("SAG", "ComfyUI's Self-Attention Guidance", made_by(SelfAttentionGuidance, 0.5, 2.0)),
    Other("SEG", "imitated: sd-perturbed-attention's call with blurred queries in each step", _seg),
    Other("NAG", "ComfyUI's Normalized Attention Guidance", made_by(NAGuidance, 5.0, 0.5, 1.5)),
    Other("IPAdapter", "imitated: ComfyUI_IPAdapter_plus on SD1.x, by blocks", _adapter()),
    Other("IPAdapter, by layers", "imitated: its patches by layers, as on SDXL", _adapter(lambda block: range(1))),
    Other("Attention couple", "imitated: cgem156's `attn2_patch`, rows repeated for each text", _couple),
    Other("Attention override", "imitated: KJNodes' `optimized_attention_override`", attention_override),
    Other(
        "Advanced-ControlNet",
        "imitated: ComfyUI-Advanced-ControlNet's control whose strength follows the steps",
        prompt=_controlled,
    ),
    Other(
        "Prompt schedule",
        "ComfyUI's Set Timestep Range and Combine, as prompt-control makes",
        prompt=_scheduled,
        steps=4,
    ),
    Other("Prompt with hooks", "ComfyUI's weight hooks, as prompt-control schedules LoRAs", prompt=_hooked),
    Other("EasyCache", "ComfyUI's", made_by(EasyCacheNode, 1e6, 0.0, 1.0, False), steps=4),
    Other("LazyCache", "ComfyUI's", made_by(LazyCacheNode, 1e6, 0.0, 1.0, False), steps=4),
    Other("Cache of whole calls", "imitated: TeaCache's `model_function_wrapper`", cache_of_calls, steps=4),
)
