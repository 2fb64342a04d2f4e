"""Words of a prompt on the host's own tokenizers: every place is where the text encoder reads that word."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import demo_model
import pytest
import torch
from attention_edit.attention.words.prompt import Prompt, read_prompt
from attention_edit.nodes.prompt import PromptNode
from bundle.load import load_demo_model
from safetensors.torch import save_file

import nodes as host_nodes

WIDTHS = {"SD1": {"l": 768}, "SD2": {"h": 1024}, "SDXL": {"l": 768, "g": 1280}}
TOKENIZERS = {
    "SD1": comfy.sd1_clip.SD1Tokenizer,
    "SD2": comfy.text_encoders.sd2_clip.SD2Tokenizer,
    "SDXL": comfy.sdxl_clip.SDXLTokenizer,
}
FAMILIES = tuple(TOKENIZERS)
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of one and of three vectors for all families, and one for SD1.x alone."""
    folder = tmp_path_factory.mktemp("embeddings")
    rng = torch.Generator().manual_seed(0)
    for name, count in (("one", 1), ("three", 3)):
        widths = {"clip_l": 768, "clip_g": 1280, "clip_h": 1024}
        save_file({k: torch.randn(count, w, generator=rng) for k, w in widths.items()}, folder / f"{name}.safetensors")
    save_file({"emb_params": torch.randn(2, 768, generator=rng)}, folder / "small.safetensors")
    return folder


class Clip:
    """A family's real tokenizer with text encoders of which only the width is known."""

    def __init__(self, family: str, embeddings: Path) -> None:
        self.tokenizer = TOKENIZERS[family](embedding_directory=str(embeddings))
        self.cond_stage_model = SimpleNamespace(
            **{f"clip_{name}": self._encoder(width) for name, width in WIDTHS[family].items()}
        )

    @staticmethod
    def _encoder(width: int) -> Any:
        table = SimpleNamespace(weight=torch.empty(1, width))
        return SimpleNamespace(transformer=SimpleNamespace(get_input_embeddings=lambda: table))

    def tokenize(self, text: str, return_word_ids: bool = False) -> Any:
        return self.tokenizer.tokenize_with_weights(text, return_word_ids)


@pytest.fixture(scope="module")
def clips(embeddings: Path) -> dict[str, Clip]:
    return {family: Clip(family, embeddings) for family in FAMILIES}


def spelled(clip: Clip, prompt: Prompt, positions: tuple[int, ...]) -> str:
    """What the host itself says that stands at some positions: its vocabulary's entries, joined."""
    name = prompt.tokenizer.encoder
    flat = [value for chunk in clip.tokenize(prompt.text)[name] for value, _ in chunk]
    vocabulary = getattr(clip.tokenizer, f"clip_{name}").inv_vocab
    return "".join(vocabulary[flat[p]] for p in positions).replace("</w>", " ").strip()


@every_family
@pytest.mark.parametrize(
    ("text", "phrase", "count"),
    [
        ("a red car", "car", 1),
        ("a (red:1.2) car", "red", 1),
        ("a (red:1.2) car", "red car", 1),
        ("a ((red) car:1.3), blue", "red car", 1),
        ("a   red\n car", "red car", 1),
        ("A RED Car.", "red CAR", 1),
        ("a carpet in a car", "car", 1),
        ("bobcatting cat", "cat", 1),
        ("red car and red car", "red car", 2),
        ("the the the", "the the", 1),
        ("a catterpillar eats", "catterpillar", 1),
        ("a t-shirt", "t-shirt", 1),
        ("a smile \\(happy\\)", "(happy)".replace("(", "\\(").replace(")", "\\)"), 1),
        ("cat's bowl", "cat", 1),
        ("caf\u00e9 noir", "cafe\u0301", 1),
        ("\u7ea2\u8272 car", "\u7ea2\u8272", 1),
        ("a BREAK b", "break b", 1),
        ("robots, (3d:1.1) art", "3d art", 1),
    ],
)
def test_finds_words(family: str, text: str, phrase: str, count: int, clips: dict[str, Clip]) -> None:
    prompt = read_prompt(clips[family], text)
    found = prompt.occurrences(phrase)
    assert len(found) == count
    alone = read_prompt(clips[family], phrase)
    wanted = spelled(clips[family], alone, alone.content)
    assert all(spelled(clips[family], prompt, positions) == wanted for positions in found)
    assert prompt.find(phrase) == tuple(p for positions in found for p in positions)
    assert all(prompt.find(phrase, i + 1) == positions for i, positions in enumerate(found))


@every_family
@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("a carpet", "car"),
        ("10 cats", "1"),
        ("123 cats", "23"),
        ("bobcat", "cat"),
        ("a red car", "blue"),
        ("a red, car", "red car"),
        ("cat(s:1.2)", "cat"),
        ("", "cat"),
    ],
)
def test_names_the_words_where_one_is_missing(family: str, text: str, phrase: str, clips: dict[str, Clip]) -> None:
    prompt = read_prompt(clips[family], text)
    with pytest.raises(ValueError, match=r"is not in the prompt\. Its words are") as caught:
        prompt.find(phrase)
    assert all(word in str(caught.value) for word in prompt.words)


def test_a_number_and_a_word_with_a_change_of_weight_are_one_word(clips: dict[str, Clip]) -> None:
    prompt = read_prompt(clips["SD1"], "123 cat(s:1.2), 4 5")
    assert prompt.words == ("123", "cats", ",", "4", "5")
    assert [len(prompt.find(word)) for word in prompt.words] == [3, 2, 1, 1, 1]


def test_occurrence_out_of_range(clips: dict[str, Clip]) -> None:
    prompt = read_prompt(clips["SD1"], "a cat and a dog")
    assert prompt.find("a", 1) == (1,)
    assert prompt.find("a", 2) == (4,)
    for wrong in (0, 3):
        with pytest.raises(ValueError, match=rf"'a' stands 2 time\(s\) .* occurrence {wrong}"):
            prompt.find("a", wrong)
    with pytest.raises(ValueError, match="Name a word of the prompt: a, cat, and, dog"):
        prompt.find("  ")


@every_family
def test_embeddings(family: str, clips: dict[str, Clip]) -> None:
    prompt = read_prompt(clips[family], "a embedding:three, in (embedding:one:1.4) style, embedding:three end")
    three = prompt.find("embedding:three")
    assert len(three) == 6
    assert prompt.find("embedding:three", 1) == (2, 3, 4)
    assert all(prompt.tokens[p].id is None for p in three)
    one = prompt.find("embedding:one")
    assert [prompt.tokens[p].weight for p in one] == [1.4]
    assert prompt.ids[three[0]] == prompt.ids[three[3]] < 0
    assert len({prompt.ids[p] for p in (*three[:3], *one)}) == 4
    assert "embedding:three" in prompt.words
    assert prompt.find("in embedding:one style") == (one[0] - 1, one[0], one[0] + 1)
    with pytest.raises(ValueError, match="embedding:three"):
        prompt.find("three")


@every_family
def test_an_embedding_that_is_not_there(family: str, clips: dict[str, Clip]) -> None:
    """The host leaves it out; the words behind it are where the encoder reads them."""
    prompt = read_prompt(clips[family], "a embedding:none red embedding:one car")
    assert spelled(clips[family], prompt, prompt.find("red")) == "red"
    assert prompt.find("car") == (4,)
    assert prompt.find("embedding:one") == (3,)


def test_an_embedding_of_another_family(clips: dict[str, Clip]) -> None:
    read_prompt(clips["SD1"], "embedding:small")
    for family, width in (("SD2", 1024), ("SDXL", 1280)):
        with pytest.raises(ValueError, match=f"vectors of 768 numbers.*takes {width}"):
            read_prompt(clips[family], "embedding:small")


@every_family
def test_long_prompts(family: str, clips: dict[str, Clip]) -> None:
    """Positions go on in the second and third part; words do not leave a gap where a part ends."""
    text = " ".join(f"cat{'s' * (i % 2)} dog," for i in range(60)) + " a (last:1.1) catterpillar"
    prompt = read_prompt(clips[family], text)
    assert prompt.length == 77 * 3
    cats = prompt.occurrences("cat dog")
    assert len(cats) == 30
    assert any(b - a > 1 for a, b in cats) or any(p > 77 for pair in cats for p in pair)
    assert all(spelled(clips[family], prompt, pair) == "cat dog" for pair in cats)
    assert prompt.find("catterpillar")[0] > 154


@every_family
def test_content_is_all_but_begin_end_and_padding(family: str, clips: dict[str, Clip]) -> None:
    """SD2.x and SDXL pad with the id of an exclamation mark, which is a word only where it was written."""
    prompt = read_prompt(clips[family], "stop! now")
    assert prompt.content == (1, 2, 3)
    assert len(prompt.ids) == prompt.length == 77
    assert (prompt.ids[0], prompt.ids[4]) == (49406, 49407)
    assert prompt.find("!") == (2,)
    assert read_prompt(clips[family], "").content == ()


def test_both_encoders_of_sdxl_agree(clips: dict[str, Clip]) -> None:
    text = "a (red:1.2)  embedding:three CAR, " + "word " * 80 + "end"
    chunks = clips["SDXL"].tokenize(text, True)
    prompt = read_prompt(clips["SDXL"], text)
    for name in ("l", "g"):
        flat = [value for chunk in chunks[name] for value, *_ in chunk]
        assert [flat[p] for p in prompt.find("car")] == [1615]
        assert [torch.is_tensor(flat[p]) for p in prompt.find("embedding:three")] == [True] * 3


def test_another_kind_of_text_encoder() -> None:
    other = SimpleNamespace(tokenize=lambda text, return_word_ids: {"t5xxl": []}, tokenizer=SimpleNamespace())
    with pytest.raises(ValueError, match="this CLIP has t5xxl"):
        read_prompt(other, "a cat")


@pytest.fixture(scope="module")
def demo_clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(demo_model.random_model(["a red circle on a blue background"]), path)
    return load_demo_model(path)[1]


@pytest.mark.parametrize("text", ["a red circle", "", "a (red:1.3)  circle on " + "a blue background " * 40])
def test_the_node_encodes_as_the_host(text: str, demo_clip: Any) -> None:
    with torch.inference_mode():
        ours, prompt = PromptNode.execute(demo_clip, text).args
        theirs = host_nodes.CLIPTextEncode().encode(demo_clip, text)[0]
    assert torch.equal(ours[0][0], theirs[0][0])
    assert torch.equal(ours[0][1]["pooled_output"], theirs[0][1]["pooled_output"])
    assert ours[0][1].keys() == theirs[0][1].keys()
    assert prompt.length == ours[0][0].shape[1]


def test_a_words_states_are_at_its_positions(demo_clip: Any) -> None:
    """A change of one word changes no states ahead of it, and its own: the encoder looks backwards only."""
    states = {}
    with torch.inference_mode():
        for colour in ("red", "blue"):
            encoded, prompt = PromptNode.execute(demo_clip, f"a circle on a {colour} background").args
            states[colour] = encoded[0][0][0]
    place = prompt.find("blue")[0]
    differs = (states["red"] - states["blue"]).abs().amax(1) > 1e-6
    assert not differs[:place].any()
    assert differs[place]


def test_no_clip() -> None:
    with pytest.raises(ValueError, match="no text encoder"):
        PromptNode.execute(None, "a cat")
