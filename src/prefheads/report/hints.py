"""Command lines that would add what a run lacks, to be shown to its user."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from prefheads.models.bundled import NAME, model_name

# What the analyses of an evaluation compare.
METHODS = (
    "plain,dps:fraction=0.01,dps:fraction=0.02,dps,dps:fraction=0.08,dps:fraction=0.16,"
    "dps:gamma=0.1,dps:gamma=0.5,dps:suppression=0.1,dps:target=profile,dps:scope=all,"
    "dps-cluster,dps-cluster:routing=hard,random-heads,random-mask"
)
HOURS = "  # can take hours: it says how long before it begins"


class Hints:
    """Commands with a run's own model and data.

    Args:
        run: Folder of the run.
        about: Its ``run.json``.
        data: Where the data is; where the run found it if None.
    """

    def __init__(self, run: Path, about: dict[str, Any], data: Path | None = None) -> None:
        self.run = shlex.quote(str(run))
        self.model = shlex.quote(model_name(about["model"]) if about.get("model") else "MODEL")
        self.data = shlex.quote(str(data or about["options"].get("data") or "DATA"))
        self.fitted = about.get("command") == "fit"
        self.evaluated = about.get("command") == "eval"

    def fit(self) -> str:
        """Finds clusters, and calibrates."""
        return self._fit() + HOURS

    def _fit(self) -> str:
        return f"prefheads fit --model {self.model} --data {self.data} --out OTHER_RUN"

    def validate(self) -> str:
        """Measures the gain with its controls."""
        steered = self.run if self.fitted else "OTHER_RUN"
        where = f"prefheads validate --model {self.model} --run {steered} --data {self.data}"
        return (where if self.fitted else f"{self._fit()} && {where}") + HOURS

    def evaluate(self) -> str:
        """Compares the methods that the analyses need."""
        fitted = f" --fitted {self.run}" if self.fitted else ""
        data = "LAMP_FOLDER" if self.data == NAME else self.data  # made-up people have no task
        where = f"--model {self.model} --data {data}{fitted} --out EVAL_RUN"
        return f"prefheads eval {where} --methods {METHODS}{HOURS}"

    def measure(self) -> str:
        """Measures what heads do, and reads texts; what is missing without it."""
        data = "" if self.evaluated else f" --data {self.data}"
        return (
            f"measurements in the model: `prefheads analyze {self.run} --model {self.model}{data}`."
        )

    def with_model(self) -> str:
        """Analyses with the model."""
        return f"prefheads analyze {self.run} --model {self.model}"

    def with_data(self) -> str:
        """Analyses with the data."""
        return f"prefheads analyze {self.run} --data {self.data}"
