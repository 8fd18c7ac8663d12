"""prefheads: find the attention heads that carry what a model knows of a user, and steer with them.

An implementation of "Preference Heads in Large Language Models: A Mechanistic Framework for
Interpretable Personalization" (Differential Preference Steering, DPS).
"""

from importlib.metadata import PackageNotFoundError, version

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
