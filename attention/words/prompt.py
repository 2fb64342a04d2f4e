"""Words of a prompt and where they stand in the text that the network reads.

The text may be that of one encoder (SD1.x: CLIP, Flux.1 and Chroma: T5, Flux.2, Qwen-Image, Z-Image and Lumina 2: a
language model), of two side by side (SDXL), or of several that follow each other, of which each has every word (SD3:
CLIP, then T5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, groupby
from typing import Any

from torch import Tensor

from .spelling import UNKNOWN
from .tokenizer import Tokenizer, along_the_axis
from .tokens import PromptWord, Token

CLIP_ENCODERS = ("l", "g", "h")
"""The host's names of the CLIP text encoders of SD1.x, SDXL and SD2.x, which stand side by side."""
T5_ENCODER = "t5xxl"
"""The host's name of T5, which stands behind CLIP's (SD3), or beside one of which only the summary is read (Flux.1)."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt with the places of its words.

    Attributes:
        text: as it was given.
        tokens: one for every place of the context's token axis, in order.
        spelled: its words in order.
        tokenizer: reads phrases as it read the prompt (the first one of several).
        states: (1, L, C), what the encoder made of it; None if it was only read.
    """

    text: str
    tokens: tuple[Token, ...]
    spelled: tuple[PromptWord, ...]
    tokenizer: Tokenizer = field(repr=False)
    states: Tensor | None = field(default=None, repr=False)

    @property
    def length(self) -> int:
        """Places of the context's token axis, 77 for each part that CLIP reads."""
        return len(self.tokens)

    def encoded(self, states: Tensor) -> Prompt:
        """The prompt with what the encoder made of it, states (1, L, C).

        Qwen-Image's encoder leaves out how its template begins; those places are left out then.

        Raises:
            ValueError: the states are not those of the prompt's tokens.
        """
        cut = self.length - states.shape[1]
        if any(token.word for token in self.tokens[: max(cut, 0)]):
            raise ValueError(
                "Write the prompt alone, without the text encoder's template (<|im_start|> and the like) around it: "
                f"the encoder leaves out the first {cut} of {self.length} tokens, and some of them are the prompt's."
            )
        if cut < 0:
            raise ValueError(
                f"Connect the CLIP of the checkpoint itself: this one makes {states.shape[1]} text states of "
                f"{self.length} tokens, so that it is not known which of them are a word's."
            )
        tokens = tuple(replace(token, position=token.position - cut) for token in self.tokens[cut:])
        return replace(self, tokens=tokens, spelled=tuple(word.moved(-cut) for word in self.spelled), states=states)

    @property
    def encoders(self) -> tuple[tuple[Token, ...], ...]:
        """The tokens of each of the text encoders whose texts follow each other."""
        return tuple(tuple(tokens) for _, tokens in groupby(self.tokens, lambda token: token.encoder))

    @property
    def ids(self) -> tuple[int, ...]:
        """The key of every token, begin, end and padding included."""
        return tuple(token.key for token in self.tokens)

    @property
    def content(self) -> tuple[int, ...]:
        """Positions of all tokens that are neither begin, end, padding nor a template's."""
        return tuple(token.position for token in self.tokens if token.word)

    @property
    def words(self) -> tuple[str, ...]:
        """The words as the tokenizer spells them."""
        return tuple(word.text for word in self.spelled)

    @property
    def spaced(self) -> tuple[tuple[PromptWord, ...], ...]:
        """The words by what stands between two spaces: "a well-known cat," is three of them."""
        found: list[list[PromptWord]] = []
        for word in self.spelled:
            if found and word.attached:
                found[-1].append(word)
            else:
                found.append([word])
        return tuple(map(tuple, found))

    def occurrences(self, phrase: str) -> tuple[tuple[int, ...], ...]:
        """Positions of each place where a phrase stands, in order and without overlap.

        Raises:
            ValueError: the phrase is empty or nowhere in the prompt.
        """
        wanted = self.tokenizer.read(phrase)[1]
        if not wanted:
            raise ValueError(f"Name a word of the prompt: {self._listed()}.")
        if any(UNKNOWN in word.text for word in wanted):
            raise ValueError(
                f"Name another word, such as one in English letters: {phrase!r} has letters that the text encoder does "
                f"not tell apart. The prompt's words are: {self._listed()}."
            )
        found, at = [], 0
        while at + len(wanted) <= len(self.spelled):
            here = self.spelled[at : at + len(wanted)]
            if all(a.same(b) for a, b in zip(here, wanted, strict=True)):
                found.append(tuple(dict.fromkeys(p for word in here for p in word.positions)))
                at += len(wanted)
            else:
                at += 1
        if not found:
            raise ValueError(f"{phrase!r} is not in the prompt. Its words are: {self._listed()}.")
        return tuple(found)

    def find(self, phrase: str, occurrence: int | None = None) -> tuple[int, ...]:
        """Positions of a word, or of a phrase of several words, on the context's token axis.

        Args:
            phrase: spelled as in the prompt, capitals and spaces aside; an embedding as "embedding:name".
            occurrence: 1 for the first place where it stands; None for all of them together.

        Raises:
            ValueError: the phrase is empty or not there, or not that often.
        """
        found = self.occurrences(phrase)
        if occurrence is None:
            return tuple(p for positions in found for p in positions)
        if not 1 <= occurrence <= len(found):
            raise ValueError(
                f"{phrase!r} stands {len(found)} time(s) in the prompt; occurrence {occurrence} was asked for. "
                f"Its words are: {self._listed()}."
            )
        return found[occurrence - 1]

    def _listed(self) -> str:
        return ", ".join(dict.fromkeys(self.words)) or "none, for it is empty"


def read_prompt(clip: Any, text: str) -> Prompt:
    """The words of a text as a host CLIP reads it.

    Raises:
        ValueError: a CLIP of an unknown kind, an embedding that does not fit the text encoders, or text encoders that
            cut the prompt into different words.
    """
    chunks, read = clip.tokenize(text, return_word_ids=True), []
    for beside in _text_encoders(clip, tuple(chunks)):
        for name in beside:
            _check_embeddings(clip, name, chunks[name])
        layouts = {tuple(entry[2] for chunk in chunks[name] for entry in chunk) for name in beside}
        if len(layouts) > 1:
            raise ValueError(
                "The two text encoders place the prompt's words differently, because an embedding has more vectors for "
                "one than for the other. Use an embedding made for this model."
            )
        read.append(Tokenizer(clip.tokenizer, beside[0], getattr(clip, "tokenizer_options", {})))
    tokens, words = zip(*(tokenizer.read(text) for tokenizer in read), strict=True)
    return Prompt(text, along_the_axis(tokens), _together(tokens, words), read[0])


def _together(tokens: Sequence[Sequence[Token]], words: Sequence[Sequence[PromptWord]]) -> tuple[PromptWord, ...]:
    """The words of text encoders whose texts follow each other, with their tokens in all of them.

    Raises:
        ValueError: they cut the prompt into different words.
    """
    if len({len(own) for own in words}) > 1:
        told = " and ".join(" ".join(word.text for word in own) or "nothing" for own in words)
        raise ValueError(
            f"Write the prompt in plain letters, without signs that only one of the text encoders knows: they cut it "
            f"into different words, {told}."
        )
    firsts = [0, *accumulate(map(len, tokens))]
    together = []
    for each in zip(*words, strict=True):
        places = [word.moved(first).positions for word, first in zip(each, firsts, strict=False)]
        together.append(replace(each[0], positions=tuple(chain(*places))))
    return tuple(together)


def _text_encoders(clip: Any, names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The text encoders along the token axis, those side by side together.

    Raises:
        ValueError: an unknown kind of CLIP, or one without any weights.
    """
    clips = tuple(name for name in names if name in CLIP_ENCODERS)
    others = tuple(name for name in names if name not in CLIP_ENCODERS)
    along = [clips, others]
    if others and (len(others) > 1 or (clips and others != (T5_ENCODER,))):
        along = []
    elif others and len(clips) == 1:
        along = [others]
    found = [tuple(name for name in beside if _is_there(clip, name)) for beside in along]
    if not any(found):
        raise ValueError(
            "Connect the CLIP of SD1.x, SD2.x, SDXL, SD3, Flux, Chroma, Qwen-Image, Z-Image or Lumina 2, whose words "
            f"can be told apart: this CLIP has {', '.join(names)}."
        )
    return [beside for beside in found if beside]


def _is_there(clip: Any, encoder: str) -> bool:
    """Whether a CLIP has a text encoder, and its weights: SD3's may be loaded without one of its three."""
    read = any(hasattr(clip.tokenizer, name) for name in (f"clip_{encoder}", encoder))
    return read and _of_encoder(clip, encoder, True) is not None


def _of_encoder(clip: Any, encoder: str, missing: Any = None) -> Any:
    """A CLIP's text encoder by the host's name."""
    model = getattr(clip, "cond_stage_model", None)
    return getattr(model, f"clip_{encoder}", getattr(model, encoder, missing))


def _check_embeddings(clip: Any, encoder: str, chunks: list[list[tuple[Any, float, int]]]) -> None:
    """The host leaves vectors of another width out, and everything behind them moves."""
    widths = {value.shape[-1] for chunk in chunks for value, *_ in chunk if isinstance(value, Tensor)}
    if not widths:
        return
    own = _of_encoder(clip, encoder).transformer.get_input_embeddings().weight.shape[-1]
    if widths != {own}:
        raise ValueError(
            f"An embedding in the prompt has vectors of {', '.join(map(str, sorted(widths)))} numbers, but text "
            f"encoder {encoder!r} takes {own}. Use an embedding made for this model."
        )
