"""One HTML page about a fitted steerer: what was found, what it is worth, and how it was made."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

import prefheads
from prefheads.calibration.validate import Validation
from prefheads.heads.scores import HeadScores
from prefheads.report.findings import VERDICTS, agreement, findings
from prefheads.report.paper_form import PAPER_FORM, paper_form, paper_form_figure, told
from prefheads.report.plots import (
    calibration_curves,
    heat_map,
    save,
    validation_plot,
)
from prefheads.report.templating import drawn, environment
from prefheads.report.texts import Comparison
from prefheads.stats import INTERVALS
from prefheads.steerer.core import PreferenceSteerer
from prefheads.storage import writable_dir, write_atomic

TARGETS = {
    "head": "by what ablation of the whole head takes away",
    "profile": "by what the head reads from the profile",
}
N_TOP = 10  # heads in a table


def write_report(
    folder: str | Path,
    steerer: PreferenceSteerer,
    validation: Validation | None = None,
    texts: Sequence[Comparison] = (),
    *,
    kinds: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
    title: str = "Preference heads: a report",
) -> Path:
    """Write ``report.html``, one file that needs no network, and its figures in ``figures/``.

    Args:
        folder: Where to; created where needed.
        validation: Result on test users; its section says that it is missing if None.
        texts: Plain and steered texts to show side by side.
        kinds: The known kind of each discovery user, to compare the clusters with.
        notes: More lines of provenance, such as the command and the time it took.

    Returns:
        The path of the page.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    folder = writable_dir(folder)
    page = environment().get_template("report.html.j2")
    points = paper_form(steerer.calibration)
    html = page.render(
        title=title,
        steerer=steerer,
        setting=str(steerer.setting),
        tried=len(steerer.calibration.settings) - 1,
        heads=[
            _heads(steerer, target, scores, folder) for target, scores in steerer.scores.items()
        ],
        clusters=_clusters(steerer, kinds),
        agreement=None if kinds is None else agreement(steerer.clusters, kinds),
        calibration=_figure(
            calibration_curves(steerer.calibration),
            folder,
            "calibration",
            "Change of NLL against gamma, one line a head set, one panel a form of steering",
        ),
        paper_form=_figure(
            paper_form_figure(points, PAPER_FORM),
            folder,
            "paper-form",
            "Change of NLL against gamma, one line a number of heads, one panel a kind of strength",
        )
        if points
        else None,
        paper_form_told=told(points, steerer.calibration) if points else "",
        validation=validation,
        rows=[] if validation is None else validation.rows(),
        findings=[] if validation is None else findings(validation),
        verdicts=VERDICTS,
        intervals=INTERVALS,
        forest=None
        if validation is None
        else _figure(
            validation_plot(validation),
            folder,
            "validation",
            "Change of NLL and of specificity with 95 % intervals; the table below has the figures",
        ),
        texts=texts,
        differing=sum(text.differs for text in texts),
        provenance=_provenance(steerer, validation) | dict(notes or {}),
    )
    path = folder / "report.html"
    write_atomic(path, html.encode())
    return path


def _figure(figure: Any, folder: Path, name: str, description: str) -> Markup:
    save(figure, writable_dir(folder / "figures") / name)
    return drawn(figure, name, description)


def _heads(
    steerer: PreferenceSteerer, target: str, scores: HeadScores, folder: Path
) -> dict[str, Any]:
    """Heat maps of all users and of each cluster, and the top heads; framed if steered with."""
    panels = {f"all users ({scores.n_examples} samples)": scores}
    chosen = [steerer.shared]
    if steerer.clusters.n_clusters > 1:
        for c, weights in enumerate(steerer.maps):
            scored = set(scores.user_ids).intersection(steerer.clusters.members(c))
            own = scores.select(users=scored)
            users = len(set(own.user_ids))
            panels[f"cluster {c + 1} ({users} {'user' if users == 1 else 'users'})"] = own
            chosen.append(weights)
    # The maps come from one of the targets; frames on the other's figure would mislead.
    steered_with = steerer.shared.info.target == target and not steerer.setting.plain
    figure = heat_map(
        panels,
        chosen if steered_with else (),
        title=f"PCS {'of whole heads' if target == 'head' else 'of reading the profile'}",
    )
    low, high = scores.interval()
    top = [
        {"name": f"{layer}.{head}", "mean": mean, "stderr": stderr,
         "low": low[layer, head].item(), "high": high[layer, head].item()}
        for layer, head, mean, stderr in scores.ranked()[:N_TOP]
    ]  # fmt: skip
    description = f"Mean PCS over layers and heads, {TARGETS[target]}; the table has the highest"
    return {
        "title": TARGETS[target],
        "figure": _figure(figure, folder, f"heads-{target}", description),
        "top": top,
        "significant": int(((low > 0) | (high < 0)).sum()),
        "n_heads": low.numel(),
        "steered_with": steered_with,
    }


def _clusters(steerer: PreferenceSteerer, kinds: Mapping[str, str] | None) -> list[dict[str, Any]]:
    rows = []
    for c, weights in enumerate(steerer.maps):
        strongest = weights.values.flatten().argsort(descending=True, stable=True)
        shown = strongest[: min(6, weights.n_active)].tolist()
        rows.append(
            {
                "users": [
                    user if kinds is None else f"{user} ({kinds[user]})"
                    for user in steerer.clusters.members(c)
                ],
                "heads": [f"{i // weights.shape[1]}.{i % weights.shape[1]}" for i in shown],
                "overlap": weights.overlap(steerer.shared),
            }
        )
    return rows


def _provenance(steerer: PreferenceSteerer, validation: Validation | None) -> dict[str, str]:
    calibration = steerer.calibration
    layers, heads = steerer.shared.shape
    n = {target: scores.n_examples for target, scores in steerer.scores.items()}
    rows = {
        "model": f"{Path(steerer.model.config.name_or_path or '').name or 'unnamed'}, "
        f"{layers} layers x {heads} heads",
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
