"""The page of a fitted steerer, for a newcomer: what was found, what it is worth, how it was made.

Its parts are those of every page (:mod:`prefheads.report.page.page`); here are the words between.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import prefheads
from prefheads.calibration.validate import Validation
from prefheads.heads.scores import HeadScores
from prefheads.report.figures import heads, steering
from prefheads.report.measure.tokens import Readings
from prefheads.report.page.discovery import cluster_scores
from prefheads.report.page.entry import Entry, write
from prefheads.report.page.page import write_page
from prefheads.report.page.steering import paper_form_entries
from prefheads.report.statistics.findings import agreement, findings, validation_cells
from prefheads.report.wording import counted
from prefheads.stats import INTERVALS
from prefheads.steerer.core import PreferenceSteerer
from prefheads.storage import writable_dir

ABOUT = (
    "Which attention heads of the model carry what it knows of a person from their earlier texts? "
    "And does it help to strengthen them? Heads were measured on one group of people, the form and "
    "strength of steering chosen on a second, and the gain measured on a third."
)
HEADS, GROUPS = "Heads that were found", "Groups of people"
CHOICE, WORTH = "How to steer", "What it is worth"
LEADS = {
    HEADS: (
        "The Preference Contribution Score (PCS) of a head is how much less likely people's real "
        "texts become when the head is cut: the rise of the mean negative log-likelihood (NLL), in "
        "nats a token. Orange heads help, blue ones hinder. It was measured twice: cutting all "
        "that a head does, and only what it reads from the person's earlier texts."
    ),
    GROUPS: (
        "People were grouped by their earlier texts alone, and each group has heads of its own. A "
        "new person is matched to the groups with like texts."
    ),
    CHOICE: (
        "Every form and strength of steering was tried on people who took no part in finding the "
        "heads. Among settings that cannot be told apart, the one that changes the model least is "
        "taken."
    ),
    WORTH: (
        "**Specificity** is how much likelier a text is with its author's earlier texts in the "
        "prompt than with somebody else's: if it does not rise, steering makes the model use the "
        "prompt more, but not more personally."
    ),
}
TARGETS = {
    "head": "by what ablation of the whole head takes away",
    "profile": "by what the head reads from the profile",
}
N_TOP = 10  # heads in a table
N_SHOWN = 6  # heads of a cluster


def write_report(
    folder: str | Path,
    steerer: PreferenceSteerer,
    validation: Validation | None = None,
    texts: Readings | None = None,
    *,
    kinds: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
    title: str = "Preference heads: a report",
) -> Path:
    """Write ``report.html``, one file that needs no network, and its figures in ``figures/``.

    Args:
        folder: Where to; created where needed.
        validation: Result on test users; the page says that it is missing if None.
        texts: Plain and steered texts to show side by side.
        kinds: The known kind of each discovery user, to compare the clusters with.
        notes: More lines of provenance, such as the command and the time it took.

    Returns:
        The path of the page.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    folder = writable_dir(folder)
    tried = len(steerer.calibration.settings) - 1
    entries = [_heads(steerer, target, scores) for target, scores in steerer.scores.items()]
    entries += [_groups(steerer, kinds), *_choice(steerer, tried), _worth(validation)]
    if texts is None:
        entries.append(Entry("texts", "Texts side by side", missing="no texts were generated."))
    outcome = f"Chosen of {tried} settings: **{steerer.setting}**."
    if steerer.setting.plain:
        outcome = (
            f"**Steering did not help.** None of the {tried} settings that were tried made the "
            "texts of held-out people more likely by more than chance would (95 % interval over "
            "people), so the steerer leaves the model alone. The curves below show each of them."
            f"\n\n**For illustration only**, texts below show the best of the settings that were "
            f"tried, {steerer.calibration.best_tried}."
        )
    return write_page(
        folder,
        title,
        write(folder, entries),
        {} if texts is None else {"": texts},
        _provenance(steerer, validation) | dict(notes or {}),
        lead=ABOUT,
        outcome=outcome,
        leads=LEADS,
    )


def _heads(steerer: PreferenceSteerer, target: str, scores: HeadScores) -> Entry:
    """Maps of all users and of each cluster, and the top heads; framed if steered with."""
    clusters = steerer.clusters
    maps = {f"all users ({scores.n_examples} samples)": scores, **cluster_scores(scores, clusters)}
    # The heads come from one of the targets; frames on the other's figure would mislead.
    steered_with = steerer.shared.info.target == target and not steerer.setting.plain
    own = steerer.maps if clusters.n_clusters > 1 else []
    users = set(scores.user_ids)
    chosen = [w for c, w in enumerate(own) if users.intersection(clusters.members(c))]
    figure = heads.heat_map(
        maps,
        [steerer.shared, *chosen] if steered_with else (),
        title=f"PCS {'of whole heads' if target == 'head' else 'of reading the profile'}",
    )
    low, high = scores.interval()
    sure, n = int(((low > 0) | (high < 0)).sum()), low.numel()
    rows = [
        {
            "layer.head": f"{layer}.{head}",
            "PCS ± standard error": f"{mean:+.4f} ± {stderr:.4f} "
            f"[{low[layer, head]:+.4f}, {high[layer, head]:+.4f}]",
        }
        for layer, head, mean, stderr in scores.ranked()[:N_TOP]
    ]
    said = (
        f"{sure} of {n} heads have an interval that excludes 0, over all users; about "
        f"{round(n * 0.05)} would by chance alone. The table has the highest, with 95 % intervals."
    )
    said += "" if steered_with else " These heads were not chosen for steering."
    name, title = f"heads-{target}", f"Measured {TARGETS[target]}"
    return Entry(name, title, shows=said, figure=figure, tables={"": rows}, section=HEADS)


def _groups(steerer: PreferenceSteerer, kinds: Mapping[str, str] | None) -> Entry:
    rows = []
    for c, weights in enumerate(steerer.maps):
        strongest = weights.values.flatten().argsort(descending=True, stable=True)
        shown = strongest[: min(N_SHOWN, weights.n_active)].tolist()
        members = steerer.clusters.members(c)
        rows.append(
            {
                "cluster": str(c + 1),
                "people": ", ".join(u if kinds is None else f"{u} ({kinds[u]})" for u in members),
                "strongest heads": ", ".join(
                    "{}.{}".format(*divmod(i, weights.shape[1])) for i in shown
                )
                or "none",
                "overlap with the shared map": f"{weights.overlap(steerer.shared):.0%}",
            }
        )
    said = f"{counted(len(rows), 'cluster')} with their strongest heads."
    if kinds is not None:
        rand = agreement(steerer.clusters, kinds).rand
        said += (
            " These people are of kinds that the grouping was not told. Agreement of groups and "
            f"kinds: adjusted Rand index {rand:.2f} (1: the same groups; 0: chance)."
        )
    return Entry("groups", "Clusters", shows=said, tables={"": rows}, section=GROUPS)


def _choice(steerer: PreferenceSteerer, tried: int) -> list[Entry]:
    found = steerer.calibration
    said = (
        f"Scored on {found.n_examples} texts of {found.n_users} people; plain decoding is at "
        f"{found.plain_nll:.3f} nats a token. Chosen: {steerer.setting}. Bars are 95 % intervals "
        f"over people. Scales differ between panels. As the best of {tried} settings is picked, "
        "its value here flatters it; the next section does not."
    )
    title, figure = "Change of NLL against gamma", steering.calibration_curves(found)
    curves = Entry("calibration", title, shows=said, figure=figure, section=CHOICE)
    forms = paper_form_entries(found)
    return [curves, *(replace(e, section=CHOICE, paper="", tables={}) for e in forms)]


def _worth(validation: Validation | None) -> Entry:
    title = "Every method on test users"
    if validation is None:
        missing = "Not validated: no test people were scored."
        return Entry("validation", title, missing=missing)
    people = len(set(validation.user_ids))
    said = (
        f"Measured on {len(validation.example_ids)} texts of {people} people who took no part in "
        "anything before. Nats a token; changes are against plain decoding in the same place, with "
        f"{INTERVALS}. Random heads are as many as the steered ones and act as strongly."
    )
    return Entry(
        "validation",
        title,
        shows=said,
        figure=steering.validation_plot(validation),
        tables={"": validation_cells(validation.rows())},
        section=WORTH,
        findings=findings(validation),
    )


def _provenance(steerer: PreferenceSteerer, validation: Validation | None) -> dict[str, str]:
    calibration = steerer.calibration
    layers, n_heads = steerer.shared.shape
    n = {target: scores.n_examples for target, scores in steerer.scores.items()}
    rows: dict[str, Any] = {
        "model": f"{Path(steerer.model.config.name_or_path or '').name or 'unnamed'}, "
        f"{layers} layers x {n_heads} heads",
        "profile encoder": steerer.encoder,
        "discovery": f"{', '.join(f'{k} samples ({t})' for t, k in n.items())} "
        f"of {len(steerer.users['discovery'])} users",
        "calibration": f"{calibration.n_examples} samples of {calibration.n_users} users",
    }
    if validation is not None:
        users = len(set(validation.user_ids))
        rows["test"] = f"{len(validation.example_ids)} samples of {users} users"
    return rows | {
        "scope": steerer.scope,
        "routing": f"{steerer.routing}, temperature {steerer.temperature:g}",
        "seed": str(steerer.seed),
        "versions": f"prefheads {prefheads.__version__}, torch {torch.__version__}, "
        f"transformers {metadata.version('transformers')}, Python {platform.python_version()}",
    }
