"""PreferenceSteerer: Algorithm 1 of the paper, from a dataset of users to text for a new one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.calibration.calibrate import Calibration, calibrate
from prefheads.calibration.paper import paper_rows
from prefheads.calibration.validate import Validation, validate
from prefheads.data.example import Example
from prefheads.data.people import Seen
from prefheads.discovery import discover
from prefheads.errors import DataError
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.scoring.scorer import encode_all
from prefheads.steerer import files as steerer_files
from prefheads.steerer.fit import cluster_users, divide, maps_by_set, settings_to_try
from prefheads.steering.generation import generate_texts
from prefheads.steering.setting import Setting
from prefheads.storage import writable_dir
from prefheads.types import Mode, Objective, Reference, Routing, Scope, Target
from prefheads.users import Clusters, ProfileEncoder, mix, route
from prefheads.users.embed import Profile, require_extra


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
            settings: What calibration chooses between, in this ``scope``; by default
                :func:`prefheads.calibration.headsets.candidates`. Head sets are named
                ``"top 4% by head PCS"``: 4 or 8 % by head or profile PCS, or 1, 2 or 16 % by head
                PCS.
            objective: As for :func:`prefheads.calibration.calibrate.calibrate`.
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
        limits = (discovery_limit, calibration_limit)
        parts, found, held = divide(examples, fractions, limits, seed)
        settings = settings_to_try(settings, targets, scope)
        # Samples that cannot be used are refused before the work begins.
        encode_all(model, tokenizer, [*found, *held])
        embedder = ProfileEncoder(encoder)
        clusters = cluster_users(embedder, parts["discovery"], found, n_clusters, min_samples, seed)
        common: dict[str, Any] = {"tokens_per_pass": tokens_per_pass, "seed": seed}
        common["progress"] = progress
        scores: dict[str, HeadScores] = {
            target: discover(
                model,
                tokenizer,
                found,
                scope=scope,
                target=target,
                reference=reference,
                checkpoint=None if folder is None else folder / f"discovery-{target}.jsonl",
                **common,
            )
            for target in targets
        }
        sets = maps_by_set(scores, clusters, targets)
        embeddings = embedder.embed([e.profile for e in held])
        weights = route(embeddings, clusters.centroids, routing, temperature)
        calibration = calibrate(
            model,
            tokenizer,
            held,
            {
                name: torch.stack([mix(w, maps).values for w in weights])
                for name, (maps, _) in sets.items()
            },
            settings,
            objective=objective,
            checkpoint=None if folder is None else folder / "calibration.jsonl",
            **common,
        )
        # Where nothing helped, the maps are there still, for whoever sets a strength by hand.
        chosen = calibration.setting.heads or calibration.best_tried.heads or next(iter(sets))
        maps, shared = sets[chosen]
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
        return replace(self.calibration.setting, scope=self.scope)

    @property
    def form(self) -> Setting:
        """What a strength given by hand applies to; the form that the maps were chosen with."""
        if not self.setting.plain:
            return self.setting
        return replace(self.calibration.best_tried, gamma=0.0, scope=self.scope)

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
            rows = paper_rows(self.scores["head"], self.clusters, self.calibration, weights)
            others |= {
                name: (maps, replace(how, scope=self.scope)) for name, (maps, how) in rows.items()
            }
        return validate(
            self.model,
            self.tokenizer,
            test,
            self.heads_for([e.profile for e in test]),
            self.setting,
            others=others,
            plain_temperature=self.calibration.plain_temperature,
            temperature=self.calibration.temperature,
            checkpoint=checkpoint,
            tokens_per_pass=tokens_per_pass,
            seed=self.seed if seed is None else seed,
            progress=progress,
        )

    def save(self, folder: str | Path) -> None:
        """Write everything but the model: ``steerer.json``, maps, clusters and scores."""
        steerer_files.save(writable_dir(folder), self.model.config, vars(self))

    @classmethod
    def load(
        cls, folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: Missing, damaged, or fitted for another model.
        """
        return cls(
            model=model, tokenizer=tokenizer, **steerer_files.load(Path(folder), model.config)
        )
