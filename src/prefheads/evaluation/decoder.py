"""A method made ready: with the heads of each user, for a list of examples."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefheads.data.example import Example
from prefheads.errors import SteeringError
from prefheads.evaluation.methods import Method, Sources
from prefheads.heads.scores import HeadWeights
from prefheads.interventions.intercept import head_layout
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.context import ScopeWarning
from prefheads.steering.setting import Setting
from prefheads.types import Scope

SETTING_FIELDS = ("heads", "mode", "target", "gamma", "suppression", "schedule", "cap")
"""What of a setting the marks of records depend on."""


@dataclass(frozen=True)
class Decoder:
    """A method made ready for a list of examples.

    Attributes:
        setting: How it steers.
        maps: The heads of each example's user; empty for what does not work with heads.
    """

    method: Method
    setting: Setting
    maps: Sequence[HeadWeights]
    scope: Scope

    @property
    def shares_prompt(self) -> bool:
        """Whether it leaves the encoding of the prompt as it is."""
        return self.scope == "response"

    @property
    def strength(self) -> float:
        """The gamma of steering or contrast; 0 where there is none."""
        return float(self.setting.gamma if self.maps else self.method.options.get("gamma", 0.0))

    @property
    def has_likelihood(self) -> bool:
        """Whether it gives a text that somebody else wrote a likelihood; a penalty on repetition
        does not."""
        unpenalised = self.method.options["repetition_penalty"] == 1
        return self.method.likelihood != "none" and unpenalised

    def marks(self, row: int) -> str:
        """A hash of what acts on an example: its options, setting, scope and map."""
        options = sorted((k, v) for k, v in self.method.options.items() if k != "draws")
        # Written out, so that records of before fit, whatever else a setting says.
        fields = ", ".join(f"{f}={getattr(self.setting, f)!r}" for f in SETTING_FIELDS)
        result = hashlib.sha256(f"({options!r}, Setting({fields}), {self.scope!r})".encode())
        if self.maps:  # three decimals: the last bits depend on the number of threads
            values = (1000 * self.maps[row].values.double()).round().long()
            result.update(values.numpy().tobytes())
        return result.hexdigest()[:16]

    @cached_property
    def weights(self) -> Tensor | None:
        """``(n_examples, n_layers, n_heads)``, or None."""
        return torch.stack([m.values for m in self.maps]) if self.maps else None


def make_decoder(
    method: Method,
    model: PreTrainedModel,
    examples: Sequence[Example],
    steerer: PreferenceSteerer | None = None,
    retrieval_heads: Callable[[float], HeadWeights] | None = None,
    seed: int = 0,
) -> Decoder:
    """Find each user's heads for a method.

    Args:
        steerer, retrieval_heads: Where heads are taken from, for methods that need them.

    Raises:
        SteeringError: A method without what it needs.
    """
    if method.needs_steerer and steerer is None:
        raise SteeringError(f"method {method.name} needs heads: fit a steerer first")
    if method.needs_retrieval_heads and retrieval_heads is None:
        raise SteeringError(f"method {method.name} needs retrieval heads")
    setting = method.setting(steerer)
    maps: Sequence[HeadWeights] = ()
    if not setting.plain:
        maps = method.maps(Sources(examples, steerer, retrieval_heads, seed))
        shape = head_layout(model).shape
        if any(m.shape != shape for m in maps):
            raise SteeringError(f"method {method.name}: its heads are not those of this model")
    scope = method.scope(steerer)
    if maps and maps[0].info.scope not in ("", scope):
        found = maps[0].info.scope
        message = f"{method.name}: heads found with scope={found!r} steer with scope={scope!r}"
        warnings.warn(message, ScopeWarning, stacklevel=2)
    return Decoder(method, setting, maps, scope)
