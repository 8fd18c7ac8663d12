"""The decoding methods that an evaluation compares, all by the same code and the same options.

A method is typed as its kind and, where wanted, options: ``dps``, ``dps:gamma=0.5:fraction=0.08``,
``plain:temperature=0.7``, ``random-heads:of=calibrated``.

The kinds are found in a registry. To add one, subclass :class:`Method` in a module of your own, or
:class:`prefheads.evaluation.steered.SteeredMethod` for a map of heads for each user. Then either
call :func:`register_method` with an instance, or name one in your package's entry points, group
``prefheads.methods``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from torch import Tensor
from transformers import PreTrainedModel

from prefheads.data.encoding import Batch
from prefheads.data.example import Example
from prefheads.errors import DataError
from prefheads.heads.scores import HeadWeights
from prefheads.registry import Registry
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.cad import context_contrast
from prefheads.steering.combine import combine
from prefheads.steering.dola import layer_contrast
from prefheads.steering.setting import PLAIN, Setting
from prefheads.types import Scope

if TYPE_CHECKING:
    from prefheads.evaluation.decoder import Decoder


@dataclass(frozen=True)
class Option:
    """What an option of a method may be: one of some words, or a number from 0 to ``highest``."""

    default: Any
    choices: tuple[str, ...] = ()
    highest: float = math.inf
    positive: bool = False
    whole: bool = False

    def read(self, key: str, text: str) -> Any:
        """The value that was typed for ``key``; a ``DataError`` if it cannot have that value."""
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


@dataclass(frozen=True)
class Sources:
    """The examples to find a map of heads for, and where a method may take heads from."""

    examples: Sequence[Example]
    steerer: PreferenceSteerer | None = None
    retrieval_heads: Callable[[float], HeadWeights] | None = None  # a given share of all heads
    seed: int = 0


@dataclass(frozen=True)
class Prompts:
    """A batch to decode."""

    model: PreTrainedModel
    rows: slice  # which of the decoder's examples they are
    batch: Batch
    bare: Callable[[], Batch]  # makes the same batch without profiles


class Method:
    """A decoding method with all its options. This class changes nothing of the model.

    Attributes:
        kind: What users type first.
        accepts: Its options, besides temperature and repetition_penalty.
        needs_steerer: Whether it works with what discovery found.
        needs_retrieval_heads: Whether it works with the heads that copy from the context.
        likelihood: What gives the likelihood of a text that somebody else wrote: its setting and
            maps; its :meth:`logits`; or ``"none"`` where nothing does.
        name: As typed.
        options: The defaults, with what was typed in their place.
    """

    kind = ""
    accepts: Mapping[str, Option] = {}
    needs_steerer = False
    needs_retrieval_heads = False
    likelihood: Literal["setting", "logits", "none"] = "none"

    def __init__(self) -> None:
        self.name, self.options = self.kind, dict[str, Any]()

    @staticmethod
    def parse(text: str) -> Method:
        """Read ``kind:option=value:...``.

        Raises:
            DataError: An unknown method or option, or a value that it cannot have.
        """
        kind, *pairs = (part.strip() for part in text.split(":"))
        known = METHODS.all()
        if kind not in known:
            raise DataError(f"unknown method {kind!r}: the methods are {', '.join(known)}")
        try:
            typed: dict[str, str] = {}
            for pair in pairs:
                key, equals, value = (part.strip() for part in pair.partition("="))
                if not equals:
                    raise DataError(f"write options as name=value, not {pair!r}")
                typed[key] = value
            allowed = known[kind].accepted(typed)
            options = {key: option.default for key, option in allowed.items()}
            for key, value in typed.items():
                if key not in allowed:
                    raise DataError(f"{kind} has no {key}; it has {', '.join(allowed)}")
                options[key] = allowed[key].read(key, value)
            method = known[kind].with_options(":".join([kind, *pairs]), options)
            method.check(typed)
        except DataError as error:
            raise DataError(f"method {text!r}: {error}") from None
        return method

    def with_options(self, name: str, options: dict[str, Any]) -> Self:
        """A method of the same kind."""
        made = copy(self)
        made.name, made.options = name, options
        return made

    def accepted(self, typed: Mapping[str, str]) -> dict[str, Option]:
        """All options; some may depend on what was typed for others."""
        positive = Option(1.0, positive=True)
        return {"temperature": positive, "repetition_penalty": positive, **self.accepts}

    def check(self, typed: Mapping[str, str]) -> None:
        """Raise a ``DataError`` where options that are each right do not go together."""

    @property
    def of(self) -> Method:
        """The method that it is a control of; itself if it is none."""
        return self

    @property
    def base(self) -> str:
        """The kind of the method that it is, or that it is a control of."""
        return self.of.kind

    @property
    def is_control(self) -> bool:
        """Whether it is a control of another method."""
        return self.of is not self

    def drawn(self, seed: int) -> Sequence[Method]:
        """What it is the mean of: a random control with each of its seeds, from ``seed`` on; any
        other method itself."""
        return [self]

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
        return PLAIN

    def maps(self, sources: Sources) -> Sequence[HeadWeights]:
        """The heads of each example's user; asked for where the setting steers."""
        return ()

    def scope(self, steerer: PreferenceSteerer | None) -> Scope:
        """The positions where it acts."""
        return cast(Scope, self.options.get("scope", "response"))

    def described(self, setting: Setting) -> str:
        """How it decodes, in a few words."""
        return self.kind

    def acting(self, decoder: Decoder, prompts: Prompts) -> AbstractContextManager[Any]:
        """The context in which stock ``model.generate()`` decodes by this method."""
        return nullcontext()

    def logits(self, own: Tensor, bare: Tensor) -> Tensor:
        """Logits ``(T, vocab)`` of a text, for ``likelihood = "logits"``, from the model's after
        the prompt and after the prompt without the profile."""
        raise NotImplementedError


class Plain(Method):
    """The same prompt, greedy."""

    kind = "plain"
    likelihood = "setting"

    def described(self, setting: Setting) -> str:
        return str(setting)


class ContextAware(Method):
    """Context-aware decoding (Shi et al.): against the prompt without the profile."""

    kind = "cad"
    accepts: Mapping[str, Option] = {"gamma": Option(0.5)}
    likelihood = "logits"

    def acting(self, decoder: Decoder, prompts: Prompts) -> AbstractContextManager[Any]:
        bare, gamma = prompts.bare(), self.options["gamma"]
        return context_contrast(prompts.model, bare.prompt_ids, bare.prompt_mask, gamma)

    def logits(self, own: Tensor, bare: Tensor) -> Tensor:
        return combine(own, bare, self.options["gamma"])


class LayerContrast(Method):
    """DoLa, decoding by contrasting layers (Chuang et al.).

    It rules tokens out, so that what users wrote may have no likelihood at all under it.
    """

    kind = "dola"
    accepts: Mapping[str, Option] = {
        "layers": Option("high", ("low", "high")),
        "plausibility": Option(0.1, highest=1, positive=True),
        "repetition_penalty": Option(1.2, positive=True),
    }

    def acting(self, decoder: Decoder, prompts: Prompts) -> AbstractContextManager[Any]:
        layers, plausibility = self.options["layers"], self.options["plausibility"]
        return layer_contrast(prompts.model, layers, plausibility=plausibility)


BASELINES = (Plain(), ContextAware(), LayerContrast())
METHODS = Registry(
    "prefheads.methods",
    Method,
    ("prefheads.evaluation.methods:BASELINES", "prefheads.evaluation.steered:STEERED"),
)
register_method = METHODS.register
"""Make a kind of method known in this process, for instance in a notebook."""
