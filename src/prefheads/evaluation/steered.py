"""Decoding methods that are a map of heads for each user and a way to steer with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

from transformers import PreTrainedModel

from prefheads.calibration import paper
from prefheads.data.encoding import Batch
from prefheads.data.example import Example
from prefheads.errors import SteeringError
from prefheads.evaluation.decoder import Decoder
from prefheads.evaluation.draws import SEED
from prefheads.evaluation.methods import METHODS, Decoding, Method, Option, Sources
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.interventions.plan import Target
from prefheads.steerer.core import PreferenceSteerer, Routing
from prefheads.steering.context import Mode, Schedule, Scope
from prefheads.steering.generation import steer_with
from prefheads.steering.setting import Setting, percent
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


class Steered(Decoding):
    """Steering by :func:`prefheads.steer`; by default in the paper's form. Override ``maps``."""

    options: Mapping[str, Option] = PAPER
    needs_steerer = True
    likelihood = "setting"

    def problem(self, options: Mapping[str, Any], typed: Mapping[str, str]) -> str:
        if (options.get("mode"), options.get("schedule")) == ("amplify", "entropy"):
            return "a strength from entropy is for mode=contrast"
        if options.get("cap") is not None and options["schedule"] == "constant":
            return "cap is for schedule=entropy"
        return ""

    def setting(self, method: Method, steerer: PreferenceSteerer | None) -> Setting:
        names = ("mode", "target", "gamma", "suppression", "schedule", "cap")
        chosen = {name: method.options[name] for name in names if name in method.options}
        return Setting(heads=f"top {percent(method.options['fraction'])}%", **chosen)

    def described(self, setting: Setting) -> str:
        return str(setting)

    def acting(
        self,
        decoder: Decoder,
        model: PreTrainedModel,
        rows: slice,
        batch: Batch,
        bare: Callable[[], Batch],
    ) -> AbstractContextManager[Any]:
        if decoder.weights is None or decoder.setting.plain:
            return nullcontext()
        return steer_with(
            model, decoder.weights[rows], decoder.setting, decoder.scope, batch.profile_mask
        )


class RetrievalContrast(Steered):
    """DeCoRe, decoding by contrasting retrieval heads (Gema et al.), as its authors' code does: the
    prompt is encoded as it is, then the heads attend uniformly (their queries are zero)."""

    name = "decore"
    options: Mapping[str, Option] = PAPER | {
        "gamma": Option(1.0),
        "target": Option("query", get_args(Target)),
        "schedule": Option("entropy", get_args(Schedule)),
    }
    needs_steerer = False
    needs_retrieval_heads = True

    def maps(
        self, method: Method, examples: Sequence[Example], sources: Sources
    ) -> Sequence[HeadWeights]:
        assert sources.retrieval_heads is not None
        return [sources.retrieval_heads(method.options["fraction"])] * len(examples)


class GlobalHeads(Steered):
    """Differential Preference Steering as the paper has it (Eq. 8), heads of highest PCS."""

    name = "dps"

    def maps(
        self, method: Method, examples: Sequence[Example], sources: Sources
    ) -> Sequence[HeadWeights]:
        scores = _scores(method, sources)
        return [scores.top(fraction=method.options["fraction"])] * len(examples)


class ClusterHeads(Steered):
    """The same with heads of each user's cluster, weighted by importance and routing (5.3)."""

    name = "dps-cluster"
    options = PAPER | ROUTING

    def maps(
        self, method: Method, examples: Sequence[Example], sources: Sources
    ) -> Sequence[HeadWeights]:
        scores, steerer = _scores(method, sources), sources.steerer
        assert steerer is not None
        own = cluster_heads(scores, steerer.clusters, fraction=method.options["fraction"])
        profiles = [e.profile for e in examples]
        return [mix(w, own) for w in steerer.cluster_weights(profiles, method.options["routing"])]


class Calibrated(Steered):
    """What calibration chose."""

    name = "calibrated"
    options = ROUTING

    def setting(self, method: Method, steerer: PreferenceSteerer | None) -> Setting:
        assert steerer is not None
        return steerer.setting

    def scope(self, method: Method, steerer: PreferenceSteerer | None) -> Scope:
        assert steerer is not None
        return steerer.scope

    def maps(
        self, method: Method, examples: Sequence[Example], sources: Sources
    ) -> Sequence[HeadWeights]:
        assert sources.steerer is not None
        return sources.steerer.heads_for([e.profile for e in examples], method.options["routing"])


class RandomControl(Steered):
    """A control of another method: as many heads elsewhere, or a random map as sparse.

    Its results are the mean over draws, or those of one draw of a seed. Its further options are
    those of the other method.
    """

    options: Mapping[str, Option] = {}

    def __init__(self, name: str, shuffles: Literal["heads", "mask"]) -> None:
        self.name, self.shuffles = name, shuffles

    def options_for(self, typed: Mapping[str, str]) -> dict[str, Option]:
        known = METHODS.all().values()
        steered = [m for m in known if isinstance(m, Steered) and not isinstance(m, RandomControl)]
        ranked = sorted(steered, key=lambda m: m.needs_retrieval_heads)  # the usual ones first
        of = Option("dps", tuple(m.name for m in ranked))
        base = next((m for m in ranked if m.name == typed.get("of", of.default)), None)
        return {
            **super().options_for(typed),
            "of": of,
            "draws": Option(5, positive=True, whole=True),
            "seed": Option(None, whole=True),
            **(base.options_for(typed) if base else {}),
        }

    def problem(self, options: Mapping[str, Any], typed: Mapping[str, str]) -> str:
        if options["seed"] is not None and "draws" in typed and "seed" in typed:
            return "a seed is of one draw; give it or draws"
        return self.base(options).problem(options, typed)

    def base(self, options: Mapping[str, Any]) -> Decoding:
        return METHODS.all()[options["of"]]

    def drawn(self, method: Method, seed: int) -> list[Method]:
        if method.options["seed"] is not None:
            return [method]
        options = {**method.options, "draws": 1}
        return [
            Method(f"{method.name}{SEED}{number}", self, options | {"seed": number})
            for number in range(seed, seed + method.options["draws"])
        ]

    def maps(
        self, method: Method, examples: Sequence[Example], sources: Sources
    ) -> Sequence[HeadWeights]:
        seed = sources.seed if method.options["seed"] is None else method.options["seed"]
        own = self.base(method.options).maps(method, examples, sources)
        return [m.random_like(seed, self.shuffles) for m in own]


STEERED = (
    RetrievalContrast(),
    GlobalHeads(),
    ClusterHeads(),
    Calibrated(),
    RandomControl("random-heads", "heads"),
    RandomControl("random-mask", "mask"),
)


def _scores(method: Method, sources: Sources) -> HeadScores:
    """Scores of whole heads, which the paper ranks by."""
    assert sources.steerer is not None
    scores = sources.steerer.scores.get("head")
    if scores is None:
        raise SteeringError(f"method {method.name}: no head of the fit was ablated as a whole")
    return scores
