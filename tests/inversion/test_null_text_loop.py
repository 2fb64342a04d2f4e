"""The inner loop of null-text inversion on a network that is known in closed form."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from attention_edit.inversion.null_text import PAPER_GUIDANCE, NullTextInversion, optimise
from attention_edit.inversion.steps import alpha_of, ddim_step
from waits import Waits


class Linear:
    """A network whose noise is linear in z and text, in float64, so that everything about it is known."""

    def __init__(self, same=False):
        rng = torch.Generator().manual_seed(0)
        self.mix = torch.randn(12, 64, dtype=torch.float64, generator=rng) / 12
        self.text = torch.randn(2, 3, 4, dtype=torch.float64, generator=rng)
        self.text[1] /= 10  # so that the second image is nearer to its goal
        self.null = self.text.clone() if same else torch.zeros_like(self.text)
        self.z = torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=rng)
        self.sigmas = [4.0, 2.0, 1.0, 0.5]

    def noise(self, z, sigma, text):
        return 0.3 * z + (text.flatten(1) @ self.mix).view_as(z) / sigma

    def trajectory(self, guidance=1.0):
        visited = [self.z]
        for high, low in pairwise(self.sigmas):
            eps_u, eps_c = (self.noise(visited[-1], high, text) for text in (self.null, self.text))
            visited.append(ddim_step(visited[-1], eps_u + guidance * (eps_c - eps_u), alpha_of(high), alpha_of(low)))
        return visited

    def optimise(self, trajectory=None, states=None, images=slice(None), guidance=PAPER_GUIDANCE, **settings):
        trajectory = self.trajectory() if trajectory is None else trajectory
        text = self.text[images]
        return list(
            optimise(
                lambda z, sigma: self.noise(z, sigma, text),
                lambda z, sigma, states, chosen: self.noise(z, sigma, states),
                [z[images] for z in trajectory],
                (self.sigmas, 50, "eps"),
                (self.null if states is None else states)[images],
                NullTextInversion(**settings),
                guidance,
            )
        )


def test_agrees_with_the_official_loop_written_out():
    """Adam anew for each step, its rate, the pre-update stop: one image, by the definition of each."""
    net = Linear()
    ours = net.optimise(images=slice(0, 1), inner=6, early_stop=2e-3)
    trajectory, text = net.trajectory(), net.null[:1].clone()
    z, counts = net.z[:1], []
    for i, (high, low) in enumerate(pairwise(net.sigmas)):
        m = v = torch.zeros_like(text)
        eps_c = net.noise(z, high, net.text[:1])
        for j in range(6):
            text = text.detach().requires_grad_()
            eps_u = net.noise(z, high, text)
            landed = ddim_step(z, eps_u + 7.5 * (eps_c - eps_u), alpha_of(high), alpha_of(low))
            loss = torch.nn.functional.mse_loss(landed, trajectory[i + 1][:1])
            (g,) = torch.autograd.grad(loss, [text])
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            step = (m / (1 - 0.9 ** (j + 1))) / ((v / (1 - 0.999 ** (j + 1))).sqrt() + 1e-8)
            text = text.detach() - 1e-2 * (1 - i / 100) * step
            if loss < 2e-3 * (1 + 2 * i):
                break
        counts.append(j + 1)
        eps_u = net.noise(z, high, text)
        z = ddim_step(z, eps_u + 7.5 * (eps_c - eps_u), alpha_of(high), alpha_of(low))
        assert torch.allclose(ours[i].states, text, rtol=1e-9, atol=1e-12)
        assert torch.allclose(ours[i].z, z, rtol=1e-9, atol=1e-12)
    assert [len(step.losses) for step in ours] == counts


def test_the_default_rule_is_the_papers():
    settings = NullTextInversion()
    assert (PAPER_GUIDANCE, settings.inner, settings.keep_best, settings.warm_start) == (7.5, 10, False, False)
    assert settings.rate(0) == 1e-2 and settings.rate(49) == pytest.approx(5.1e-3)
    assert settings.bound(0) == 1e-5 and settings.bound(10) == pytest.approx(1e-5 + 2e-5 * 10)


def test_fewer_steps_follow_the_same_rule():
    """With 3 of 25 steps the second step is the paper's third."""
    net, seen = Linear(), []

    class Spy(NullTextInversion):
        def rate(self, i):
            seen.append(i)
            return super().rate(i)

    settings = Spy(inner=1)
    arguments = (net.trajectory(), (net.sigmas, 25, "eps"), net.null, settings)
    list(optimise(lambda z, s: net.noise(z, s, net.text), lambda z, s, t, _: net.noise(z, s, t), *arguments))
    assert seen == [0, 2, 4]


def test_no_updates_are_plain_guided_sampling():
    net = Linear()
    for step, z in zip(net.optimise(inner=0), net.trajectory(7.5)[1:], strict=True):
        assert torch.allclose(step.z, z, rtol=1e-12) and torch.equal(step.states, net.null)


def test_at_guidance_one_there_is_nothing_to_optimise():
    """The gradient is exactly zero, since the unconditional prediction has no weight."""
    for step in Linear().optimise(guidance=1.0, early_stop=0.0):
        assert torch.equal(step.states, Linear().null)


def test_a_text_that_already_lands_stays():
    net = Linear(same=True)
    for step in net.optimise():
        assert torch.equal(step.states, net.text) and max(step.final) < 1e-20


@pytest.mark.parametrize("learning_rate", [1e-2, 3.0])
def test_the_best_text_never_gets_worse(learning_rate):
    """With a rate at which Adam overshoots, too."""
    for step in Linear().optimise(keep_best=True, early_stop=0.0, learning_rate=learning_rate):
        for image in range(2):
            losses = [row[image] for row in step.losses]
            assert step.final[image] <= min(losses) <= losses[0]
    overshot = Linear().optimise(early_stop=0.0, learning_rate=3.0)
    assert any(step.final[0] > min(row[0] for row in step.losses) for step in overshot)


def test_images_of_a_batch_stop_alone():
    net = Linear()
    settings = {"inner": 8, "early_stop": 3e-3}
    both = net.optimise(**settings)
    alone = [net.optimise(images=slice(i, i + 1), **settings) for i in range(2)]
    for number, step in enumerate(both):
        for i in range(2):
            assert torch.allclose(step.states[i : i + 1], alone[i][number].states, rtol=1e-9)
    counts = [[len(step.losses) for step in one] for one in alone]
    assert counts[0] != counts[1]


@pytest.mark.parametrize("keep_best", [False, True])
def test_an_iteration_waits_for_the_device_once(keep_best):
    """Apart from a wait at the end of each step, and from Adam's reading of its step counter.

    PyTorch keeps the counter on the CPU, whatever the device of what is optimised (`capturable` is off).
    """
    found, of_adam = [], 1
    for inner in (2, 5):
        with Waits() as counted:
            steps = Linear().optimise(inner=inner, early_stop=0.0, keep_best=keep_best)
        assert [len(step.losses) for step in steps] == [inner] * 3
        found.append(counted.count)
    assert found[1] - found[0] == 3 * (5 - 2) * (1 + of_adam)


def test_a_gradient_that_is_not_finite_is_told():
    net = Linear()
    states = net.null.clone()
    states[1, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        net.optimise(states=states)
