"""prefheads: find the attention heads that carry what a model knows of a user, and steer with them.

An implementation of "Preference Heads in Large Language Models: A Mechanistic Framework for
Interpretable Personalization" (Differential Preference Steering, DPS).
"""

from importlib.metadata import PackageNotFoundError, version

from prefheads.check import Check, check
from prefheads.discovery import discover
from prefheads.encoding import Encoded, encode
from prefheads.errors import (
    ArtifactError,
    DataError,
    ModelError,
    PrefheadsError,
    SteeringError,
)
from prefheads.examples import Example, load_examples, split_users
from prefheads.heads import HeadScores, HeadWeights
from prefheads.layout import set_layers
from prefheads.loading import load_model
from prefheads.response import response_from
from prefheads.scoring import response_nll
from prefheads.steerer import PreferenceSteerer
from prefheads.steering import steer

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
