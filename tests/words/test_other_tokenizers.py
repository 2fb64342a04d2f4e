"""Words by the tokenizers of transformers: T5, and language models with their templates; rows as the encoders give."""

from __future__ import annotations

import comfy.text_encoders.qwen_image
import comfy.text_encoders.z_image
import pytest
import torch
from attention_edit.attention.words.alignment import align_refined, align_swapped, factors, find_word
from attention_edit.attention.words.prompt import Prompt, read_prompt
from other_texts import SMALL, TEMPLATED, TOKENIZERS, OtherClip, read, tokenizer

KINDS = pytest.mark.parametrize("kind", list(TOKENIZERS))
WEIGHED = [kind for kind in TOKENIZERS if kind not in TEMPLATED]


def decoded(kind: str, prompt: Prompt, positions: tuple[int, ...]) -> str:
    """What the tokenizer itself makes of the tokens at some positions of its own part."""
    host = tokenizer(kind)
    own = next(
        getattr(host, n) for n in ("t5xxl", "clip_t5xxl", "qwen3_4b", "qwen25_7b", "gemma2_2b") if hasattr(host, n)
    )
    last = max(token.encoder for token in prompt.tokens)
    keys = [prompt.ids[p] for p in positions if prompt.tokens[p].encoder == last]
    return own.tokenizer.decode(keys).strip()


@KINDS
@pytest.mark.parametrize(
    ("text", "phrase", "count"),
    [
        ("a red car", "car", 1),
        ("A RED Car.", "red CAR", 1),
        ("a carpet in a car", "car", 1),
        ("red car and red car", "red car", 2),
        ("a catterpillar eats", "catterpillar", 1),
        ("cat's bowl", "cat", 1),
        ("a   red\n car", "red car", 1),
        ("caf\u00e9 noir", "cafe\u0301", 1),
        ("two red pandas, playing", "pandas", 1),
        ("in 2024 a (red) car", "2024", 1),
    ],
)
def test_finds_words(kind, text, phrase, count):
    prompt = read(kind, text)
    found = prompt.occurrences(phrase)
    assert len(found) == count
    words = phrase.replace("e\u0301", "\u00e9").lower().split()
    for number, positions in enumerate(found):
        assert decoded(kind, prompt, positions).lower().split() == words
        assert find_word(prompt, f"{phrase}#{number + 1}") == positions


@KINDS
def test_a_word_of_several_tokens(kind):
    prompt = read(kind, "a pelargonium on a mat")
    own = [p for p in prompt.find("pelargonium") if prompt.tokens[p].encoder == prompt.tokens[-1].encoder]
    assert len(own) > 1 and own == list(range(own[0], own[-1] + 1))


@KINDS
@pytest.mark.parametrize(
    ("text", "phrase"), [("a carpet", "car"), ("bobcat", "cat"), ("a red car", "blue"), ("", "cat")]
)
def test_names_the_words_where_one_is_missing(kind, text, phrase):
    prompt = read(kind, text)
    with pytest.raises(ValueError, match=r"is not in the prompt\. Its words are") as caught:
        prompt.find(phrase)
    assert all(word in str(caught.value) for word in prompt.words)
    with pytest.raises(ValueError, match=r"stands 1 time\(s\) .* occurrence 2"):
        find_word(read(kind, "a red car"), "car#2")


@KINDS
def test_content_is_the_prompts_own_words(kind):
    """Begin, end, pads and a template are none, the template's own words neither."""
    prompt, empty = read(kind, "stop! now"), read(kind, "")
    assert prompt.words == ("stop", "!", "now") and empty.words == empty.content == ()
    assert {p for word in prompt.spelled for p in word.positions} == set(prompt.content)
    assert len(prompt.ids) == prompt.length and [token.position for token in prompt.tokens] == list(
        range(prompt.length)
    )
    for word in ("user", "assistant", "color", "reason"):
        with pytest.raises(ValueError, match="is not in the prompt"):
            prompt.find(word)


@pytest.mark.parametrize(
    ("kind", "length", "live", "begin"),
    [
        ("Flux", 256, 6, 0),
        ("Chroma", 6, 6, 0),
        ("Klein", 512, 3 + 5 + 9, 3),
        ("ZImage", 3 + 5 + 5, 3 + 5 + 5, 3),
        ("QwenImage", 34 + 5 + 5, 34 + 5 + 5, 34),
    ],
)
def test_lengths_pads_and_where_words_begin(kind, length, live, begin):
    """Flux.1 pads to 256 and Klein to 512 behind the text; the counts are those of experiment and templates."""
    prompt = read(kind, "the cat on the mat")
    assert prompt.length == length
    assert [token.position for token in prompt.tokens if not token.pad] == list(range(live))
    assert prompt.find("the", 1)[0] == begin


def test_left_pads():
    prompt = read("left", "the cat on the mat")
    pads = [token.position for token in prompt.tokens if token.pad]
    assert prompt.length == 60 and pads == list(range(len(pads)))
    assert prompt.content[-1] < 59 and prompt.content[0] > len(pads)
    longer = read("left", "the very big cat on the mat")
    mapping = align_refined(prompt, longer)
    assert {p for p in range(60) if mapping.keep[p]} == {p for word in ("very", "big") for p in longer.find(word)}
    for word in ("cat", "on", "mat"):
        assert mapping.transfer[prompt.find(word)[0], longer.find(word)[0]] == 1
    target = read("left", "the dog under the pelargonium")
    swapped, more = align_swapped(prompt, target), len(target.content) - len(prompt.content)
    assert more > 0 and swapped.transfer[59, 59] == 1
    assert swapped.transfer[prompt.content[0] - 1, target.content[0] - 1] == 1
    assert swapped.transfer[pads[-1], pads[-1] - more] == 1


def test_sd3_has_every_word_twice():
    """CLIP's rows, then T5's; a prompt of two parts of CLIP's moves T5's."""
    prompt = read("SD3", "a red car")
    assert prompt.length == 154 and prompt.find("car") == (3, 77 + 3)
    assert [prompt.tokens[p].encoder for p in prompt.find("red")] == [0, 1]
    long = read("SD3", "a cat and " * 30 + "a dog")
    clip, t5 = (len(tokens) for tokens in long.encoders)
    assert clip == 154 and t5 > 77
    first, last = long.find("dog")
    assert 77 < first < 154 and last > 154
    mapping = align_refined(long, read("SD3", "a cat and " * 30 + "a big dog"))
    assert not mapping.transfer[:154, 154:].any() and not mapping.transfer[154:, :154].any()


@pytest.mark.parametrize(
    ("missing", "places"), [(("t5xxl",), (3,)), (("clip_l", "clip_g"), (3,)), (("clip_l",), (3, 80))]
)
def test_sd3_with_fewer_text_encoders(missing, places):
    """The host leaves out the rows of an encoder without weights."""
    assert read_prompt(OtherClip("SD3", missing), "a red car").find("car") == places


@pytest.mark.parametrize("kind", WEIGHED)
def test_weights_are_the_words(kind):
    prompt = read(kind, "a (red:1.5) car(s:1.2), blue")
    assert prompt.words == ("a", "red", "cars", ",", "blue")
    assert {prompt.tokens[p].weight for p in prompt.find("red")} == {1.5}
    assert {prompt.tokens[p].weight for p in prompt.find("cars")} == {1.0, 1.2}


@pytest.mark.parametrize("kind", TEMPLATED)
def test_language_models_read_no_weights(kind):
    prompt = read(kind, "a (red:1.5) car")
    assert prompt.words == ("a", "(", "red", ":", "1", ".", "5", ")", "car")
    assert {token.weight for token in prompt.tokens} == {1.0}
    assert len(prompt.find("red")) == 1


def test_a_token_of_two_words():
    """Qwen has one for the hyphen and the letter behind it."""
    prompt = read("ZImage", "the Eiffel-tower here")
    both = set(prompt.find("-")) & set(prompt.find("tower"))
    assert len(both) == 1
    found = prompt.find("Eiffel-tower")
    assert len(set(found)) == len(found)
    mapping = align_swapped(prompt, read("ZImage", "the Big-pelargonium here"))
    assert torch.allclose(mapping.transfer.sum(1)[list(found)], torch.ones(len(found)))


def test_letters_that_t5_does_not_know():
    prompt = read("Flux", "a \u7ea2\u8272 car")
    assert decoded("Flux", prompt, prompt.find("car")) == "car"
    with pytest.raises(ValueError, match=r"Name another word.*does not tell apart"):
        prompt.find("\u84dd\u8272")
    assert read("ZImage", "a \u7ea2\u8272 car").find("\u7ea2\u8272")


@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [
        ("QwenImage", comfy.text_encoders.qwen_image, "qwen25_7b"),
        ("ZImage", comfy.text_encoders.z_image, "qwen3_4b"),
    ],
)
@pytest.mark.parametrize("text", ["a red car on a mat", ""])
def test_words_are_at_the_rows_that_the_encoder_gives(kind, module, name, text):
    """A tiny encoder looks backwards only: another word changes no row ahead of it, and its own."""
    encoder = module.te()(model_options={f"{name}_model_config": SMALL})
    rng = torch.Generator().manual_seed(0)
    for weight in encoder.parameters():
        weight.data = torch.randn(weight.shape, generator=rng, dtype=torch.float32) * 0.2
    host = tokenizer(kind)
    with torch.inference_mode():
        states, others = (
            encoder.encode_token_weights(host.tokenize_with_weights(given))[0]
            for given in (text, text.replace("car", "cat"))
        )
    prompt = read(kind, text).encoded(states)
    assert prompt.length == states.shape[1] and prompt.states is states
    assert (prompt.tokens[0].key == 151644) == (kind == "ZImage") or not text
    if text:
        (place,) = prompt.find("car")
        differs = (states - others).abs().amax((0, 2)) > 1e-6
        assert not differs[:place].any() and differs[place]


def test_states_of_other_tokens_are_refused():
    prompt = read("ZImage", "a red car")
    with pytest.raises(ValueError, match=rf"makes {prompt.length + 1} text states of {prompt.length} tokens"):
        prompt.encoded(torch.zeros(1, prompt.length + 1, 8))
    cut = prompt.length - 5
    with pytest.raises(ValueError, match=rf"Write the prompt alone, .* first {cut} of {prompt.length} tokens"):
        prompt.encoded(torch.zeros(1, 5, 8))


@pytest.mark.parametrize("kind", TEMPLATED)
def test_escaped_brackets_are_brackets_under_a_template(kind):
    escaped, plain = (read(kind, text) for text in (r"a cat \(pet\)", "a cat (pet)"))
    assert escaped.words == plain.words
    assert [word.attached for word in escaped.spelled] == [word.attached for word in plain.spelled]


def test_lengths_that_a_node_sets():
    """T5TokenizerOptions."""
    prompt = read_prompt(OtherClip("Chroma", options={"t5xxl_min_length": 40}), "a red car")
    assert prompt.length == 40 and sum(token.pad for token in prompt.tokens) == 40 - 4 - (
        prompt.find("a")[0] == 0 and 1
    )


@KINDS
@pytest.mark.parametrize("rule", [align_swapped, align_refined])
def test_identical_prompts_change_nothing(kind, rule):
    prompt = read(kind, "a red cat, sitting on a mat")
    mapping = rule(prompt, prompt)
    assert torch.equal(mapping.transfer, torch.eye(prompt.length)) and not mapping.keep.any()


@KINDS
@pytest.mark.parametrize("new", ["dog", "pelargonium"])
def test_a_swapped_word_takes_the_map_of_the_old_one(kind, new):
    source, target = read(kind, "a red cat, sitting"), read(kind, f"a red {new}, sitting")
    mapping = align_swapped(source, target)
    for old, there in zip(source.encoders, target.encoders, strict=True):
        before, after = (
            [p for p in prompt.find(word) if tokens[0].position <= p <= tokens[-1].position]
            for prompt, word, tokens in ((source, "cat", old), (target, new, there))
        )
        share = mapping.transfer[before][:, after]
        assert torch.allclose(share.sum(1), torch.ones(len(before)))
        assert mapping.transfer[before].sum() == pytest.approx(len(before))
    for word in ("red", ",", "sitting"):
        assert (mapping.transfer[list(source.find(word)), list(target.find(word))] == 1).all()
    weighed = factors(target, [(new, 2.0)])
    assert int((weighed == 2).sum()) == len(target.find(new))


@pytest.mark.parametrize("kind", [kind for kind in TOKENIZERS if kind != "Lumina2"])
def test_refinement_keeps_new_words_own_maps(kind):
    """Not of a vocabulary of letters, as the one made here for Lumina 2: letters that both texts have are aligned."""
    source, target = read(kind, "a cat on a mat"), read(kind, "a black cat on a mat")
    mapping = align_refined(source, target)
    new = {p for p in range(target.length) if mapping.keep[p]}
    assert set(target.find("black")) <= new
    for word in ("cat", "on", "mat"):
        assert (mapping.transfer[list(source.find(word)), list(target.find(word))] == 1).all()


def test_text_encoders_of_other_models_are_refused():
    clip = OtherClip("Flux")
    clip.tokenize = lambda text, return_word_ids: {"l": [], "llama": []}
    with pytest.raises(ValueError, match=r"Connect the CLIP of .* this CLIP has l, llama"):
        read_prompt(clip, "a cat")
