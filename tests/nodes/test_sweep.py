"""Sweep and Comparison Grid, and the text fields that hold words with numbers."""

from __future__ import annotations

import pytest
import torch
from attention_edit.attention.pictures.grid import LABEL_HEIGHT, comparison_grid
from attention_edit.attention.words.lines import split_words, word_weights, word_windows
from attention_edit.nodes.sweep import GridNode, SweepNode


def test_values() -> None:
    numbers, texts = SweepNode.execute("0, 0.4,0.8 ,").args
    assert numbers == [0.0, 0.4, 0.8] and texts == ["0", "0.4", "0.8"]
    numbers, texts = SweepNode.execute("2-12, 3-13").args
    assert numbers == [] and texts == ["2-12", "3-13"]
    with pytest.raises(ValueError, match="no values"):
        SweepNode.execute(" , ")


def test_grid() -> None:
    """Pictures in rows with room for a label above each; a smaller one is enlarged."""
    red, blue = torch.zeros(8, 12, 3), torch.zeros(4, 6, 4)
    red[..., 0], blue[..., 2] = 1, 1
    made = comparison_grid([red, blue, red], ["a", "b", "c"], 2)
    assert made.shape == (1, 2 * (8 + LABEL_HEIGHT), 24, 3)
    assert torch.equal(made[0, LABEL_HEIGHT : LABEL_HEIGHT + 8, :12], red)
    assert torch.equal(made[0, LABEL_HEIGHT : LABEL_HEIGHT + 8, 12:], torch.tensor([0.0, 0, 1]).expand(8, 12, 3))
    assert torch.equal(made[0, -8:, :12], red) and bool((made[0, -8:, 12:] == 1).all())
    assert comparison_grid([red] * 3, ["a"] * 3, 0).shape == (1, 8 + LABEL_HEIGHT, 36, 3)
    with pytest.raises(ValueError, match="2 pictures and 1 labels"):
        comparison_grid([red, red], ["a"], 0)


def test_a_batch_per_run_shares_its_label() -> None:
    made = GridNode.execute([torch.zeros(2, 8, 8, 3)] * 2, ["0", "1"], ["end"], [2]).args[0]
    assert made.shape == (1, 2 * (8 + LABEL_HEIGHT), 16, 3)


def test_weights_and_windows() -> None:
    assert word_weights("red: 2\n\n cat#2 : -0.5\nembedding:name:1.5") == [
        ("red", 2.0),
        ("cat#2", -0.5),
        ("embedding:name", 1.5),
    ]
    assert word_windows("red: 0-0.4\nblue car: .1 - 1") == [("red", 0.0, 0.4), ("blue car", 0.1, 1.0)]
    assert word_weights("") == word_windows(" \n") == []
    assert split_words("a cat,, dog ,") == ["a cat", "dog"]
    for line in ("red", "red: much", "red: 0-0.4"):
        with pytest.raises(ValueError, match="no word with a factor"):
            word_weights(line)
    for factor in ("65505", "-9999999", "9" * 400):
        with pytest.raises(ValueError, match=r"^Give 'red' a factor from -65504 to 65504"):
            word_weights(f"red: {factor}")
    for line in ("red", "red: 2"):
        with pytest.raises(ValueError, match="no word with a window"):
            word_windows(line)
    with pytest.raises(ValueError, match="from 0 to 1"):
        word_windows("red: 0.4-0.2")
