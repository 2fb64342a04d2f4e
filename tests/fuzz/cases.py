"""A case: a world (a tiny model and sizes) and a graph of node calls, as plain data that runs and reads as text.

Nodes are called as the host calls them: their own `execute`, in inference mode, with the model objects of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import every_method
import torch
import worlds
from attention_edit.nodes.setup import NoNoise
from comfy_extras import nodes_custom_sampler as custom_nodes

import nodes as host_nodes


@dataclass(frozen=True)
class Ref:
    """An output of an earlier call, or something that the world gives ("model", "clip", "vae")."""

    name: str
    output: int = 0

    def __str__(self) -> str:
        return f"{self.name}[{self.output}]" if self.output else self.name


@dataclass(frozen=True)
class Call:
    """A node and its inputs: widgets' values, `Ref`s, or what the world makes (`worlds.Given`)."""

    name: str
    node: str
    inputs: Mapping[str, Any]

    def __str__(self) -> str:
        given = ", ".join(
            f"{key}={value if isinstance(value, Ref) else repr(value)}" for key, value in self.inputs.items()
        )
        return f"{self.name} = {self.node}({given})"

    def with_inputs(self, **values: Any) -> Call:
        """The same call with other values; None takes an input away."""
        kept = {key: value for key, value in {**self.inputs, **values}.items() if value is not None}
        return replace(self, inputs=kept)


@dataclass(frozen=True)
class Case:
    """What is run.

    Attributes:
        world: the model and the sizes.
        calls: in order; each may use those before it.
        prop: what of the properties in properties.py is checked beside those that hold for every case.
    """

    world: worlds.World
    calls: tuple[Call, ...]
    prop: str = ""

    def __repr__(self) -> str:
        return "\n".join(["", str(self.world), *map(str, self.calls), f"property: {self.prop or 'those of all'}", ""])

    def having(self, *kinds: str) -> list[Call]:
        """The calls of some nodes."""
        return [call for call in self.calls if call.node in kinds]

    def changed(self, change: Callable[[Call], Call | None]) -> Case:
        """The case with every call changed; one that becomes None is taken out, and its MODEL goes on as it was."""
        calls: list[Call] = []
        past: dict[str, Ref] = {}
        for call in self.calls:
            found = {
                k: past.get(v.name, v) if isinstance(v, Ref) and not v.output else v for k, v in call.inputs.items()
            }
            new = change(replace(call, inputs=found))
            if new is not None:
                calls.append(new)
            elif isinstance(found.get("model"), Ref):
                past[call.name] = found["model"]
        return replace(self, calls=tuple(calls))

    def run(self) -> dict[str, tuple[Any, ...]]:
        """All outputs, by the names of the calls; raises what a node raises, with its call in a note."""
        made: dict[str, tuple[Any, ...]] = dict(self.world.given())
        for call in self.calls:
            made[call.name] = self.do(call, made)
        return made

    def do(self, call: Call, made: Mapping[str, tuple[Any, ...]]) -> tuple[Any, ...]:
        """What a call gives, with what has been made before."""
        with torch.inference_mode():
            inputs = {key: self._value(value, made) for key, value in call.inputs.items()}
            try:
                return perform(call.node, inputs)
            except Exception as error:
                error.add_note(f"in {call}")
                raise

    def _value(self, value: Any, made: Mapping[str, tuple[Any, ...]]) -> Any:
        if isinstance(value, Ref):
            return made[value.name][value.output]
        return value.make(self.world) if isinstance(value, worlds.Given) else value


def _custom(
    model: Any, positive: Any, negative: Any, latent_image: Any, noise: Any, sigmas: Any, cfg: float, sampler_name: str
) -> Any:
    """SamplerCustomAdvanced with the nodes that it needs."""
    guider = custom_nodes.CFGGuider.execute(model, positive, negative, cfg).args[0]
    sampler = custom_nodes.KSamplerSelect.execute(sampler_name).args[0]
    return custom_nodes.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent_image).args[:1]


def _split(sigmas: Any, step: int) -> Any:
    return custom_nodes.SplitSigmas.execute(sigmas, step).args


HOST: dict[str, Callable[..., tuple[Any, ...]]] = {
    "KSampler": lambda **given: host_nodes.KSampler().sample(**given),
    "KSamplerAdvanced": lambda **given: host_nodes.KSamplerAdvanced().sample(**given),
    "SamplerCustomAdvanced": _custom,
    "SplitSigmas": _split,
    "DisableNoise": lambda: (NoNoise(0),),
}
"""The host's nodes that cases use."""
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced")


def perform(node: str, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a node gives for its inputs."""
    if node in HOST:
        return HOST[node](**inputs)
    return every_method.CLASSES[f"AttnEdit{node}"].execute(**inputs).args


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of what nodes have made: latents, pictures, masks, conditionings, inversions; with their names."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from tensors(entry, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for place, entry in enumerate(value):
            yield from tensors(entry, f"{name}[{place}]")
    elif hasattr(value, "latents") and hasattr(value, "sigmas"):
        yield from tensors(vars(value), name)
