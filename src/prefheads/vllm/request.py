"""What a request asks for, checked where requests come in and resolved to gains of heads."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from operator import add
from typing import Any

import torch
from torch import Tensor

from prefheads.errors import SteeringError
from prefheads.heads.weights import HeadWeights
from prefheads.steering.setting import Setting
from prefheads.vllm.library import Library

KEY = "prefheads"
# Beside the request as it came; workers read only this, so that they need no files and all of them
# steer with the map that was checked.
_RESOLVED = "prefheads.resolved"
_OF_SETTING = ("gamma", "mode", "suppression")
_FIELDS = ("map", *_OF_SETTING, "target", "scope")


@dataclass(frozen=True)
class RequestSteering:
    """How one request is steered."""

    setting: Setting
    heads: tuple[int, ...]  # those with a non-zero weight, as ``layer * n_heads + head``
    weights: tuple[float, ...]  # theirs, in (0, 1]

    @property
    def contrasts(self) -> bool:
        """Whether it needs the second branch."""
        return self.setting.mode == "contrast"

    def gains(self, shape: tuple[int, int]) -> Tensor:
        """Gains ``(n_layers, n_heads)`` of the branch that is changed."""
        values = torch.zeros(shape[0] * shape[1])
        values[list(self.heads)] = torch.tensor(self.weights)
        return self.setting.gains(values.reshape(shape))

    @property
    def digest(self) -> str:
        """Equal only for requests that are steered alike."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def resolve(extra_args: Mapping[str, Any] | None, library: Library | None, contrast: bool) -> Any:
    """A request's ``extra_args``, with what the heads' gains follow from, which workers need.

    ``library`` holds the maps there are, None if the server was started without; ``contrast`` says
    whether it has the second branch. What cannot be honoured is an error.
    """
    if not extra_args or (KEY not in extra_args and _RESOLVED not in extra_args):
        return extra_args
    rest = {k: v for k, v in extra_args.items() if k != _RESOLVED}
    if rest.get(KEY) is None:
        return rest
    if library is None:
        raise SteeringError("this server has no head maps: start it with PREFHEADS_MAPS set")
    steering = _parse(_as_dict(rest[KEY]), library, contrast)
    return rest if steering is None else rest | {_RESOLVED: asdict(steering)}


def steering_of(extra_args: Mapping[str, Any] | None) -> RequestSteering | None:
    """How a request that passed :func:`resolve` is steered; None if it is not."""
    found = (extra_args or {}).get(_RESOLVED)
    if found is None:
        return None
    # Tuples come out of the message to the engine as lists.
    heads, weights = (tuple(found[k]) for k in ("heads", "weights"))
    return RequestSteering(Setting(**found["setting"]), heads, weights)


def _as_dict(asked: Any) -> Mapping[str, Any]:
    if isinstance(asked, str):  # what HTTP requests can carry
        try:
            asked = json.loads(asked)
        except ValueError:
            raise SteeringError(f"{KEY} is no valid JSON") from None
    if not isinstance(asked, Mapping):
        raise SteeringError(f'{KEY} is an object such as {{"map": "run/0", "gamma": 0.5}}')
    unknown = [str(k) for k in asked if k not in _FIELDS]
    if unknown:
        raise SteeringError(f"{KEY}: unknown field {unknown[0]!r}; there are {', '.join(_FIELDS)}")
    return asked


def _parse(asked: Mapping[str, Any], library: Library, contrast: bool) -> RequestSteering | None:
    for name in ("map", "gamma"):
        if name not in asked:
            raise SteeringError(f"{KEY}: {name} is missing")
    if asked.get("target", "head") != "head":
        raise SteeringError(
            f"{KEY}: target {asked['target']!r} is not served by vLLM, whose paged attention takes "
            "no bias on scores; use target 'head', or transformers"
        )
    if asked.get("scope", "response") != "response":
        raise SteeringError(f"{KEY}: vLLM steers the response only; scope is 'response'")
    given = {"mode": "contrast"} | {k: v for k, v in asked.items() if k in _OF_SETTING}
    try:
        setting = Setting(**given)
    except SteeringError as error:
        raise SteeringError(f"{KEY}: {error}") from None
    weights = _weights(asked["map"], library)
    if setting.mode == "contrast" and not contrast:
        raise SteeringError(
            f"{KEY}: this server only amplifies; start it without PREFHEADS_CONTRAST=0"
        )
    if setting.plain or not setting.change(weights.values).any():
        return None
    lowest = weights.heads[0][0]
    if setting.mode == "contrast" and lowest < library.fork:
        raise SteeringError(
            f"{KEY}: the map suppresses a head of layer {lowest}, but the second branch begins at "
            f"layer {library.fork}; start the server with PREFHEADS_FORK={lowest} or lower"
        )
    flat = weights.values.flatten()
    heads = flat.nonzero().flatten()
    return RequestSteering(setting, tuple(heads.tolist()), tuple(flat[heads].tolist()))


def _weights(asked: Any, library: Library) -> HeadWeights:
    if isinstance(asked, str):
        return library.get(asked)
    if not isinstance(asked, Mapping) or not asked or not all(isinstance(k, str) for k in asked):
        raise SteeringError(f"{KEY}: map is an id, or an object of ids and their shares")
    for name, share in asked.items():
        if type(share) not in (int, float) or not 0 <= share <= 1:
            raise SteeringError(f"{KEY}: {name} is a number from 0 to 1, not {share!r}")
    if sum(asked.values()) > 1 + 1e-6:
        raise SteeringError(f"{KEY}: the shares of maps add up to more than 1")
    shares = (share * library.get(name) for name, share in asked.items())
    mixed: HeadWeights = functools.reduce(add, shares)
    return mixed
