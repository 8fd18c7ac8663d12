"""The decoding methods that an evaluation compares, all by the same code and the same options.

A method is typed as its name and, where wanted, options: ``dps``, ``dps:gamma=0.5:fraction=0.08``,
``plain:temperature=0.7``, ``random-heads:of=calibrated``.

Methods are objects found in a registry. To add one, subclass :class:`Decoding` in a module of your
own (or :class:`prefheads.evaluation.steered.Steered`, for a method that is a map of heads for each
user), and either call :func:`register_method` or name an instance in your package's entry points,
group ``prefheads.methods``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from prefheads.data.encoding import Batch
from prefheads.data.example import Example
from prefheads.errors import DataError
from prefheads.heads.scores import HeadWeights
from prefheads.registry import Registry
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.context import Scope
from prefheads.steering.setting import PLAIN, Setting

if TYPE_CHECKING:
    from prefheads.evaluation.decoder import Decoder


@dataclass(frozen=True)
class Option:
    """What an option of a method may be.

    Attributes:
        default: Its value where none is typed.
        choices: The words to choose from; none for a number.
        highest: Of a number; the lowest is 0.
        positive: Whether a number must be above 0.
        whole: Whether a number has no decimals.
    """

    default: Any
    choices: tuple[str, ...] = ()
    highest: float = math.inf
    positive: bool = False
    whole: bool = False

    def read(self, key: str, text: str) -> Any:
        """The value that was typed for ``key``.

        Raises:
            DataError: It cannot have that value.
        """
        if self.choices:
            if text not in self.choices:
                raise DataError(f"{key} is one of {', '.join(self.choices)}, not {text!r}")
            return text
        try:
            number = int(text) if self.whole else float(text)
        except ValueError:
            raise DataError(f"{key} is a number, not {text!r}") from None
        if not 0 <= number <= self.highest or number == math.inf or (self.positive and not number):
            raise DataError(f"{key}={text} is out of range")
        return number


_OF_ALL = {
    "temperature": Option(1.0, positive=True),
    "repetition_penalty": Option(1.0, positive=True),
}


@dataclass(frozen=True)
class Sources:
    """Where a method may take heads from.

    Attributes:
        steerer: What discovery found.
        retrieval_heads: The retrieval heads that are a given share of all.
        seed: Of random draws.
    """

    steerer: PreferenceSteerer | None = None
    retrieval_heads: Callable[[float], HeadWeights] | None = None
    seed: int = 0


class Decoding:
    """One decoding method, whatever its options are. This one changes nothing of the model.

    Attributes:
        name: What users type.
        options: Its options, besides those of every method.
        needs_steerer: Whether it works with what discovery found.
        needs_retrieval_heads: Whether it works with the heads that copy from the context.
        likelihood: What gives the likelihood of a text that somebody else wrote: its ``setting``
            and ``maps``; its ``logits``; or ``"none"`` where nothing does.
    """

    name = ""
    options: Mapping[str, Option] = {}
    needs_steerer = False
    needs_retrieval_heads = False
    likelihood: Literal["setting", "logits", "none"] = "none"

    def options_for(self, typed: Mapping[str, str]) -> dict[str, Option]:
        """All options, where some may depend on what was typed for others."""
        return _OF_ALL | dict(self.options)

    def problem(self, options: Mapping[str, Any], typed: Mapping[str, str]) -> str:
        """What is wrong with options that are each right; empty if nothing is."""
        return ""

    def base(self, options: Mapping[str, Any]) -> Decoding:
        """The method that it is a control of; itself if it is none."""
        return self

    def drawn(self, method: Method, seed: int) -> list[Method]:
        """What its results are the mean of: itself, unless it is drawn at random."""
        return [method]

    def setting(self, method: Method, steerer: PreferenceSteerer | None) -> Setting:
        """How it steers with heads."""
        return PLAIN

    def maps(
        self, method: Method, examples: Sequence[Example], sources: Sources
    ) -> Sequence[HeadWeights]:
        """The heads of each example's user; asked for where the setting steers."""
        return ()

    def scope(self, method: Method, steerer: PreferenceSteerer | None) -> Scope:
        """The positions where it acts."""
        scope: Scope = method.options.get("scope", "response")
        return scope

    def described(self, setting: Setting) -> str:
        """How it decodes, in a few words."""
        return self.name

    def acting(
        self,
        decoder: Decoder,
        model: PreTrainedModel,
        rows: slice,
        batch: Batch,
        bare: Callable[[], Batch],
    ) -> AbstractContextManager[Any]:
        """The context in which stock ``model.generate()`` decodes by this method.

        Args:
            rows: Which of the decoder's examples are in the batch.
            bare: Makes the same batch without profiles.
        """
        return nullcontext()

    def logits(self, method: Method, own: Tensor, bare: Tensor) -> Tensor:
        """Logits ``(T, vocab)`` of a text, for ``likelihood = "logits"``.

        Args:
            own: The model's logits after the prompt, ``(T, vocab)``.
            bare: The same after the prompt without the profile.
        """
        raise NotImplementedError


METHODS = Registry(
    "prefheads.methods",
    Decoding,
    ("prefheads.evaluation.baselines:BASELINES", "prefheads.evaluation.steered:STEERED"),
)


def register_method(method: Decoding) -> None:
    """Make a method known in this process, for instance in a notebook.

    Raises:
        DataError: Its name belongs to a method that is built in or installed.
    """
    METHODS.register(method)


@dataclass(frozen=True)
class Method:
    """A decoding method with all its options.

    Attributes:
        name: As typed.
        decoding: What it is.
        options: The defaults, with what was typed in their place.
    """

    name: str
    decoding: Decoding
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read ``kind:option=value:...``.

        Raises:
            DataError: An unknown method or option, or a value that it cannot have.
        """
        kind, *pairs = (part.strip() for part in text.split(":"))
        known = METHODS.all()
        if kind not in known:
            raise DataError(f"unknown method {kind!r}: the methods are {', '.join(known)}")
        decoding, typed = known[kind], dict(_pair(pair, text) for pair in pairs)
        allowed = decoding.options_for(typed)
        options = {key: option.default for key, option in allowed.items()}
        for key, value in typed.items():
            if key not in allowed:
                raise DataError(
                    f"method {text!r}: {kind} has no {key}; it has {', '.join(allowed)}"
                )
            try:
                options[key] = allowed[key].read(key, value)
            except DataError as error:
                raise DataError(f"method {text!r}: {error}") from None
        if problem := decoding.problem(options, typed):
            raise DataError(f"method {text!r}: {problem}")
        return cls(":".join([kind, *pairs]), decoding, options)

    @property
    def kind(self) -> str:
        """Its name without options."""
        return self.decoding.name

    @property
    def base(self) -> str:
        """The method that it is, or that it is a control of."""
        return self.decoding.base(self.options).name

    @property
    def is_control(self) -> bool:
        """Whether it is a control of another method."""
        return self.base != self.kind

    @property
    def needs_retrieval_heads(self) -> bool:
        """Whether it works with the heads that copy from the context."""
        return self.decoding.base(self.options).needs_retrieval_heads

    @property
    def needs_steerer(self) -> bool:
        """Whether it works with what discovery found."""
        return self.decoding.base(self.options).needs_steerer

    def drawn(self, seed: int) -> list[Method]:
        """What it is the mean of: a random control with each of its seeds, from ``seed`` on; any
        other method itself."""
        return self.decoding.drawn(self, seed)

    @property
    def generate_options(self) -> dict[str, Any]:
        """What ``model.generate`` is asked for: greedy, or sampling at another temperature.

        What checkpoints usually bring of their own is said, so that it does not act.
        """
        options: dict[str, Any] = {
            "do_sample": self.options["temperature"] != 1,
            "num_beams": 1,
            "top_p": 1.0,
            "repetition_penalty": self.options["repetition_penalty"],
        }
        if options["do_sample"]:
            options |= {"temperature": self.options["temperature"], "top_k": 0}
        return options

    def setting(self, steerer: PreferenceSteerer | None) -> Setting:
        """How it steers; plain for what does not work with heads."""
        return self.decoding.base(self.options).setting(self, steerer)


def _pair(text: str, method: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise DataError(f"method {method!r}: write options as name=value, not {text!r}")
    return key.strip(), value.strip()
