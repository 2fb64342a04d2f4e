"""Learned words lie in the source prompt's conditioning, and go with an inversion wherever it goes."""

from __future__ import annotations

import json
from dataclasses import replace

import comfy.conds
import folder_paths
import pytest
import tiny
import torch
from attention_edit.host.conditioning import at_step
from attention_edit.host.marks import STATES
from attention_edit.inversion import file_format, store
from attention_edit.inversion.fingerprint import Digest
from attention_edit.inversion.learned import LearnedText, learned_text
from attention_edit.inversion.negative_prompt import NegativePromptInversion
from attention_edit.inversion.record import Inversion
from safetensors.torch import save

TOKENS = (49406, 320, -5, *[49407] * 74)


def record() -> Inversion:
    return Inversion(torch.randn(3, 2, 4, 8, 8), (0.03, 0.5, 2.0), 3, 0, "SDXL", "eps", tiny.prompt(3, "SDXL"))


def text() -> LearnedText:
    vectors = {"l": torch.randn(2, 2, 1, 8), "g": torch.randn(2, 2, 1, 8)}
    return LearnedText(torch.randn(2, 2, 77, tiny.CONTEXT), TOKENS, (2,), vectors)


def same(a: LearnedText | None, b: LearnedText) -> bool:
    assert a is not None and a.vectors.keys() == b.vectors.keys()
    equal = torch.equal(a.states, b.states) and all(torch.equal(a.vectors[k], b.vectors[k]) for k in b.vectors)
    return equal and (a.tokens, a.positions) == (b.tokens, b.positions)


def test_what_is_put_on_is_found_again():
    plain, learned = record().conditioning, text()
    found = learned.put_on(plain)
    assert same(learned_text(found), learned)
    assert torch.equal(found[0][0], plain[0][0]) and torch.equal(
        found[0][1]["pooled_output"], plain[0][1]["pooled_output"]
    )
    assert learned_text(plain) is None and STATES not in plain[0][1]


def test_files_keep_it(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    learned, plain = text(), record()
    saved = replace(plain, conditioning=learned.put_on(plain.conditioning))
    assert same(learned_text(store.load(store.save(saved, "photo").name).conditioning), learned)
    assert learned_text(store.load(store.save(plain, "photo").name).conditioning) is None


OPTION = "conditioning.0.option.attention_edit_"


def changed(name: str, value: torch.Tensor | None, version: str = "3") -> bytes:
    """A file whose learned text is another, with the checksum that goes with it; None takes a tensor out."""
    plain = record()
    fields, tensors = file_format._pack(replace(plain, conditioning=text().put_on(plain.conditioning)))
    tensors = {key: part for key, part in {**tensors, f"{OPTION}{name}": value}.items() if part is not None}
    held = {"format": file_format.FORMAT, "version": version, "inversion": json.dumps(fields)}
    if version == "3":
        held["checksum"] = file_format._checksum(held, tensors)
    return save(tensors, held)


WRONG = {
    "no states": ("states", None, "missing"),
    "no tokens": ("tokens", None, "missing"),
    "states of another length": ("states", torch.zeros(2, 2, 76, tiny.CONTEXT), r"of shape \(2, 2, 76"),
    "states of other steps": ("states", torch.zeros(3, 2, 77, tiny.CONTEXT), r"of shape \(3, 2"),
    "half states": ("states", torch.zeros(2, 2, 77, tiny.CONTEXT).half(), "of type F16"),
    "states that are not finite": ("states", torch.full((2, 2, 77, tiny.CONTEXT), torch.nan), "holds nan"),
    "float tokens": ("tokens", torch.zeros(77), "of type F32"),
    "too few tokens": ("tokens", torch.zeros(4, dtype=torch.long), r"of shape \(4,\)"),
    "places outside": ("positions", torch.tensor([77]), "places from 0 to 76"),
    "places below": ("positions", torch.tensor([-1]), "places from 0 to 76"),
    "more places than vectors": ("positions", torch.tensor([2, 3]), "vectors"),
    "vectors of another batch": ("vectors_l", torch.zeros(2, 3, 1, 8), r"of shape \(2, 3"),
    "vectors that are not finite": ("vectors_g", torch.full((2, 2, 1, 8), torch.inf), "holds inf"),
    "an unknown encoder": ("vectors_t5", torch.zeros(2, 2, 1, 8), "unknown to this version"),
}


@pytest.mark.parametrize("version", ["1", "2", "3"])
@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_was_changed_is_refused(tmp_path, case, version):
    name, value, told = WRONG[case]
    path = tmp_path / "odd.safetensors"
    path.write_bytes(changed(name, value, version))
    with pytest.raises(ValueError, match=f"not a whole inversion file.*{told}"):
        file_format.read(path, path.name)


def test_values_that_were_changed_do_not_go_with_the_checksum(tmp_path):
    data = changed("positions", torch.tensor([3]))
    path, (start, end) = tmp_path / "odd.safetensors", (8 + int.from_bytes(data[:8], "little"), len(data))
    path.write_bytes(data)
    assert learned_text(file_format.read(path, path.name).conditioning).positions == (3,)
    place = start + json.loads(data[8:start])[f"{OPTION}positions"]["data_offsets"][0]
    path.write_bytes(data[:place] + b"\x04" + data[place + 1 : end])
    with pytest.raises(ValueError, match="checksum"):
        file_format.read(path, path.name)


def test_a_null_text_made_of_the_prompt_leaves_the_learned_words(tmp_path):
    plain = record()
    learned = replace(plain, conditioning=text().put_on(plain.conditioning))
    found = NegativePromptInversion()(None, learned, None, 1.0).inversion
    assert not [key for key in found.null_options if key.startswith("attention_edit")]
    file_format.write(found, tmp_path / "kept.safetensors")
    again = file_format.read(tmp_path / "kept.safetensors", "kept")
    assert learned_text(again.conditioning) is not None and again.null_options.keys() == found.null_options.keys()


def test_the_cache_tells_inversions_with_other_learned_words_apart():
    plain, names = record(), set()
    for conditioning in (plain.conditioning, text().put_on(plain.conditioning), text().put_on(plain.conditioning)):
        names.add(Digest().add(replace(plain, conditioning=conditioning)).name())
    assert len(names) == 3


def test_each_step_has_its_own_states():
    learned = text()
    ((states, options),) = learned.put_on(tiny.prompt(3))
    cond = {**options, "uuid": 7, "model_conds": {"c_crossattn": comfy.conds.CONDCrossAttn(states)}}
    other = {"model_conds": {"c_crossattn": comfy.conds.CONDCrossAttn(states)}}
    for number in range(2):
        first, second = at_step([cond, other], number)
        assert torch.equal(first["model_conds"]["c_crossattn"].cond, learned.states[number]) and first["uuid"] == 7
        assert second is other
    for wrong, number in ((cond, 2), ({**cond, STATES: learned.states[:, :, :5]}, 0)):
        with pytest.raises(ValueError, match="prompt with learned words holds 2 steps"):
            at_step([wrong], number)


def test_the_pair_of_levels_at_a_sigma():
    inversion = record()
    pairs = {2.0: 1, 1.0: 1, 0.5: 0, 0.1: 0, 0.03: 0}
    assert {sigma: inversion.pair(sigma) for sigma in pairs} == pairs
