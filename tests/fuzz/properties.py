"""What must hold of a case: it is refused in words of the pack, or its results are finite and have a property.

Of every case: nothing is left on the model that was there before. The others are checked where they apply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attention_edit.attention.engine.plan import Plan
from attention_edit.attention.masks.cells import resize
from attention_edit.attention.masks.edit_masks import EditMasks
from attention_edit.host.marks import KEY
from attention_edit.host.models import latent_of
from attention_edit.inversion import store
from cases import SAMPLERS, Call, Case, Ref, tensors
from outcomes import close, difference, is_refusal, left_on, not_finite, same

METHODS_OFF: dict[str, dict[str, Any]] = {
    "CPAM": {"end": 0.0},
    "FPE": {"end": 0.0},
    "MasaCtrl": {"end": 0.0},
    "P2P": {"cross_end": 0.0, "self_end": 0.0, "windows": "", "weights": ""},
    "StyleAligned": {"end": 0.0},
    "Background": {"start": 1.0},
    "LocalBlend": {"start": 1.0},
    "MAG": {"preset": "custom", "end": 0.0, "blend_start": 1.0},
    "PnP": {"attention_end": 0.0, "feature_end": 0.0, "negative": None},
}
"""What makes the window of a method empty."""
NO_WINDOW = ("MaSaFusion", "RegionPrompts", "Proximal")
LOOKING = ("RecordMaps",)
AFTER = ("RefinedMasks", "MapViewer", "MapMask", "SelfMaps", "GuidanceCurve", "Intermediate", "Composite")
CUT = ("LocalBlend", "Proximal", "RefineMask", "MapMask", "SelfMaps", "DiffMask", "BackgroundMask", "MAG", "DPL")
"""Nodes that compare values with a threshold: rounding may put a value on its other side."""
BY_PLACE = ("RecordSource", "MaSaFusion", "DiffMask", "SelfMaps", "BackgroundMask", "DPL")
"""Nodes that draw random values for each image by its place in the batch, or all images share."""
NARROW = 3
"""Cells of a side below which the tiny UNets' norms make rounding large."""
NOISE = ("ancestral", "sde", "lcm", "ddpm", "seeds", "sa_solver", "dpm_adaptive", "dpm_fast")
"""Parts of samplers' names that draw noise for each image by its place, or choose steps by the whole batch."""


def _results(case: Case, made: dict[str, tuple[Any, ...]]) -> dict[str, torch.Tensor]:
    """All tensors that the calls have made."""
    return dict(tensors({call.name: made[call.name] for call in case.calls}))


def _last(case: Case, made: dict[str, tuple[Any, ...]]) -> torch.Tensor:
    return made[case.having(*SAMPLERS)[-1].name][0]["samples"]


def _is_cut(case: Case) -> bool:
    return bool(case.having(*CUT)) or any(call.inputs.get("target_words") for call in case.having("MasaCtrl"))


def _edit_alone(case: Case, *without: str) -> Case:
    """The case without what shows runs, and without some methods."""
    return case.changed(lambda call: None if call.node in {*AFTER, *LOOKING, *without} else call)


def rerun(case: Case, made: dict[str, tuple[Any, ...]]) -> bool:
    """Once more it is the same, bit for bit."""
    same(_results(case, made), _results(case, case.run()))
    return True


def empty(case: Case, made: dict[str, tuple[Any, ...]]) -> bool:
    """With empty windows it is the stock run, bit for bit."""
    case = _edit_alone(case, *NO_WINDOW)
    if not case.having(*METHODS_OFF) or not case.having("Setup"):
        return False
    off = case.changed(lambda call: call.with_inputs(**METHODS_OFF.get(call.node, {})))
    stock = case.changed(lambda call: None if call.node in METHODS_OFF else call)
    one, other = off.run(), stock.run()
    assert torch.equal(_last(off, one), _last(stock, other)), f"{difference(_last(off, one), _last(stock, other)):.2g}"
    return True


def _is_exact(case: Case) -> bool:
    """Whether rounding stays small, so that two ways to one result can be compared.

    It grows where the tiny UNets' norms are over one or two cells: a perturbation of 1e-6 moves a stock run of 3 x 1
    cells by 0.2 of the largest value and one of 6 x 4 by 2e-5, and in double precision too, whose latents are rounded
    to single between the steps. Real ones are ten times as wide.
    """
    narrow = not case.world.joint and min(case.world.height, case.world.width) < NARROW
    return case.world.dtype == "float32" and not narrow


def packed(case: Case, made: dict[str, tuple[Any, ...]]) -> bool:
    """In one call with the source it is the same as apart, up to rounding."""
    case = _edit_alone(case)
    if not _is_exact(case) or _is_cut(case) or not any("one_call" in call.inputs for call in case.calls):
        return False
    apart, together = (_one_call(case, wanted) for wanted in (False, True))
    close(_last(together, together.run()), _last(apart, apart.run()))
    return True


def _one_call(case: Case, wanted: bool) -> Case:
    return case.changed(lambda call: call.with_inputs(one_call=wanted) if "one_call" in call.inputs else call)


def alone(case: Case, made: dict[str, tuple[Any, ...]]) -> bool:
    """The first and the last image of a batch are as they are alone, up to rounding."""
    case = _edit_alone(case)
    noisy = any(part in str(call.inputs.get("sampler_name", "")) for call in case.calls for part in NOISE)
    varied = any(call.inputs.get("variation") or call.inputs.get("add_noise") == "enable" for call in case.calls)
    if case.world.batch == 1 or not _is_exact(case) or noisy or varied:
        return False
    if _is_cut(case) or case.having(*BY_PLACE):
        return False
    together = _last(case, made)
    for image in {0, case.world.batch - 1}:
        single = Case(case.world.alone(image), case.calls)
        close(together[image : image + 1], _last(single, single.run()))
    return True


def recorded(case: Case, made: dict[str, tuple[Any, ...]]) -> bool:
    """Recording maps changes no bit."""
    plain = case.changed(lambda call: None if call.node in {*LOOKING, *AFTER} else call)
    target = plain.having("Prompt")[1]
    if not any(letter.isalnum() for letter in target.inputs["text"]):
        return False  # nothing to record
    model, words = plain.having("Setup", *SAMPLERS)[0].inputs["model"], Ref(target.name, 1)
    recorder = Call("recording", "RecordMaps", {"model": model, "prompt": words, "map_size": "quarter"})
    recorder = recorder.with_inputs(self_maps="half", start=0.0, end=1.0)
    place = plain.calls.index(plain.having("Setup", *SAMPLERS)[0])
    behind = [
        call.with_inputs(model=Ref("recording")) if call.inputs.get("model") == model else call
        for call in plain.calls[place:]
    ]
    watched = Case(plain.world, (*plain.calls[:place], recorder, *behind))
    one, other = _results(plain, plain.run()), _results(watched, watched.run())
    same(one, {name: x for name, x in other.items() if name in one})
    return True


def background(case: Case, made: dict[str, tuple[Any, ...]]) -> bool:
    """Outside of what may change a whole run gives the image's own latent, bit for bit."""
    kept = [call for call in case.having("Background") if call.inputs["start"] == 0.0]
    if not kept or not case.having("Setup"):
        return False
    masks, out = made[kept[0].inputs["masks"].name][0], _last(case, made)
    assert isinstance(masks, EditMasks)
    cells = resize(masks.changed, (out.shape[-2], out.shape[-1]), "any")[:, None].expand(len(out), out.shape[1], -1, -1)
    inversion = made[kept[0].inputs["inversion"].name][0]
    image = latent_of(case.world.model, inversion.latents[0]).expand_as(out)
    assert torch.equal(out[~cells], image.to(out)[~cells]), f"{difference(out[~cells], image[~cells]):.2g}"
    return True


def whole(case: Case, made: dict[str, tuple[Any, ...]]) -> bool:
    """Two samplers in a row are one, up to rounding, where the sampler looks back at no step and draws no noise."""
    case = _edit_alone(case)
    samplers = case.having("SamplerCustomAdvanced")
    if len(samplers) != 2 or samplers[0].inputs["sampler_name"] not in {"euler", "ddim", "heun"}:
        return False
    if not _is_exact(case) or _is_cut(case):
        return False
    sigmas = next(call for call in case.calls if call.node == "SplitSigmas").inputs["sigmas"]
    joined = [call for call in case.calls if call not in samplers]
    joined.append(samplers[0].with_inputs(sigmas=sigmas))
    one = Case(case.world, tuple(joined))
    close(_last(case, made), _last(one, one.run()))
    return True


def saved(case: Case, made: dict[str, tuple[Any, ...]]) -> bool:
    """Inversions that are saved and loaded again are the same bit for bit."""
    found = [value for call in case.calls for value in made[call.name][:1] if hasattr(value, "sigmas")]
    for inversion in found:
        path = store.save(inversion, "fuzz")
        loaded = store.load(path.name)
        path.unlink()
        same(dict(tensors(inversion)), dict(tensors(loaded)))
        assert loaded.describe() == inversion.describe()
    return bool(found)


def pixels(case: Case, made: dict[str, tuple[Any, ...]]) -> bool:
    """Composite in Pixels leaves pixels beyond the mask and its feather bit for bit."""
    calls = case.having("Composite")
    for call in calls:
        whole_image, given = call.inputs["original"].make(case.world), call.inputs["mask"]
        mask = made[given.name][given.output] if isinstance(given, Ref) else given.make(case.world)
        mask = mask.changed.float() if isinstance(mask, EditMasks) else mask.reshape(-1, *mask.shape[-2:])
        if mask.shape[1:] != whole_image.shape[1:3] or mask.isnan().any():
            return False
        reach = 2 * call.inputs["feather"] + 1
        near = torch.nn.functional.max_pool2d((mask[:, None] > 0.5).float(), reach, 1, reach // 2)[:, 0] > 0
        out = made[call.name][0]
        far = ~near.expand(len(out), -1, -1)
        kept = whole_image[..., : out.shape[-1]]  # an edited picture without transparency leaves none
        assert torch.equal(out[far], kept.expand_as(out)[far])
    return bool(calls)


OF_EDITS: dict[str, Callable[[Case, dict[str, tuple[Any, ...]]], bool]] = {
    property_.__name__: property_ for property_ in (rerun, empty, packed, alone, recorded, background, whole)
}
"""Properties of edits, by name; each says whether it applies."""
OF_INVERSIONS = {property_.__name__: property_ for property_ in (rerun, saved, pixels)}
ALL = {**OF_EDITS, **OF_INVERSIONS}


def check(case: Case) -> str:
    """Run a case and assert what must hold.

    Returns:
        "refused", "ran", or "held" where the case's property applied too.

    Raises:
        AssertionError: something does not hold.
    """
    before, outcome = left_on(case.world.model), "ran"
    try:
        made = case.run()
    except Exception as error:
        if not is_refusal(error):
            raise
        outcome = "refused"
    else:
        own = {call.name: made[call.name] for call in case.calls}
        wrong = not_finite(own)
        assert not wrong or not_finite(_stock(case)), f"not finite: {', '.join(wrong)}"
        models = [value for values in own.values() for value in values[:1] if hasattr(value, "model_options")]
        plans = [model.model_options["transformer_options"].get(KEY) for model in models]
        assert all(isinstance(plan, Plan | None) for plan in plans), "a run is left on a model"
        if not wrong and ALL[case.prop](case, made):
            outcome = "held"
    assert left_on(case.world.model) == before, "something is left on the model"
    return outcome


def _stock(case: Case) -> dict[str, Any]:
    """What the model makes without edits: where that is not finite, by half precision or guidance, no edit need be."""
    stock = case.changed(lambda call: None if call.node in {*METHODS_OFF, *NO_WINDOW, *LOOKING, *AFTER} else call)
    made = stock.run()
    return {call.name: made[call.name] for call in stock.calls}
