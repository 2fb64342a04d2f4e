"""MAG-Edit's curve: what it shows of a run, in words and as a picture, and whose run that is."""

from __future__ import annotations

from attention_edit.attention.methods.mag.curve import Curve
from attention_edit.inversion.plot import line_plot
from mag_runs import guided, part


def test_each_run_keeps_its_own_curve(model, inversion):
    """Guidance Curve shows the run whose latent it is given, whichever came last."""
    one = part(iterations=1)
    ends = [guided(model, inversion, one, positive=seed) for seed in (2, 6)]
    first, second = (one.curve.of({"samples": end}).points for end in ends)
    assert first != second and second == one.curve.points
    assert Curve("blue").of(None).points == []


def test_a_curve_below_zero_stays_in_its_frame():
    low, high = line_plot([-0.5, -0.9], "", ""), line_plot([0.4, 0.0], "", "")
    red = [(plot[0, :, :, 0] - plot[0, :, :, 1] > 0.4).nonzero() for plot in (low, high)]
    assert len(red[0]) > 100 and red[0].amin(0).tolist()[1] == red[1].amin(0).tolist()[1]
    assert red[0][:, 0].max() <= red[1][:, 0].max()


def test_the_curve_shows_a_falling_loss_and_says_when_it_does_not_fall(model, inversion):
    good = part(iterations=4, curve=Curve("blue"))
    guided(model, inversion, good)
    for points in good.curve.steps:
        assert points[-1].loss < points[0].loss and points[-1].ratio > points[0].ratio
    assert good.curve.worked() and "did not work" not in good.curve.report() and "'blue'" in good.curve.report()
    assert good.curve.picture().shape == (1, 720, 640, 3)
    count = len(good.curve.points)
    guided(model, inversion, good)
    assert len(good.curve.points) == count, "a run adds to the one before"
    bad = Curve("blue")
    for i, ratio in enumerate((0.3, 0.2, 0.1)):
        bad.add(0, i, 1 - ratio, ratio)
    assert not bad.worked() and "did not work" in bad.report()
    assert "has run" in Curve("blue").report() and Curve().picture().shape == (1, 720, 640, 3)
