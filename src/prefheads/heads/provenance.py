"""Where scores and weights come from, and which model they belong to."""

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from typing import Any

_FINGERPRINT_FIELDS = (
    "model_type",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "head_dim",
    "num_key_value_heads",
    "vocab_size",
    "intermediate_size",
)


def _version() -> str:
    try:
        return metadata.version("prefheads")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "source"


@dataclass(frozen=True)
class Provenance:
    """Where scores or weights come from; travels with them into files.

    In a mixture of several maps, a field they disagree on is blank ("", None or 0).
    """

    model_id: str = ""
    fingerprint: str = ""
    task: str | None = None
    scope: str = "response"
    target: str = "head"
    reference: str | None = None
    method: str = "exact"
    ablation: str = "zero"
    n_examples: int = 0
    seed: int = 0
    version: str = field(default_factory=_version)

    def differing(self, other: "Provenance") -> list[str]:
        """Names of the fields in which two differ."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def common(self, other: "Provenance") -> "Provenance":
        """What two agree on, the rest blank."""
        blank: dict[str, Any] = {"task": None, "reference": None, "n_examples": 0, "seed": 0}
        return replace(self, **{name: blank.get(name, "") for name in self.differing(other)})


def fingerprint(config: Any) -> str:
    """16 hex digits that fix the kind and shape of a model, from its transformers config.

    Two models with the same fingerprint have the same heads in the same places; fine-tuned
    variants of a model share it.
    """
    text = config.get_text_config()
    parts = {name: getattr(text, name, None) for name in _FINGERPRINT_FIELDS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
