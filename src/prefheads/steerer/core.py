"""PreferenceSteerer: Algorithm 1 of the paper, from a dataset of users to text for a new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.calibration.calibrate import Calibration, Objective, calibrate
from prefheads.calibration.headsets import candidates, head_sets
from prefheads.calibration.paper import paper_rows
from prefheads.calibration.validate import Validation, validate
from prefheads.data.example import Example, split_users, spread
from prefheads.data.people import Seen
from prefheads.discovery import Reference, discover
from prefheads.errors import DataError, SteeringError
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.interventions.plan import Target
from prefheads.scoring.scorer import encode_all
from prefheads.steerer import files as steerer_files
from prefheads.steering.context import Mode, Scope
from prefheads.steering.generation import generate_texts
from prefheads.steering.setting import Setting
from prefheads.storage import writable_dir
from prefheads.users import Clusters, ProfileEncoder, cluster_heads, fit_clusters, mix, route
from prefheads.users.embed import require_extra

Routing = Literal["hard", "soft"]
Profile = Sequence[Mapping[str, str]]
PARTS = ("discovery", "calibration", "test")


@dataclass
class PreferenceSteerer:
    """Clusters of users, the heads of each, and the calibrated way to steer with them.

    Attributes:
        clusters: Groups of discovery users by profile.
        maps: One map of heads a cluster.
        shared: The map of all discovery users together.
        calibration: How the steering was chosen, with the whole curve.
        scores: What discovery measured, by what ablation took away.
        users: Which users took part in discovery and calibration, and which are left for tests.
        seen: Their samples, and what they are known by where files name nobody.
        scope, routing, temperature, encoder: How generation steers, routes and embeds.
        task: Form of the prompts (a LaMP task's name, or None).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    clusters: Clusters
    maps: list[HeadWeights]
    shared: HeadWeights
    calibration: Calibration
    users: dict[str, list[str]]
    seen: Seen = field(default_factory=Seen)
    scores: dict[str, HeadScores] = field(default_factory=dict)
    scope: Scope = "response"
    routing: Routing = "soft"
    temperature: float = 0.1
    encoder: str = "bundled"
    task: str | None = None
    seed: int = 0

    @classmethod
    def fit(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Iterable[Example],
        n_clusters: int | None = None,
        *,
        fractions: Sequence[float] = (0.5, 0.25, 0.25),
        discovery_limit: int | None = None,
        calibration_limit: int | None = None,
        targets: Sequence[Target] = ("head", "profile"),
        reference: Reference | None = None,
        scope: Scope = "response",
        settings: Sequence[Setting] | None = None,
        objective: Objective = "likelihood",
        routing: Routing = "soft",
        temperature: float = 0.1,
        min_samples: int = 10,
        encoder: str = "bundled",
        run: str | Path | None = None,
        tokens_per_pass: int = 1024,
        seed: int = 0,
        progress: bool = True,
    ) -> Self:
        """Phases 1 and 2 of Algorithm 1, then calibration.

        Args:
            examples: Samples of many users, each with a response.
            n_clusters: Number of clusters; chosen so that each keeps ``min_samples`` if None.
            fractions: Shares of the users for discovery, calibration, and tests (left untouched;
                without a third share there are none); positive, with sum 1.
            discovery_limit, calibration_limit: At most so many samples, evenly over the users; the
                others' discovery profiles take part in clustering.
            targets: What ablation takes away in discovery; calibration chooses between the heads
                found with each.
            reference, scope: As for :func:`prefheads.discover`.
            settings, objective: As for :func:`prefheads.calibration.calibrate.calibrate`; by
            default those of
                :func:`prefheads.calibration.headsets.candidates`. Head sets are named ``"top 4% by
                head PCS"``:
                4 or 8 % by head or profile PCS, or 1, 2 or 16 % by head PCS.
            routing, temperature: How users are assigned to clusters when steering.
            encoder: Sentence encoder of profiles.
            run: Folder for checkpoints: a killed fit that is started again goes on from them.

        Raises:
            DataError: Too few users or samples, or samples that cannot be used; fractions that
                are no shares of two or three parts.
            PrefheadsError: The extra `cluster` is not installed.
        """
        if len(fractions) not in (2, 3):
            raise DataError(
                "fractions are the shares of users for discovery, calibration and, maybe, tests: "
                f"two or three, not {tuple(fractions)}"
            )
        require_extra()
        folder = None if run is None else writable_dir(run)
        parts = dict(zip(PARTS, split_users(examples, fractions, seed), strict=False))
        found = spread(parts["discovery"], discovery_limit, seed)
        held = spread(parts["calibration"], calibration_limit, seed)
        settings = candidates(targets) if settings is None else settings
        known = {s.name: s for s in head_sets(targets)}
        if unknown := {s.heads for s in settings if not s.plain} - known.keys():
            raise SteeringError(
                f"unknown head set {sorted(unknown)[0]!r}; choose from {', '.join(known)}"
            )
        if len({e.user_id for e in held}) < 2:
            raise DataError("calibration needs samples of at least two users; add users or samples")
        encode_all(model, tokenizer, [*found, *held])  # what cannot be used is told before the work
        profiles = {e.user_id: e.profile for e in reversed(parts["discovery"])}
        names = sorted(profiles)
        embedder = ProfileEncoder(encoder)
        clusters = fit_clusters(
            embedder.embed([profiles[name] for name in names]),
            names,
            n_clusters,
            samples_per_user={name: sum(e.user_id == name for e in found) for name in names},
            min_samples=min_samples,
            seed=seed,
        )
        scores: dict[str, HeadScores] = {
            target: discover(
                model,
                tokenizer,
                found,
                scope=scope,
                target=target,
                reference=reference,
                checkpoint=None if folder is None else folder / f"discovery-{target}.jsonl",
                tokens_per_pass=tokens_per_pass,
                seed=seed,
                progress=progress,
            )
            for target in targets
        }
        sets = {
            name: (
                cluster_heads(scores[each.target], clusters, fraction=each.share),
                scores[each.target].soft(fraction=each.share),
            )
            for name, each in known.items()
        }
        first = next(iter(sets))
        weights = route(
            embedder.embed([e.profile for e in held]), clusters.centroids, routing, temperature
        )
        calibration = calibrate(
            model,
            tokenizer,
            held,
            {
                name: torch.stack([mix(w, maps).values for w in weights])
                for name, (maps, _) in sets.items()
            },
            settings,
            scope=scope,
            objective=objective,
            checkpoint=None if folder is None else folder / "calibration.jsonl",
            tokens_per_pass=tokens_per_pass,
            seed=seed,
            progress=progress,
        )
        # Where nothing helped, the maps are there still, for whoever sets a strength by hand.
        maps, shared = sets[calibration.setting.heads or calibration.best_tried.heads or first]
        return cls(
            model=model,
            tokenizer=tokenizer,
            clusters=clusters,
            maps=maps,
            shared=shared,
            calibration=calibration,
            users={name: sorted({e.user_id for e in part}) for name, part in parts.items()},
            seen=Seen.of([*parts["discovery"], *parts["calibration"]]),
            scores=scores,
            scope=scope,
            routing=routing,
            temperature=temperature,
            encoder=encoder,
            task=next(iter(scores.values())).info.task,
            seed=seed,
        )

    @property
    def setting(self) -> Setting:
        """The calibrated way to steer; plain where nothing helped."""
        return self.calibration.setting

    @property
    def form(self) -> Setting:
        """What a strength given by hand applies to; the form that the maps were chosen with."""
        if not self.setting.plain:
            return self.setting
        return replace(self.calibration.best_tried, gamma=0.0)

    def heads_for(
        self, profiles: Sequence[Profile], routing: Routing | None = None
    ) -> list[HeadWeights]:
        """The map of each user: cluster maps, weighted by routing (Alg. 1, lines 10 and 17)."""
        return [mix(w, self.maps) for w in self.cluster_weights(profiles, routing)]

    def cluster_weights(
        self, profiles: Sequence[Profile], routing: Routing | None = None
    ) -> NDArray[np.float64]:
        """How much each user belongs to each cluster, ``(n_users, n_clusters)`` (5.3)."""
        if not hasattr(self, "_embedder"):
            self._embedder = ProfileEncoder(self.encoder)
        return route(
            self._embedder.embed(profiles),
            self.clusters.centroids,
            routing or self.routing,
            self.temperature,
        )

    @overload
    def generate(self, prompt: str, profile: Profile, **options: Any) -> str: ...
    @overload
    def generate(
        self, prompt: Sequence[str], profile: Sequence[Profile], **options: Any
    ) -> list[str]: ...
    def generate(
        self,
        prompt: str | Sequence[str],
        profile: Any,
        *,
        routing: Routing | None = None,
        gamma: float | None = None,
        mode: Mode | None = None,
        target: Target | None = None,
        suppression: float | None = None,
        max_new_tokens: int = 64,
        **generate_options: Any,
    ) -> str | list[str]:
        """Phase 3: text for users with these profiles, all in one batch.

        Args:
            prompt: What to write; one, or one a user.
            profile: The user's texts, ``[{"text": "..."}]``, or a list of such.
            routing: ``"hard"`` or ``"soft"``; as fitted if None.
            gamma, mode, target, suppression: Replace what was calibrated; gamma 0 is plain.
            generate_options: Go to ``model.generate`` as they are.

        Raises:
            DataError: An empty profile, or an input longer than the context.
        """
        single = isinstance(prompt, str)
        prompts: list[str] = [prompt] if isinstance(prompt, str) else list(prompt)
        profiles: list[Profile] = [profile] if single else list(profile)
        if len(prompts) != len(profiles):
            raise DataError(f"{len(prompts)} prompts came with {len(profiles)} profiles")
        setting = self.form.changed(gamma=gamma, mode=mode, target=target, suppression=suppression)
        texts = generate_texts(
            self.model,
            self.tokenizer,
            [
                Example(f"prompt {i}", f"user {i}", tuple(p), text, None, self.task)
                for i, (text, p) in enumerate(zip(prompts, profiles, strict=True))
            ],
            self.heads_for(profiles, routing),
            setting,
            self.scope,
            max_new_tokens=max_new_tokens,
            **generate_options,
        )
        return texts[0] if single else texts

    def unseen(self, examples: Sequence[Example]) -> list[Example]:
        """The samples of users who took no part in discovery or calibration, whatever a file calls
        them and whatever else is loaded of it."""
        return self.seen.unseen(examples)

    def validate(
        self,
        examples: Sequence[Example],
        *,
        checkpoint: str | Path | None = None,
        tokens_per_pass: int = 1024,
        seed: int | None = None,
        progress: bool = True,
    ) -> Validation:
        """The gain on users that fitting has not seen, with its controls.

        Raises:
            DataError: No samples of unseen users.
        """
        test = self.unseen(examples)
        if not test:
            raise DataError("all users took part in fitting; validation needs users of its own")
        others: dict[str, tuple[Sequence[HeadWeights], Setting]] = {}
        if not self.setting.plain:
            others["one map for all users"] = ([self.shared] * len(test), self.setting)
        if "head" in self.scores:
            weights = self.cluster_weights([e.profile for e in test])
            others |= paper_rows(self.scores["head"], self.clusters, self.calibration, weights)
        return validate(
            self.model,
            self.tokenizer,
            test,
            self.heads_for([e.profile for e in test]),
            self.setting,
            others=others,
            scope=self.scope,
            plain_temperature=self.calibration.plain_temperature,
            temperature=self.calibration.temperature,
            checkpoint=checkpoint,
            tokens_per_pass=tokens_per_pass,
            seed=self.seed if seed is None else seed,
            progress=progress,
        )

    def save(self, folder: str | Path) -> None:
        """Write everything but the model: ``steerer.json``, maps, clusters and scores."""
        steerer_files.save(self, writable_dir(folder))

    @classmethod
    def load(
        cls, folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: Missing, damaged, or fitted for another model.
        """
        return cls(model=model, tokenizer=tokenizer, **steerer_files.load(Path(folder), model))
