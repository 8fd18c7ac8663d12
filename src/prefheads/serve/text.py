"""Tokens to text while they come: whole characters only, and nothing beyond a stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from prefheads.serve.engine import Finish, Piece, Sampling

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet


class Detokenizer:
    """Turns tokens into text piece by piece; the pieces together are the text of all tokens.

    A character may take several tokens, and what a token looks like may depend on those before it,
    so each piece is the difference of two decodings that begin a few tokens back. The
    ``DecodeStream`` of tokenizers works likewise, but raises an error at bytes that make no
    character and does not give what is left at the end (0.23).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._from = self._told = 0  # where decoding begins, and up to where text was given

    def add(self, token: int) -> str:
        """The text that is complete with this token."""
        self._ids.append(token)
        text = self._new()
        if text.endswith(BROKEN):
            return ""
        if text:
            self._from, self._told = self._told, len(self._ids)
        return text

    def rest(self) -> str:
        """What is left at the end: a character that was not completed."""
        return self._new()

    def _new(self) -> str:
        before = self._decode(self._ids[self._from : self._told])
        return self._decode(self._ids[self._from :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class Stops:
    """Holds text back while it may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False

    def add(self, text: str) -> str:
        """The text that can be shown; ``hit`` is set once a stop string has come."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit, shown, self._held = True, self._held[: min(found)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins the stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


class Transcript:
    """An answer token by token, up to a token of ``ends``, whichever engine chooses them."""

    def __init__(
        self, sampling: Sampling, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]
    ) -> None:
        self._max_tokens, self._ends = sampling.max_tokens, ends
        self._detokenizer, self._stops = Detokenizer(tokenizer), Stops(sampling.stop)
        self.n_tokens = 0  # so far, the one that ended it included
        self.done = False

    def add(self, token: int) -> Piece | None:
        """What can be shown with the next token, if anything."""
        self.n_tokens += 1
        ended = token in self._ends
        shown = "" if ended else self._stops.add(self._detokenizer.add(token))
        finish: Finish | None = "stop" if ended or self._stops.hit else None
        if finish is None and self.n_tokens >= self._max_tokens:
            finish = "length"
        if finish is not None and not self._stops.hit:
            shown += self._stops.add(self._detokenizer.rest())
            finish = "stop" if self._stops.hit else finish
            shown += self._stops.rest()
        self.done = finish is not None
        return Piece(shown, self.n_tokens, finish) if shown or finish else None
