"""Choose how to steer by the likelihood of held-out responses.

:func:`calibrate` scores every setting on samples of its own, by users who took no part in
discovery, and prefers the weaker among settings that cannot be told apart. Doing nothing is always
a candidate. All settings of an example share one encoded prompt, and every gamma of a contrast
comes from the same two logit tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.calibration.headsets import grid
from prefheads.checkpoint import Checkpoint, digest, model_marks
from prefheads.data.example import Example, other_profiles
from prefheads.errors import DataError, SteeringError
from prefheads.interventions.intercept import intercept, masked_backend
from prefheads.models.limits import Budget
from prefheads.scoring.scorer import Scorer, encode_all, mean_nll
from prefheads.stats import Array, user_means
from prefheads.steering.combine import divergence, require_numbers
from prefheads.steering.setting import PLAIN, Setting
from prefheads.types import Objective, Scope, Target

TEMPERATURES = (0.8, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)


def score_settings(
    scorer: Scorer,
    maps: Mapping[str, Tensor],
    settings: Sequence[Setting],
    temperatures: Sequence[float] = (1.0,),
) -> tuple[Tensor, Tensor]:
    """Mean NLL of one example's response under many settings ``(n_settings, n_temperatures)``, in
    nats a token, and the mean divergence from plain decoding, KL(plain || steered),
    ``(n_settings,)``. Infinite for a setting that rules out a token of the response, or any that
    plain decoding does not; a DataError where the model itself rules out a token of the response,
    a ModelError where logits are no numbers.

    Args:
        maps: Weights ``(n_layers, n_heads)`` of each head set.
    """
    nll = torch.full((len(settings), len(temperatures)), torch.nan)
    kl = torch.zeros(len(settings))
    shape = next(iter(maps.values())).shape
    for target in get_args(Target):
        rows: dict[tuple[Any, ...], list[int]] = {}  # settings that need the same changed branch
        for i, s in enumerate(settings):
            if not s.plain and s.target == target:
                degree = s.gamma if s.mode == "amplify" else s.suppression
                rows.setdefault((s.heads, s.mode, degree), []).append(i)
        users = list(rows.values())
        gains = [settings[u[0]].gains(maps[settings[u[0]].heads]) for u in users]
        if target == "head" and not gains:
            gains, users = [torch.ones(shape)], [[]]  # plain alone still needs its pass
        if not gains:
            continue
        for indices, logits in scorer.logits(torch.stack(gains), target):
            plain = logits[0].float()
            log_plain = plain.log_softmax(-1)
            written = log_plain.gather(-1, scorer.targets[:, None])
            require_numbers(written, scorer.encoded.example_id)
            if written.isneginf().any():
                raise DataError(
                    f"example {scorer.encoded.example_id!r}: the model rules out a token of the "
                    "response (its logit is minus infinity); take the example out"
                )
            for i, s in enumerate(settings):
                if s.plain and torch.isnan(nll[i]).any():
                    nll[i] = mean_nll(plain, scorer.targets, temperatures)
            for row, changed in zip(indices.tolist(), logits[1:].float(), strict=True):
                for i in users[row]:
                    s = settings[i]
                    steered = changed if s.mode == "amplify" else s.contrasted(plain, changed)
                    nll[i] = mean_nll(steered, scorer.targets, temperatures)
                    kl[i] = divergence(log_plain, steered.log_softmax(-1)).mean().cpu()
    require_numbers(torch.cat([nll.flatten(), kl]), scorer.encoded.example_id)
    return nll, kl


@dataclass(frozen=True)
class Calibration:
    """Every setting's score on the calibration samples, and the choice.

    Attributes:
        settings: All candidates; the first is plain decoding.
        change: ``(n_settings,)`` mean change of NLL against plain, nats a token (negative helps);
            infinite for a setting that rules out what users wrote.
        stderr: ``(n_settings,)`` its standard error over users; NaN for such a setting.
        specificity: ``(n_settings,)`` mean change of specificity, or None if it was not measured.
        divergence: ``(n_settings,)`` mean KL(plain || steered), how far the setting moves things.
        chosen: Index of the setting to use; 0 where nothing helps.
        plain_temperature, temperature: Best temperatures of plain decoding and of the chosen one.
        plain_nll: Mean NLL of plain decoding.
        n_examples, n_users: Calibration samples and users behind it.
    """

    settings: tuple[Setting, ...]
    change: tuple[float, ...]
    stderr: tuple[float, ...]
    specificity: tuple[float, ...] | None
    divergence: tuple[float, ...]
    chosen: int
    plain_temperature: float
    temperature: float
    plain_nll: float
    n_examples: int
    n_users: int

    @property
    def setting(self) -> Setting:
        """The chosen setting."""
        return self.settings[self.chosen]

    @property
    def best_tried(self) -> Setting:
        """The steered setting with the lowest mean NLL, whether or not it was worth choosing."""
        return self.best(lambda setting: not setting.plain)

    def best(self, among: Callable[[Setting], bool]) -> Setting:
        """The setting with the lowest mean NLL of those of a kind; plain where there is none."""
        found = [i for i, setting in enumerate(self.settings) if among(setting)]
        return self.settings[min(found, key=lambda i: self.change[i])] if found else PLAIN

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data."""
        return asdict(self) | {"settings": [s.to_dict() for s in self.settings]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], scope: Scope = "response") -> Calibration:
        """Inverse of :meth:`to_dict`, for settings of this scope."""
        rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        rest["settings"] = tuple(Setting(**s, scope=scope) for s in data["settings"])
        return cls(**rest)


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    maps: Mapping[str, Tensor],
    settings: Sequence[Setting] | None = None,
    *,
    objective: Objective = "likelihood",
    checkpoint: str | Path | None = None,
    tokens_per_pass: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Choose how to steer by the mean NLL of responses that discovery has not seen.

    Args:
        examples: Calibration samples, of users who are neither in discovery nor in test.
        maps: Head sets by name: one map ``(n_layers, n_heads)``, or one a sample
            ``(n_examples, n_layers, n_heads)`` where users differ (clusters, routing).
        settings: Candidates, all of one scope; by default
            :func:`prefheads.calibration.headsets.grid` of all head sets.
        objective: ``"likelihood"``: the lowest NLL. ``"specificity"``: the largest rise of
            NLL(another user's profile) - NLL(own), among settings that do not raise the NLL.
        checkpoint: File to keep finished samples in, so that a killed run goes on from there.
        tokens_per_pass: Memory bound; halved by itself when memory runs out.
        seed: Decides whose profile is the other one.

    Raises:
        DataError: No samples, only one user, or a response that the model rules out.
        ModelError: Logits that are no numbers.
        ArtifactError: The checkpoint belongs to another run, or cannot be read or written.
    """
    if not examples:
        raise DataError("no samples to calibrate on")
    candidates = tuple(settings) if settings is not None else grid(tuple(maps))
    candidates = (PLAIN, *(s for s in candidates if not s.plain))
    if unknown := {s.heads for s in candidates if not s.plain} - set(maps):
        raise SteeringError(f"no map for head set {sorted(unknown)[0]!r}")
    users = [e.user_id for e in examples]
    if len(set(users)) < 2:
        raise DataError("calibration needs samples of at least two users")
    contexts = [list(examples)]
    if objective == "specificity":
        contexts.append(other_profiles(examples, seed))
    score = partial(
        sweep, model, tokenizer, maps=maps, tokens_per_pass=tokens_per_pass, progress=progress
    )
    nll, kl = score(contexts, settings=candidates, checkpoint=checkpoint)
    own = nll[:, 0, :, 0]
    gain = user_means(own[:, :1] - own, users)  # (n_users, n_settings), positive helps
    rise: Array | None = None
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        if objective == "specificity":
            specific = nll[:, 1, :, 0] - own
            rise = user_means(specific - specific[:, :1], users)
        stderr = gain.std(0, ddof=1) / np.sqrt(len(gain))
    moved = kl.mean(0)
    chosen = choose(gain, moved, rise)
    degrees, _ = score(
        contexts[:1],
        settings=[PLAIN, candidates[chosen]],
        temperatures=TEMPERATURES,
        checkpoint=beside(checkpoint, "temperature"),
        label="temperature",
    )
    best = degrees[:, 0].mean(0).argmin(1)
    return Calibration(
        settings=candidates,
        change=tuple((-gain.mean(0)).tolist()),
        stderr=tuple(stderr.tolist()),
        specificity=None if rise is None else tuple(rise.mean(0).tolist()),
        divergence=tuple(moved.tolist()),
        chosen=chosen,
        plain_temperature=TEMPERATURES[int(best[0])],
        temperature=TEMPERATURES[int(best[1])],
        plain_nll=float(own[:, 0].mean()),
        n_examples=len(examples),
        n_users=len(gain),
    )


def beside(path: str | Path | None, word: str) -> Path | None:
    """A file with a word more in its name; None if there is none."""
    return None if path is None else Path(path).with_stem(f"{Path(path).stem}-{word}")


def choose(gain: Array, divergence: Array, rise: Array | None = None) -> int:
    """The setting to use; index 0 is doing nothing.

    A setting is worth considering if the 95 % interval of its gain over plain is above 0 (with
    ``rise``: if its rise is, and its mean gain is not negative). Among those within one
    standard error of the best, by paired differences, the one that diverges least wins. Settings
    with any value that is not finite are left out.

    Args:
        gain: ``(n_users, n_settings)`` fall of NLL against plain.
        divergence: ``(n_settings,)`` how far each setting moves the distribution.
        rise: ``(n_users, n_settings)`` rise of specificity, if that is the objective.
    """
    usable = np.isfinite(divergence) & np.isfinite(gain).all(0)
    if rise is not None:
        usable &= np.isfinite(rise).all(0) & (gain.mean(0) >= 0)
    aim = np.where(usable, gain if rise is None else rise, 0.0)
    n = len(aim)

    def error(x: Array) -> Array:
        return np.asarray(x.std(0, ddof=1) / np.sqrt(n))

    reach = stdtrit(n - 1, 0.975)  # few users need more than two errors
    worth = usable & (aim.mean(0) > reach * error(aim))
    worth[0] = False
    if not worth.any():
        return 0
    best = int(np.where(worth, aim.mean(0), -np.inf).argmax())
    behind = aim[:, [best]] - aim
    close = worth & (behind.mean(0) <= error(behind))
    return int(np.where(close, divergence, np.inf).argmin())


def sweep(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[Sequence[Example]],
    maps: Mapping[str, Tensor],
    settings: Sequence[Setting],
    *,
    temperatures: Sequence[float] = (1.0,),
    checkpoint: str | Path | None = None,
    tokens_per_pass: int = 1024,
    progress: bool = True,
    label: str = "calibrate",
) -> tuple[Array, Array]:
    """NLL of all examples in each of several contexts, under all settings of one scope
    ``(n_examples, n_contexts, n_settings, n_temperatures)`` in nats a token, and the divergence
    from plain decoding in the first context ``(n_examples, n_settings)``.

    Args:
        contexts: Equally long lists of examples: the same ones with the own profile, with another
            user's, without.
    """
    budget = Budget(tokens_per_pass)
    encoded = [encode_all(model, tokenizer, examples) for examples in contexts]
    scope, *others = {s.scope for s in settings if not s.plain} or {"response"}
    if others:
        raise SteeringError("settings that are scored together need one scope")
    options: list[Any] = [scope, [s.to_dict() for s in settings], list(temperatures), list(maps)]
    options += model_marks(model)
    run = digest(options, itertools.chain(*encoded), list(maps.values()))

    def row(i: int) -> dict[str, Tensor]:
        own = {name: m[i] if m.dim() == 3 else m for name, m in maps.items()}
        scored = [
            score_settings(Scorer(model, e[i], scope, budget), own, settings, temperatures)
            for e in encoded
        ]
        return {"nll": torch.stack([a for a, _ in scored]), "kl": scored[0][1]}

    with intercept(model, masked_backend(model)):
        store = Checkpoint(checkpoint, run)
        result = store.fill(range(len(encoded[0])), row, label, progress)
    return result["nll"].double().numpy(), result["kl"].double().numpy()
