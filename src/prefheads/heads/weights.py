"""Head weights: how strongly steering acts on each attention head (section 5.2), and where they
come from."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor

from prefheads.errors import ArtifactError, PrefheadsError, SteeringError
from prefheads.storage import PathLike, load_tensors, save_tensors
from prefheads.types import Control

Head = tuple[int, int]  # (layer, head)

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
    """16 hex digits that fix the kind and shape of a model, from its transformers config, and with
    them the places of its heads; fine-tuned variants of a model share it."""
    text = config.get_text_config()
    parts = {name: getattr(text, name, None) for name in _FINGERPRINT_FIELDS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


_TOLERANCE = 1e-6  # rounding that sums of weights may pick up around 0 and 1


@dataclass(frozen=True, eq=False, repr=False)
class HeadWeights:
    """How strongly each attention head is acted on: 0 leaves it alone, 1 is full strength.

    Maps of equal shape mix linearly: ``0.3 * a + 0.7 * b``. A result outside [0, 1] is an error.

    Attributes:
        values: ``(n_layers, n_heads)`` float32 in [0, 1], on the CPU.
        info: where the map comes from.

    Raises:
        SteeringError: not two-dimensional, not finite, or outside [0, 1].
    """

    values: Tensor
    info: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        values = cpu_float32(self.values)
        if values.ndim != 2 or not values.numel():
            raise SteeringError(f"head weights are (layers, heads), not of shape {dims(values)}")
        if not torch.isfinite(values).all():
            layer, head = torch.nonzero(~torch.isfinite(values))[0].tolist()
            kind = "NaN" if values[layer, head].isnan() else "infinity"
            raise SteeringError(f"{kind} in the weights, at layer {layer}, head {head}")
        low, high = values.min().item(), values.max().item()
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            raise SteeringError(
                f"head weights lie in [0, 1], not in [{low:g}, {high:g}]; "
                "scale maps before adding them, e.g. 0.5 * a + 0.5 * b"
            )
        object.__setattr__(self, "values", values.clamp(0, 1))

    @classmethod
    def from_heads(
        cls, shape: tuple[int, int], heads: Iterable[Head], info: Provenance | None = None
    ) -> Self:
        """Binary map of the given ``(layer, head)`` pairs; pairs outside ``shape`` are an error."""
        values = torch.zeros(shape)
        for layer, head in heads:
            if not (0 <= layer < shape[0] and 0 <= head < shape[1]):
                raise SteeringError(
                    f"head {layer}.{head} is outside of {shape[0]} layers x {shape[1]} heads"
                )
            values[layer, head] = 1
        return cls(values, info or Provenance())

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_layers, n_heads)``."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def heads(self) -> list[Head]:
        """The ``(layer, head)`` pairs with a non-zero weight, in order."""
        return [(layer, head) for layer, head in torch.nonzero(self.values).tolist()]

    @property
    def n_active(self) -> int:
        """Number of heads with a non-zero weight."""
        return int(torch.count_nonzero(self.values))

    def __add__(self, other: object) -> "HeadWeights":
        if not isinstance(other, HeadWeights):
            return NotImplemented
        self._require_shape_of(other)
        return HeadWeights(self.values + other.values, self.info.common(other.info))

    def __mul__(self, factor: object) -> "HeadWeights":
        if not isinstance(factor, Real):
            return NotImplemented
        return HeadWeights(self.values * float(factor), self.info)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HeadWeights):
            return NotImplemented
        return torch.equal(self.values, other.values) and self.info == other.info

    def __repr__(self) -> str:
        strongest = torch.argsort(self.values.flatten(), descending=True, stable=True)
        shown = [f"{i // self.shape[1]}.{i % self.shape[1]}" for i in strongest[:8].tolist()]
        names = ", ".join(shown[: self.n_active]) + (", ..." if self.n_active > 8 else "")
        return f"HeadWeights({dims(self.values)}, {self.n_active} active: {names or 'none'})"

    def overlap(self, other: "HeadWeights") -> float:
        """Jaccard overlap of the two sets of active heads (6.3); 1 if both are empty."""
        self._require_shape_of(other)
        mine, theirs = self.values > 0, other.values > 0
        union = int((mine | theirs).sum())
        return int((mine & theirs).sum()) / union if union else 1.0

    def random_like(self, seed: int, kind: Control = "heads") -> "HeadWeights":
        """A random control for this map (6.4).

        Args:
            seed: fixes the draw.
            kind: "heads" puts the same non-zero weights on other heads, drawn at random; own heads
                return only where there are not enough others. "mask" puts them on any heads.
        """
        generator = torch.Generator().manual_seed(seed)
        own = self.values.flatten()
        strengths, drawn = own[own > 0], torch.zeros_like(own)
        if kind == "heads":
            shuffled = torch.randperm(own.numel(), generator=generator)
            others_first = torch.cat([shuffled[own[shuffled] == 0], shuffled[own[shuffled] > 0]])
            order = torch.randperm(len(strengths), generator=generator)
            drawn[others_first[: len(strengths)]] = strengths[order]
        elif kind == "mask":
            drawn = own[torch.randperm(own.numel(), generator=generator)]
        else:
            raise SteeringError(f"kind of a random control is 'heads' or 'mask', not {kind!r}")
        info = replace(self.info, method=f"random-{kind}", seed=seed)
        return HeadWeights(drawn.reshape(self.shape), info)

    def save(self, path: PathLike) -> None:
        """Write to a safetensors file; ArtifactError if that fails, and then no half file."""
        save_tensors(path, {"values": self.values}, "head weights", {"info": asdict(self.info)})

    @classmethod
    def load(cls, path: PathLike, model: Any = None) -> Self:
        """Read a saved map.

        Args:
            path: file written by ``save``.
            model: the model (or its config) it is meant for; its kind and shape are then checked.

        Raises:
            ArtifactError: missing, damaged or foreign file, or made for another model.
        """
        tensors, meta = load_tensors(path, "head weights")
        try:
            weights = cls(tensors["values"], Provenance(**meta["info"]))
        except (KeyError, TypeError, PrefheadsError) as error:
            raise ArtifactError(f"{path}: damaged head weights ({error})") from error
        if model is not None:
            require_model(path, weights.values, weights.info, getattr(model, "config", model))
        return weights

    def _require_shape_of(self, other: "HeadWeights") -> None:
        if self.shape != other.shape:
            raise SteeringError(
                f"head weights of {dims(self.values)} and {dims(other.values)} do not go together"
            )


def require_model(path: PathLike, values: Tensor, info: Provenance, config: Any) -> None:
    """Refuse what was measured, ``(..., n_layers, n_heads)``, on another model than the one of this
    transformers config."""
    text = config.get_text_config()
    wanted = (getattr(text, "num_hidden_layers", None), getattr(text, "num_attention_heads", None))
    same_shape = tuple(values.shape[-2:]) == wanted or not all(isinstance(n, int) for n in wanted)
    ours, theirs = info.fingerprint, fingerprint(config)
    if same_shape and ours in ("", theirs):
        return
    here = (
        f"{getattr(config, '_name_or_path', '') or 'this one'} ({theirs}, {wanted[0]}x{wanted[1]})"
    )
    raise ArtifactError(
        f"{path}: made for the model {info.model_id or 'without a name'} "
        f"({ours or 'no fingerprint'}, {dims(values)}), not for {here}; "
        "discover the heads of this model, or give the other one"
    )


def cpu_float32(values: Any) -> Tensor:
    """A copy of its own, so that nobody else's writes reach it."""
    tensor: Tensor = torch.as_tensor(values)
    return tensor.detach().to("cpu", torch.float32, copy=True)


def dims(values: Tensor) -> str:
    """A shape in words, such as "30x9"."""
    return "x".join(str(n) for n in values.shape) or "scalar"
