"""prefheads: find the attention heads that carry what a model knows of a user, and steer with them.

An implementation of "Preference Heads in Large Language Models: A Mechanistic Framework for
Interpretable Personalization" (Differential Preference Steering, DPS).

Importing the package is quick: torch and transformers are imported when a name is first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefheads.data.encoding import Encoded, encode
    from prefheads.data.example import Example, load_examples, split_users
    from prefheads.discovery import discover
    from prefheads.errors import (
        ArtifactError,
        DataError,
        ModelError,
        PrefheadsError,
        SteeringError,
    )
    from prefheads.heads.scores import HeadScores, HeadWeights
    from prefheads.interventions.layout import set_layers
    from prefheads.models.loading import load_model
    from prefheads.scoring.scorer import response_nll
    from prefheads.selftest.check import Check, check
    from prefheads.steerer.core import PreferenceSteerer
    from prefheads.steering.context import steer
    from prefheads.steering.response import response_from
else:
    # The same once more, for when the program runs; a test compares the two.
    _MODULES = {
        "data.encoding": ("Encoded", "encode"),
        "data.example": ("Example", "load_examples", "split_users"),
        "discovery": ("discover",),
        "errors": (
            "ArtifactError",
            "DataError",
            "ModelError",
            "PrefheadsError",
            "SteeringError",
        ),
        "heads.scores": ("HeadScores", "HeadWeights"),
        "interventions.layout": ("set_layers",),
        "models.loading": ("load_model",),
        "scoring.scorer": ("response_nll",),
        "selftest.check": ("Check", "check"),
        "steerer.core": ("PreferenceSteerer",),
        "steering.context": ("steer",),
        "steering.response": ("response_from",),
    }
    _HOME = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value  # so that this is asked once
        return value

    def __dir__():
        return sorted({*globals(), *__all__})


try:
    __version__ = version("prefheads")
except PackageNotFoundError:  # run from a source tree
    __version__ = "source"

__all__ = [
    "ArtifactError",
    "Check",
    "DataError",
    "Encoded",
    "Example",
    "HeadScores",
    "HeadWeights",
    "ModelError",
    "PreferenceSteerer",
    "PrefheadsError",
    "SteeringError",
    "check",
    "discover",
    "encode",
    "load_examples",
    "load_model",
    "response_from",
    "response_nll",
    "set_layers",
    "split_users",
    "steer",
]
