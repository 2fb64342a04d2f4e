"""Recording of attention maps: it changes nothing, and what it records is what the layers compute."""

from __future__ import annotations

import copy
from typing import Any

import comfy.model_management
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine.install import install, pin
from attention_edit.attention.maps.recorder import AttentionMaps, Recording, RecordMaps, recorder
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.host.families import family_of
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.generated import GeneratedSource
from attention_edit.inversion.reconstruct import reconstruct
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

ONE_STEP, TWO_STEPS = torch.tensor([5.0, 0.0]), torch.tensor([5.0, 2.0, 0.0])
PROMPT = edits.words("a red car on a (green:1.2) hill")
ALL = (1, 2, 4, 8)


def control(
    cross: tuple[int, ...] = (4,), own: tuple[int, ...] = (), start: float = 0.0, end: float = 1.0
) -> RecordMaps:
    return RecordMaps(AttentionMaps(PROMPT), cross, own, start, end)


def run(model: Any, sigmas: Tensor = ONE_STEP, kind: str = "SD1", tokens: int = 77, batch: int = 1, cfg: float = 7.5):
    positive, negative = tiny.prompt(2, kind), tiny.prompt(3, kind, tokens)
    return tiny.sample(model, positive, negative, tiny.latent(4, batch), sigmas, cfg)


def record(model: Any, made: RecordMaps, *args: Any, **kwargs: Any) -> Recording:
    run(install(model, made), *args, **kwargs)
    return made.maps.recording


class Spy:
    """Computes every layer's maps anew, in float64 and head by head, and leaves the layers as they are."""

    def __init__(self, model: Any) -> None:
        self.model, self.seen = model.clone(), []
        for layer in family_of(model).layers:
            for kind, setter in (
                ("self", self.model.set_model_attn1_replace),
                ("cross", self.model.set_model_attn2_replace),
            ):
                setter(self._at(kind, layer), *layer.block, layer.depth)

    def _at(self, kind: str, layer: Any):
        def look(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
            heads, batch = options["n_heads"], len(q) // len(options["cond_or_uncond"])
            for chunk, mark in enumerate(options["cond_or_uncond"]):
                rows = slice(chunk * batch, (chunk + 1) * batch)
                if mark == 0:
                    parts = zip(q[rows].double().chunk(heads, -1), k[rows].double().chunk(heads, -1), strict=True)
                    maps = [torch.softmax(a @ b.mT / a.shape[-1] ** 0.5, -1) for a, b in parts]
                    self.seen.append((kind, layer.scale, torch.stack(maps).mean(0)))
            return optimized_attention(q, k, v, heads, attn_precision=options["attn_precision"])

        return look

    def mean(self, kind: str, scale: int) -> Tensor:
        return torch.stack([m for of, at, m in self.seen if (of, at) == (kind, scale)]).mean(0)


@pytest.mark.parametrize(("kind", "scales"), [("SD1", ALL), ("SD2", ALL), ("SDXL", (2, 4))])
def test_records_what_the_layers_compute(kind: str, scales: tuple[int, ...]) -> None:
    """Mean over heads, layers of a size and steps, of the conditional rows."""
    model = tiny.tiny_model(kind)
    spy = Spy(model)
    run(spy.model, TWO_STEPS, kind, batch=2)
    found = record(model, control(scales, scales), TWO_STEPS, kind, batch=2)
    assert found.columns == PROMPT.content
    assert set(found.cross) == set(found.own) == set(scales)
    for scale in scales:
        side = tiny.SIZE // scale
        cross, own = found.cross[scale], found.own[scale]
        assert cross.shape == own.shape == (side, side)
        assert cross.layers == own.layers == sum(la.scale == scale for la in family_of(model).layers)
        assert cross.values.shape == (2, side * side, len(PROMPT.content))
        assert torch.allclose(cross.values.double(), spy.mean("cross", scale)[..., list(PROMPT.content)], atol=1e-5)
        assert torch.allclose(own.values.double(), spy.mean("self", scale), atol=1e-5)


@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_changes_nothing(cfg: float, model: Any) -> None:
    stock = run(model, TWO_STEPS, cfg=cfg)
    assert torch.equal(run(install(model, control(ALL, ALL)), TWO_STEPS, cfg=cfg), stock)


@pytest.mark.parametrize("packed", [False, True])
def test_changes_nothing_beside_an_edit(packed: bool, model: Any, inversion: Any) -> None:
    """Ahead of the edit or behind it; CPAM computes only a part of an attention that nothing else has changed."""
    edit = CPAM(edits.masks())
    alone = edits.run(model, inversion, edit, packed=packed)
    before, behind = control(ALL, ALL), control(ALL, ALL)
    assert torch.equal(edits.run(model, inversion, before, edit, behind, packed=packed), alone)
    for scale in ALL:
        # Both see the network's own map and not what the edit makes of it.
        assert torch.equal(before.maps.recording.own[scale].values, behind.maps.recording.own[scale].values)
        assert torch.equal(before.maps.recording.cross[scale].values, behind.maps.recording.cross[scale].values)


def test_repeated_text_is_folded(model: Any) -> None:
    """77 tokens beside 154 of the negative prompt: the host repeats them."""
    short, long = (record(model, control(ALL), tokens=tokens) for tokens in (77, 154))
    for scale in ALL:
        assert torch.allclose(short.cross[scale].values, long.cross[scale].values, atol=1e-6)


def test_a_batch_is_as_its_images(model: Any) -> None:
    both = record(model, control((2,), (2,)), batch=2)
    start = tiny.latent(4, 2)
    for i in range(2):
        made = control((2,), (2,))
        patched = install(model, made)
        tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), start[i : i + 1], ONE_STEP)
        for name in ("cross", "own"):
            one, of_both = (getattr(r, name)[2].values for r in (made.maps.recording, both))
            assert torch.allclose(one, of_both[i : i + 1], atol=1e-5)


def test_a_split_batch_is_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short of memory the host runs the conditional rows in a call of their own."""
    whole = record(model, control())
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 0)
    assert torch.allclose(record(model, control()).cross[4].values, whole.cross[4].values, atol=1e-6)


def test_the_window_is_counted_from_the_noisy_end(model: Any) -> None:
    first, second, both = (
        record(model, control(start=s, end=e), TWO_STEPS).cross[4].values for s, e in ((0, 0.5), (0.5, 1), (0, 1))
    )
    assert torch.allclose((first + second) / 2, both, atol=1e-6)
    assert torch.allclose(first, record(model, control(), ONE_STEP).cross[4].values, atol=1e-6)
    assert edits.difference(first, second) > 1e-3


def invert(model: Any, steps: int = 4):
    with torch.inference_mode():
        return DDIMInversion(steps)(model, {"samples": tiny.latent(1)}, tiny.prompt(5)).inversion


def test_records_an_inversion(model: Any, inversion: Any) -> None:
    """The inversion is the same bit for bit; its steps count from the noisy end too, which it comes to last."""
    made = control((4,), (4,))
    recorded = invert(install(model, made))
    assert torch.equal(recorded.latents, inversion.latents)
    spy = Spy(model)
    invert(spy.model)
    found = made.maps.recording
    assert torch.allclose(found.own[4].values.double(), spy.mean("self", 4), atol=1e-5)
    layers, steps = found.own[4].layers, len(inversion.sigmas) - 1
    maps = [m for kind, scale, m in spy.seen if (kind, scale) == ("self", 4)]
    assert len(maps) == layers * steps
    noisy = control((4,), (4,), end=1 / steps)
    invert(install(model, noisy))
    last = torch.stack(maps[-layers:]).mean(0)
    assert torch.allclose(noisy.maps.recording.own[4].values.double(), last, atol=1e-5)


def test_an_inversion_refuses_what_is_no_recorder(model: Any, inversion: Any) -> None:
    recorded = install(model, control())
    with pytest.raises(ValueError, match="already carries edits"):
        invert(install(recorded, edits.SourceLook(), inversion))
    with pytest.raises(ValueError, match="already carries edits"):
        invert(pin(recorded, inversion, tuple(inversion.schedule)))


def test_records_a_source_that_is_drawn(model: Any) -> None:
    made = control()
    arguments = {"samples": torch.zeros(1, 4, 16, 16)}, tiny.prompt(2), tiny.prompt(3), 7.5
    with torch.inference_mode():
        plain, seen = (
            GeneratedSource(4, seed=1)(one, *arguments).inversion.latents[0] for one in (model, install(model, made))
        )
        assert torch.equal(seen, plain)
    assert made.maps.recording.cross[4].values.shape == (1, 16, len(PROMPT.content))


def test_records_a_reconstruction(model: Any, inversion: Any) -> None:
    made = control()
    with torch.inference_mode():
        plain = reconstruct(model, inversion, 1.0, None)
        seen = reconstruct(install(model, made), inversion, 1.0, None)
    assert torch.equal(plain.latent, seen.latent)
    assert made.maps.recording.cross[4].values.shape == (1, 16, len(PROMPT.content))


def test_each_complete_run_has_its_own(model: Any) -> None:
    made = control()
    with pytest.raises(ValueError, match="No attention maps have been recorded yet"):
        made.maps.recording  # noqa: B018
    patched = install(model, made)
    run(patched)
    first = made.maps.recording.cross[4].values
    tiny.sample(patched, tiny.prompt(7), tiny.prompt(3), tiny.latent(4), ONE_STEP)
    assert edits.difference(made.maps.recording.cross[4].values, first) > 1e-3
    run(patched)
    assert torch.equal(made.maps.recording.cross[4].values, first)

    def cancel(*_: Any) -> None:
        comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(patched, tiny.prompt(2), tiny.prompt(3), tiny.latent(4), TWO_STEPS, callback=cancel)
    comfy.model_management.interrupt_current_processing(False)
    assert torch.equal(made.maps.recording.cross[4].values, first), "a run that was cancelled leaves nothing"


def test_two_samplers_on_one_model_keep_their_maps_apart(model: Any) -> None:
    """A viewer is given the latent of one run, and shows the maps of that one, whichever came last."""
    made = control()
    patched = install(model, made)
    ends, maps = [], []
    for seed in (2, 7):
        ends.append(tiny.sample(patched, tiny.prompt(seed), tiny.prompt(3), tiny.latent(4), ONE_STEP))
        maps.append(made.maps.recording.cross[4].values)
    assert edits.difference(maps[1], maps[0]) > 1e-3
    for end, expected in zip(ends, maps, strict=True):
        for handed_on in (end, end.half()):
            found = made.maps.of({"samples": handed_on})
            assert torch.equal(found.cross[4].values, expected)
    with pytest.raises(ValueError, match=r"Connect the sampler's own latent to 'after'.*2 times"):
        made.maps.of(torch.zeros(1, 8, 8, 3))
    for _ in range(8):
        run(patched)
    assert len(made.maps._kept) == 4, "memory does not grow with the runs"


def test_a_copied_model_records_to_the_same_place(model: Any) -> None:
    """Some hosts copy a model's options deeply when it is cloned."""
    made = control()
    patched = install(model, made)
    patched.model_options = copy.deepcopy(patched.model_options)
    run(patched)
    assert made.maps.recording.cross


def test_memory_does_not_grow_with_the_steps(model: Any) -> None:
    held = []
    for steps in (2, 6):
        made = control(ALL, (4,))
        found = record(model, made, torch.linspace(5, 0, steps + 1))
        held.append(sum(m.values.untyped_storage().nbytes() for m in (*found.cross.values(), *found.own.values())))
    assert held[0] == held[1]


def test_another_prompts_conditioning_is_an_error(model: Any) -> None:
    patched = install(model, control())
    for tokens in (154, 231):
        with pytest.raises(ValueError, match=f"conditioning has {tokens} text tokens, .*target_prompt 77"):
            tiny.sample(patched, tiny.prompt(2, tokens=tokens), tiny.prompt(3), tiny.latent(4), ONE_STEP)
    two = [*tiny.prompt(2), *tiny.prompt(6)]
    with pytest.raises(ValueError, match="2 positive conditionings"):
        tiny.sample(patched, two, tiny.prompt(3), tiny.latent(4), ONE_STEP)


def test_what_cannot_be_recorded(model: Any) -> None:
    family = family_of(model)
    with pytest.raises(ValueError, match="which is no step at all"):
        record(model, control(start=0.5, end=0.5))
    with pytest.raises(ValueError, match="The prompt is empty"):
        recorder(edits.words(""), family, (4,), (), 0, 1)
    with pytest.raises(ValueError, match=r"SDXL has no attention layers of full or eighth size; it has half, quarter"):
        recorder(PROMPT, family_of(tiny.tiny_model("SDXL")), (1,), (8,), 0, 1)


def test_an_empty_prompt_has_self_attention(model: Any) -> None:
    made = recorder(edits.words(""), family_of(model), (4,), (2,), 0, 1)
    found = record(model, made)
    assert found.cross == {} and set(found.own) == {2}
