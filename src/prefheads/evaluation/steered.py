"""Decoding methods that are a map of heads for each user and a way to steer with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, get_args

from prefheads.calibration import paper
from prefheads.calibration.headsets import percent
from prefheads.errors import DataError, SteeringError
from prefheads.evaluation.decoder import Decoder
from prefheads.evaluation.methods import METHODS, Method, Option, Prompts, Sources
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.context import steer_with
from prefheads.steering.setting import Setting
from prefheads.types import Control, Mode, Routing, Schedule, Scope, Target
from prefheads.users import cluster_heads, mix

ROUTING = {"routing": Option("soft", get_args(Routing))}
PAPER = {
    "gamma": Option(paper.GAMMA),
    "fraction": Option(paper.SHARE, highest=1, positive=True),
    "mode": Option("contrast", get_args(Mode)),
    "target": Option("head", get_args(Target)),
    "suppression": Option(1.0, highest=1),
    "schedule": Option("constant", get_args(Schedule)),
    "cap": Option(None),
    "scope": Option("response", get_args(Scope)),
}


SEED = ":seed="
"""What the name of a draw has after that of its method, and then its seed."""


class SteeredMethod(Method):
    """Steering by :func:`prefheads.steer`; by default in the paper's form. Override ``maps``."""

    accepts: Mapping[str, Option] = PAPER
    needs_steerer = True
    likelihood = "setting"

    def check(self, typed: Mapping[str, str]) -> None:
        options = self.options
        if (options.get("mode"), options.get("schedule")) == ("amplify", "entropy"):
            raise DataError("a strength from entropy is for mode=contrast")
        if options.get("cap") is not None and options["schedule"] == "constant":
            raise DataError("cap is for schedule=entropy")

    def setting(self, steerer: PreferenceSteerer | None) -> Setting:
        names = ("mode", "target", "gamma", "suppression", "schedule", "cap", "scope")
        chosen = {name: self.options[name] for name in names}
        return Setting(heads=f"top {percent(self.options['fraction'])}%", **chosen)

    def described(self, setting: Setting) -> str:
        return str(setting)

    def acting(self, decoder: Decoder, prompts: Prompts) -> AbstractContextManager[Any]:
        if decoder.weights is None or decoder.setting.plain:
            return nullcontext()
        weights, mask = decoder.weights[prompts.rows], prompts.batch.profile_mask
        return steer_with(prompts.model, weights, decoder.setting, mask)


class RetrievalContrast(SteeredMethod):
    """DeCoRe, decoding by contrasting retrieval heads (Gema et al.), as its authors' code does: the
    prompt is encoded as it is, then the heads attend uniformly (their queries are zero)."""

    kind = "decore"
    accepts: Mapping[str, Option] = PAPER | {
        "gamma": Option(1.0),
        "target": Option("query", get_args(Target)),
        "schedule": Option("entropy", get_args(Schedule)),
    }
    needs_steerer = False
    needs_retrieval_heads = True

    def maps(self, sources: Sources) -> Sequence[HeadWeights]:
        assert sources.retrieval_heads is not None
        return [sources.retrieval_heads(self.options["fraction"])] * len(sources.examples)


class GlobalHeads(SteeredMethod):
    """Differential Preference Steering as the paper has it (Eq. 8), heads of highest PCS."""

    kind = "dps"

    def maps(self, sources: Sources) -> Sequence[HeadWeights]:
        top = _scores(self, sources)[1].top(fraction=self.options["fraction"])
        return [top] * len(sources.examples)


class ClusterHeads(SteeredMethod):
    """The same with heads of each user's cluster, weighted by importance and routing (5.3)."""

    kind = "dps-cluster"
    accepts: Mapping[str, Option] = PAPER | ROUTING

    def maps(self, sources: Sources) -> Sequence[HeadWeights]:
        steerer, scores = _scores(self, sources)
        own = cluster_heads(scores, steerer.clusters, fraction=self.options["fraction"])
        profiles = [e.profile for e in sources.examples]
        return [mix(w, own) for w in steerer.cluster_weights(profiles, self.options["routing"])]


class Calibrated(SteeredMethod):
    """What calibration chose."""

    kind = "calibrated"
    accepts: Mapping[str, Option] = ROUTING

    def setting(self, steerer: PreferenceSteerer | None) -> Setting:
        assert steerer is not None
        return steerer.setting

    def scope(self, steerer: PreferenceSteerer | None) -> Scope:
        assert steerer is not None
        return steerer.scope

    def maps(self, sources: Sources) -> Sequence[HeadWeights]:
        assert sources.steerer is not None
        profiles = [e.profile for e in sources.examples]
        return sources.steerer.heads_for(profiles, self.options["routing"])


class RandomControl(SteeredMethod):
    """A control of another method: as many heads elsewhere, or a random map as sparse.

    Its results are the mean over draws, or those of one draw of a seed. Its further options are
    those of the other method.
    """

    def __init__(self, kind: str, shuffles: Control) -> None:
        self.kind, self.shuffles = kind, shuffles
        super().__init__()

    def accepted(self, typed: Mapping[str, str]) -> dict[str, Option]:
        known = [m for m in METHODS.all().values() if isinstance(m, SteeredMethod)]
        others = [m for m in known if not isinstance(m, RandomControl)]
        # In messages, those by discovered heads come first.
        ranked = {m.kind: m for m in sorted(others, key=lambda m: m.needs_retrieval_heads)}
        own = {
            "of": Option("dps", tuple(ranked)),
            "draws": Option(5, positive=True, whole=True),
            "seed": Option(None, whole=True),
        }
        of = ranked.get(typed.get("of", "dps"))
        return {**Method().accepted(typed), **own, **(of.accepted(typed) if of else {})}

    def with_options(self, name: str, options: dict[str, Any]) -> Self:
        made, of = super().with_options(name, options), METHODS.all()[options["of"]]
        made.needs_steerer, made.needs_retrieval_heads = of.needs_steerer, of.needs_retrieval_heads
        return made

    def check(self, typed: Mapping[str, str]) -> None:
        super().check(typed)
        if self.options["seed"] is not None and "draws" in typed and "seed" in typed:
            raise DataError("a seed is of one draw; give it or draws")

    @property
    def of(self) -> Method:
        return METHODS.all()[self.options["of"]].with_options(self.name, self.options)

    def drawn(self, seed: int) -> Sequence[Method]:
        if self.options["seed"] is not None:
            return [self]
        return [
            self.with_options(f"{self.name}{SEED}{n}", {**self.options, "draws": 1, "seed": n})
            for n in range(seed, seed + self.options["draws"])
        ]

    def setting(self, steerer: PreferenceSteerer | None) -> Setting:
        return self.of.setting(steerer)

    def scope(self, steerer: PreferenceSteerer | None) -> Scope:
        return self.of.scope(steerer)

    def maps(self, sources: Sources) -> Sequence[HeadWeights]:
        seed = sources.seed if self.options["seed"] is None else self.options["seed"]
        return [m.random_like(seed, self.shuffles) for m in self.of.maps(sources)]


_CONTROLS = (RandomControl("random-heads", "heads"), RandomControl("random-mask", "mask"))
STEERED = (RetrievalContrast(), GlobalHeads(), ClusterHeads(), Calibrated(), *_CONTROLS)


def _scores(method: Method, sources: Sources) -> tuple[PreferenceSteerer, HeadScores]:
    """The steerer, and its scores of whole heads, which the paper ranks by."""
    assert sources.steerer is not None
    scores = sources.steerer.scores.get("head")
    if scores is None:
        raise SteeringError(f"method {method.name}: no head of the fit was ablated as a whole")
    return sources.steerer, scores
