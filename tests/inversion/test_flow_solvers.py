"""Solvers of rectified flows: their order, what they evaluate, and what their inversions are worth to edits."""

from __future__ import annotations

import logging
from itertools import pairwise
from math import log, log2, pi

import comfy.model_management
import edits
import folder_paths
import pytest
import tiny
import tiny_joint
import torch
from attention_edit.attention.methods.background import ExactBackground
from attention_edit.inversion import cache, report
from attention_edit.inversion.ddim_inversion import DDIMInversion
from attention_edit.inversion.direct import DirectInversion
from attention_edit.inversion.file_format import read, write
from attention_edit.inversion.fixed_point import FixedPointInversion
from attention_edit.inversion.flow_solvers import (
    FIREFLOW,
    FLOW_SOLVERS,
    RF_SOLVER,
    UNI_INV,
    euler_step,
    solve,
)
from attention_edit.inversion.reconstruct import reconstruct
from attention_edit.inversion.steps import invert
from attention_edit.inversion.walk import run_walk
from tiny_joint import joint_inversion, joint_latent, joint_model, joint_prompt, joint_run

SOLVERS = pytest.mark.parametrize("solver", list(FLOW_SOLVERS.values()), ids=list(FLOW_SOLVERS))
SECOND = pytest.mark.parametrize("solver", [RF_SOLVER, FIREFLOW], ids=["RF-Solver", "FireFlow"])
BETWEEN = 1.5
"""Between Euler's order, 1, and theirs, 2."""
TURN = torch.tensor([[0.2, -1.1], [0.9, -0.4]], dtype=torch.float64)
PUSH = torch.tensor([0.5, -0.3], dtype=torch.float64)


class Linear:
    """A linear flow v(x, sigma) = A x + sigma b of two channels, which counts its evaluations."""

    def __init__(self):
        self.told = []

    def __call__(self, x, sigma):
        self.told.append(sigma)
        return torch.einsum("ij,bjhw->bihw", TURN, x) + sigma * PUSH[:, None, None]

    @staticmethod
    def exact(x):
        """x at sigma 1 of the x at 0: the flow of (x, sigma, 1), which is linear without a push, as a matrix power."""
        whole = torch.zeros(4, 4, dtype=torch.float64)
        whole[:2, :2], whole[:2, 2], whole[2, 3] = TURN, PUSH, 1.0
        state = torch.cat([x, torch.zeros_like(x[:, :1]), torch.ones_like(x[:, :1])], dim=1)
        return torch.einsum("ij,bjhw->bihw", torch.linalg.matrix_exp(whole), state)[:, :2]


def start():
    return torch.randn(1, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def even(steps):
    return [i / steps for i in range(steps + 1)]


def order(errors):
    """The power of the step with which an error falls, of errors at twice as many steps each."""
    return min(log2(one / half) for one, half in pairwise(errors))


def far(a, b):
    return float((a - b).norm() / b.norm())


@SECOND
def test_second_order_towards_the_flow_itself(solver):
    found = [far(solve(solver.invert, Linear(), start(), even(n))[-1], Linear.exact(start())) for n in (16, 32, 64)]
    euler = [far(solve(euler_step, Linear(), start(), even(n))[-1], Linear.exact(start())) for n in (16, 32, 64)]
    assert order(found) > BETWEEN > max(log2(one / half) for one, half in pairwise(euler))
    assert max(found) < min(euler)


@SOLVERS
def test_its_own_sampling_takes_it_back_to_second_order(solver):
    def there_and_back(step, steps):
        noise = solve(step, Linear(), start(), even(steps))[-1]
        return far(solve(solver.sample, Linear(), noise, even(steps)[::-1])[-1], start())

    found = [there_and_back(solver.invert, n) for n in (16, 32, 64)]
    assert order(found) > BETWEEN


def test_euler_takes_back_ddims_way_to_first_order():
    errors = []
    for n in (16, 32, 64):
        noise = invert(Linear(), start(), even(n), "flow")[-1]
        errors.append(far(solve(euler_step, Linear(), noise, even(n)[::-1])[-1], start()))
    assert max(log2(one / half) for one, half in pairwise(errors)) < BETWEEN


def test_rf_solver_is_the_midpoint_rule():
    flow, sigmas = Linear(), [0.2, 0.3, 0.6, 1.0]
    x = start()
    for low, high in pairwise(sigmas):
        x = x + (high - low) * flow(x + (high - low) / 2 * flow(x, low), (low + high) / 2)
    assert torch.allclose(solve(RF_SOLVER.invert, Linear(), start(), sigmas)[-1], x, rtol=1e-12)


def test_fireflow_and_uni_inv_written_out():
    """FireFlow's half step has the velocity of the middle before; Uni-Inv's prediction that of the step before."""
    flow, sigmas = Linear(), [0.2, 0.3, 0.6, 1.0]
    x, v = start(), flow(start(), 0.2)
    y, w = start(), torch.zeros_like(start())
    for low, high in pairwise(sigmas):
        h = high - low
        v = flow(x + h / 2 * v, (low + high) / 2)
        w = flow(y + h * w, high)
        x, y = x + h * v, y + h * w
    assert torch.allclose(solve(FIREFLOW.invert, Linear(), start(), sigmas)[-1], x, rtol=1e-12)
    assert torch.allclose(solve(UNI_INV.invert, Linear(), start(), sigmas)[-1], y, rtol=1e-12)


@SOLVERS
def test_evaluations_are_as_planned_and_none_is_at_the_image(solver):
    """At sigma 0 the host's prediction holds no velocity."""
    flow = Linear()
    solve(solver.invert, flow, start(), even(7))
    assert len(flow.told) == solver.calls(7) == {"RF-Solver": 14, "FireFlow": 8, "Uni-Inv": 7}[solver.name]
    assert min(flow.told) > 0


def inverted(model, solver, kind="SD3", steps=4, batch=1):
    with torch.inference_mode():
        given = {"samples": joint_latent(1, kind, batch)}, joint_prompt(5, kind)
        return DDIMInversion(steps, flow_solver=solver.name)(model, *given)


def calm_model(kind):
    """Random weights whose answer changes as gently with sigma as a trained model's.

    Of the sinusoids of 1000 sigma that a network reads, the quick ones turn within a thousandth; random weights take
    them as they come.
    """
    model = joint_model(kind)
    network = model.model.diffusion_model
    weight = network.t_embedder.mlp[0].weight if kind == "SD3" else network.time_in.in_layer.weight
    half = weight.shape[1] // 2
    turns = 1000 * torch.exp(-log(10000) * torch.arange(half) / half)
    weight.data[:, torch.cat([turns, turns]) > pi] = 0.0
    return model


@SECOND
@pytest.mark.parametrize("kind", ["SD3", "Flux"])
def test_second_order_on_the_host(solver, kind):
    """Of tiny random networks, against far finer steps on the same way."""
    model = calm_model(kind)
    latent, prompt = joint_latent(1, kind), joint_prompt(5, kind, guidance=1.0)
    exact = _on_the_host(model, RF_SOLVER.invert, latent, prompt, 64)
    found = [far(_on_the_host(model, solver.invert, latent, prompt, n), exact) for n in (8, 16)]
    euler = [far(_on_the_host(model, euler_step, latent, prompt, n), exact) for n in (8, 16)]
    assert order(found) > BETWEEN > order(euler)


def _on_the_host(model, step, latent, prompt, steps):
    """The noise of a latent along evenly spaced levels."""

    def walk(predict, x):
        return solve(step, predict, x, even(steps))

    with torch.inference_mode():
        return run_walk(model, walk, latent, even(steps), positive=prompt, negative=None, guidance=1.0)[-1]


@SOLVERS
def test_it_is_counted_logged_and_shown(solver, caplog, monkeypatch):
    steps = []
    monkeypatch.setattr("latent_preview.prepare_callback", lambda *_: lambda step, *_: steps.append(step))
    with caplog.at_level(logging.INFO):
        found = inverted(joint_model("SD3"), solver, steps=4, batch=2)
    rows = 2 * solver.calls(4)
    assert found.cost.forward == rows
    assert f"plans {rows} UNet evaluations" in caplog.text
    assert f"DDIM inversion: {rows} UNet evaluations" in caplog.text
    assert found.inversion.describe().startswith(f"{solver.name} inversion, 4 steps")
    assert sorted(set(steps)) == [0, 1, 2, 3] and steps == sorted(steps)


def test_it_is_cancelled_between_evaluations(monkeypatch):
    asked = []

    def interrupt():
        asked.append(True)
        if len(asked) > 3:
            raise comfy.model_management.InterruptProcessingException

    model = joint_model("SD3")
    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", interrupt)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            inverted(model, FIREFLOW)
    assert inverted(model, FIREFLOW).inversion.batch == 1


@SOLVERS
def test_a_file_holds_it_and_the_cache_finds_it(solver, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    model = joint_model("SD3")
    origin = DDIMInversion(4, flow_solver=solver.name)
    given = model, {"samples": joint_latent(1, "SD3")}, joint_prompt(5, "SD3"), True
    with torch.inference_mode():
        first, again = (report.begun(origin, *given) for _ in range(2))
        report.begun(DDIMInversion(4), *given)
    assert torch.equal(first.latents, again.latents)
    assert len(list(cache.entries_folder().iterdir())) == 2, "another solver's inversion is another entry"
    write(first, tmp_path / "flow.safetensors")
    held = read(tmp_path / "flow.safetensors", "flow")
    assert torch.equal(held.latents, first.latents) and held.method == f"{solver.name} inversion"


@SOLVERS
def test_the_source_is_replayed_exactly(solver):
    """Edits read the trajectory by sigma: at each level it is the stored latent, and so is what an edit keeps."""
    model = joint_model("SD3")
    inversion = inverted(model, solver).inversion
    for i, sigma in enumerate(inversion.sigmas):
        assert torch.equal(inversion.at(sigma), inversion.latents[i])
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    assert torch.equal(
        image, model.get_model_object("latent_format").process_out(joint_inversion(model, "SD3").latents[0])
    )
    left = torch.zeros(1, 64, 64, dtype=torch.bool)
    left[..., :32] = True
    out = joint_run(model, inversion, ExactBackground(left), kind="SD3")
    assert torch.equal(out[..., 4:], image[..., 4:])
    assert edits.difference(out[..., :4], image[..., :4]) > 1e-3
    same = DirectInversion()(model, inversion, joint_prompt(3, "SD3"), 1.0).inversion
    assert torch.equal(same.latents, inversion.latents)


def test_uni_inv_is_nearer_to_euler_than_ddims_way():
    model = calm_model("SD3")
    with torch.inference_mode():
        plain = reconstruct(model, joint_inversion(model, "SD3", steps=12, iterations=1), 1.0, None).errors[-1]
        found = inverted(model, UNI_INV, steps=12).inversion
        better = reconstruct(model, found, 1.0, None).errors[-1]
        fixed = FixedPointInversion(iterations=12)(model, found, None, 1.0).inversion
        best = reconstruct(model, fixed, 1.0, None).errors[-1]
    assert best < better < plain


@SECOND
def test_samplers_of_second_order_take_it_back_better_than_euler(solver):
    model = calm_model("SD3")
    inversion = inverted(model, solver, steps=12).inversion
    image = model.get_model_object("latent_format").process_out(inversion.latents[0])
    start, sigmas = torch.zeros_like(image), torch.tensor(inversion.schedule)
    errors = {}
    for sampler in ("euler", "heun", "dpm_2"):
        given = model, inversion.conditioning, inversion.conditioning, start, inversion.latents[-1], sigmas
        errors[sampler] = far(tiny_joint.joint_sample(*given, sampler=sampler), image)
    assert max(errors["heun"], errors["dpm_2"]) < errors["euler"]


@SOLVERS
def test_a_unet_is_refused_by_name(solver):
    given = tiny.tiny_model(), {"samples": tiny.latent(1)}, tiny.prompt(1)
    with pytest.raises(ValueError, match=rf"Set DDIM inversion's flow_solver.*{solver.name}.*predicts eps"):
        DDIMInversion(4, flow_solver=solver.name)(*given)


def test_an_unknown_solver_is_told_which_there_are():
    given = calm_model("SD3"), {"samples": joint_latent(1, "SD3")}, joint_prompt(5, "SD3")
    with pytest.raises(ValueError, match="Choose one of Euler, fixed point, RF-Solver, FireFlow, Uni-Inv"):
        DDIMInversion(4, flow_solver="Heun")(*given)
