"""Training the demo model: a few steps from nothing, stopped and gone on with, to a file that the pack loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bundle import load
from training import training

TINY = ["--autoencoder-steps", "1", "--steps", "8", "--batch", "2", "--autoencoder-batch", "2", "--scenes", "4"]


@pytest.mark.measure
def test_trains_stops_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STATE", tmp_path / "state")
    shares = []
    draw = training.data.draw
    monkeypatch.setattr(
        training.data, "draw", lambda *given, put_right: shares.append(put_right) or draw(*given, put_right=put_right)
    )
    made = tmp_path / "model.safetensors"
    training.main([*TINY, "--output", str(made), "--stop-after", "0"])
    assert not made.exists(), "an unfinished model takes the finished one's place"
    training.main([*TINY, "--output", str(made)])
    # Drawing is learned first, putting right in the last steps.
    assert shares == [False] * 7 + [True]
    model, clip, vae = load.load_demo_model(made)
    assert torch.isfinite(vae.decode(torch.zeros(1, 4, 16, 16))).all()
    assert clip.tokenize("a red circle") and model.model_size() > 0
