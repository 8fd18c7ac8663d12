"""The decoding methods that an evaluation compares, all by the same code and the same options.

A method is typed as its name and, where wanted, options: ``dps``, ``dps:gamma=0.5:fraction=0.08``,
``plain:temperature=0.7``, ``random-heads:of=calibrated``. :data:`DEFAULTS` has what each starts
from; every one but DoLa and CAD is a map of heads for each user and a :class:`Setting`.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefheads.calibration import paper
from prefheads.calibration.headsets import percent
from prefheads.data.encoding import Batch
from prefheads.data.example import Example
from prefheads.errors import DataError, SteeringError
from prefheads.evaluation.draws import SEED
from prefheads.heads.scores import HeadWeights
from prefheads.interventions.intercept import head_layout
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.cad import context_contrast
from prefheads.steering.context import ScopeWarning, steer_with
from prefheads.steering.dola import layer_contrast
from prefheads.steering.setting import PLAIN, Setting
from prefheads.types import Control, Routing, Scope, Target
from prefheads.users import cluster_heads, mix

Options = dict[str, Any]

_DPS: Options = {
    "gamma": paper.GAMMA,
    "fraction": paper.SHARE,
    "mode": "contrast",
    "target": "head",
    "suppression": 1.0,
    "schedule": "constant",
    "cap": None,
    "scope": "response",
}
_ANY: Options = {"temperature": 1.0, "repetition_penalty": 1.0}
DEFAULTS: dict[str, Options] = {
    # The same prompt, greedy.
    "plain": {},
    # Context-aware decoding (Shi et al.): against the prompt without the profile.
    "cad": {"gamma": 0.5},
    # Decoding by contrasting layers (Chuang et al.).
    "dola": {"layers": "high", "plausibility": 0.1, "repetition_penalty": 1.2},
    # Decoding by contrasting retrieval heads (Gema et al.) as its authors' code does: the prompt is
    # encoded as it is, then the heads attend uniformly (their queries are zero).
    "decore": _DPS | {"gamma": 1.0, "target": "query", "schedule": "entropy"},
    # Differential Preference Steering as the paper has it (Eq. 8), heads of highest PCS.
    "dps": _DPS,
    # The same with heads of each user's cluster, weighted by importance and routing (5.3).
    "dps-cluster": _DPS | {"routing": "soft"},
    # What calibration chose.
    "calibrated": {"routing": "soft"},
    # Controls of another method: as many heads elsewhere, or a random map as sparse; the mean over
    # draws, or one draw of a seed.
    "random-heads": {"of": "dps", "draws": 5, "seed": None},
    "random-mask": {"of": "dps", "draws": 5, "seed": None},
}
CONTROLS: dict[str, Control] = {"random-heads": "heads", "random-mask": "mask"}
NEEDS_STEERER = ("dps", "dps-cluster", "calibrated", "random-heads", "random-mask")
CHOICES: dict[str, tuple[str, ...]] = {
    "mode": ("contrast", "amplify"),
    "target": get_args(Target),
    "scope": get_args(Scope),
    "schedule": ("constant", "entropy"),
    "routing": get_args(Routing),
    "of": ("dps", "dps-cluster", "calibrated", "decore"),
    "layers": ("low", "high"),
}


@dataclass(frozen=True)
class Method:
    """A decoding method with all its options.

    Attributes:
        name: As typed.
        kind: A key of :data:`DEFAULTS`.
        options: The defaults, with what was typed in their place.
    """

    name: str
    kind: str
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read ``kind:option=value:...``.

        Raises:
            DataError: An unknown method or option, or a value that it cannot have.
        """
        kind, *pairs = (part.strip() for part in text.split(":"))
        if kind not in DEFAULTS:
            raise DataError(f"unknown method {kind!r}: the methods are {', '.join(DEFAULTS)}")
        given = dict(_pair(pair, text) for pair in pairs)
        base = DEFAULTS[kind] | DEFAULTS.get(str(given.get("of", DEFAULTS[kind].get("of"))), {})
        allowed = _ANY | base
        for key, value in given.items():
            if key not in allowed:
                raise DataError(
                    f"method {text!r}: {kind} has no {key}; it has {', '.join(allowed)}"
                )
            allowed[key] = _value(key, value, text)
        if (allowed.get("mode"), allowed.get("schedule")) == ("amplify", "entropy"):
            raise DataError(f"method {text!r}: a strength from entropy is for mode=contrast")
        if allowed.get("seed") is not None and "draws" in given and "seed" in given:
            raise DataError(f"method {text!r}: a seed is of one draw; give it or draws")
        if allowed.get("cap") is not None and allowed["schedule"] == "constant":
            raise DataError(f"method {text!r}: cap is for schedule=entropy")
        return cls(":".join([kind, *pairs]), kind, allowed)

    @property
    def base(self) -> str:
        """The method that it is, or that it is a control of."""
        return str(self.options.get("of", self.kind))

    @property
    def needs_retrieval_heads(self) -> bool:
        """Whether it works with the heads that copy from the context (DeCoRe)."""
        return self.base == "decore"

    @property
    def needs_steerer(self) -> bool:
        """Whether it works with what discovery found."""
        return self.kind in NEEDS_STEERER and not self.needs_retrieval_heads

    def drawn(self, seed: int) -> list[Method]:
        """What it is the mean of: a random control with each of its seeds, from ``seed`` on; any
        other method itself."""
        if self.kind not in CONTROLS or self.options["seed"] is not None:
            return [self]
        options = {**self.options, "draws": 1}
        return [
            Method(f"{self.name}{SEED}{number}", self.kind, options | {"seed": number})
            for number in range(seed, seed + self.options["draws"])
        ]

    @property
    def generate_options(self) -> Options:
        """What ``model.generate`` is asked for: greedy, or sampling at another temperature.

        What checkpoints usually bring of their own is said, so that it does not act.
        """
        options: Options = {
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
        if self.base == "calibrated":
            assert steerer is not None
            return steerer.setting
        if self.base in ("plain", "cad", "dola"):
            return PLAIN
        names = ("mode", "target", "gamma", "suppression", "schedule", "cap", "scope")
        chosen = {n: self.options[n] for n in names if n in self.options}
        return Setting(heads=f"top {percent(self.options['fraction'])}%", **chosen)


@dataclass(frozen=True)
class Decoder:
    """A method made ready for a list of examples.

    Attributes:
        method: The method.
        setting: How it steers.
        maps: The heads of each example's user; empty for what does not work with heads.
        scope: Where it acts.
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
    def described(self) -> str:
        """How it steers, in a few words."""
        return self.method.kind if self.method.kind in ("cad", "dola") else str(self.setting)

    @property
    def strength(self) -> float:
        """The gamma of steering or contrast; 0 where there is none."""
        return float(self.setting.gamma if self.maps else self.method.options.get("gamma", 0.0))

    def marks(self, row: int) -> str:
        """A hash of what acts on an example: its options, setting, scope and map."""
        options = sorted((k, v) for k, v in self.method.options.items() if k != "draws")
        told = repr((options, self.setting, self.scope))
        result = hashlib.sha256(told.encode())
        if self.maps:  # three decimals: the last bits depend on the number of threads
            values = (1000 * self.maps[row].values.double()).round().long()
            result.update(values.numpy().tobytes())
        return result.hexdigest()[:16]

    @cached_property
    def weights(self) -> Tensor | None:
        """``(n_examples, n_layers, n_heads)``, or None."""
        return torch.stack([m.values for m in self.maps]) if self.maps else None

    def acting(
        self, model: PreTrainedModel, rows: slice, batch: Batch, bare: Callable[[], Batch]
    ) -> AbstractContextManager[Any]:
        """The context in which stock ``model.generate()`` decodes by this method.

        Args:
            rows: Which of the examples are in the batch.
            bare: Makes the same batch without profiles.
        """
        options = self.method.options
        if self.method.kind == "cad":
            without = bare()
            return context_contrast(
                model, without.prompt_ids, without.prompt_mask, options["gamma"]
            )
        if self.method.kind == "dola":
            return layer_contrast(model, options["layers"], plausibility=options["plausibility"])
        if self.weights is None or self.setting.plain:
            return nullcontext()
        return steer_with(model, self.weights[rows], self.setting, batch.profile_mask)


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
        seed: Of random controls that name none.
        steerer: What discovery found, for methods that need it.
        retrieval_heads: The retrieval heads that are a given share of all, for DeCoRe.

    Raises:
        SteeringError: A method without what it needs.
    """
    if method.needs_steerer and steerer is None:
        raise SteeringError(f"method {method.name} needs heads: fit a steerer first")
    if method.needs_retrieval_heads and retrieval_heads is None:
        raise SteeringError(f"method {method.name} needs retrieval heads")
    setting, options = method.setting(steerer), method.options
    maps: Sequence[HeadWeights] = ()
    if not setting.plain:
        maps = _maps(method, examples, steerer, retrieval_heads)
        if method.kind in CONTROLS:
            drawn = seed if options["seed"] is None else options["seed"]
            maps = [m.random_like(drawn, CONTROLS[method.kind]) for m in maps]
        shape = head_layout(model).shape
        if any(m.shape != shape for m in maps):
            raise SteeringError(f"method {method.name}: its heads are not those of this model")
    calibrated = method.base == "calibrated"
    scope = steerer.scope if calibrated and steerer else options.get("scope", "response")
    if maps and maps[0].info.scope not in ("", scope):
        found = maps[0].info.scope
        message = f"{method.name}: heads found with scope={found!r} steer with scope={scope!r}"
        warnings.warn(message, ScopeWarning, stacklevel=2)
    return Decoder(method, setting, maps, cast(Scope, scope))


def _maps(
    method: Method,
    examples: Sequence[Example],
    steerer: PreferenceSteerer | None,
    retrieval_heads: Callable[[float], HeadWeights] | None,
) -> Sequence[HeadWeights]:
    options = method.options
    if method.base == "decore":
        assert retrieval_heads is not None
        return [retrieval_heads(options["fraction"])] * len(examples)
    assert steerer is not None
    profiles = [e.profile for e in examples]
    if method.base == "calibrated":
        return steerer.heads_for(profiles, options["routing"])
    scores = steerer.scores.get("head")
    if scores is None:
        raise SteeringError(f"method {method.name}: no head of the fit was ablated as a whole")
    if method.base == "dps":
        return [scores.top(fraction=options["fraction"])] * len(examples)
    own = cluster_heads(scores, steerer.clusters, fraction=options["fraction"])
    return [mix(w, own) for w in steerer.cluster_weights(profiles, options["routing"])]


def _pair(text: str, method: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise DataError(f"method {method!r}: write options as name=value, not {text!r}")
    return key.strip(), value.strip()


def _value(key: str, text: str, method: str) -> Any:
    if key in CHOICES:
        if text not in CHOICES[key]:
            raise DataError(
                f"method {method!r}: {key} is one of {', '.join(CHOICES[key])}, not {text!r}"
            )
        return text
    try:
        number = int(text) if key in ("seed", "draws") else float(text)
    except ValueError:
        raise DataError(f"method {method!r}: {key} is a number, not {text!r}") from None
    low, high = {"fraction": (0, 1), "plausibility": (0, 1), "suppression": (0, 1)}.get(
        key, (0, float("inf"))
    )
    positive = key in ("temperature", "repetition_penalty", "fraction", "plausibility", "draws")
    if not low <= number <= high or number == float("inf") or (positive and number == 0):
        raise DataError(f"method {method!r}: {key}={text} is out of range")
    return number
