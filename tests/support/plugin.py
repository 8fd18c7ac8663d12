"""A task and a method of another package, each in one file, found by its entry points."""

from __future__ import annotations

import json
from pathlib import Path

TASK = '''
from collections.abc import Sequence

import numpy as np

from prefheads.data.task import Task
from prefheads.tasks.answers import AnswerType, Metric


class Verses(AnswerType):
    """Verses, of as many words as the user's own."""

    new_tokens = 5
    metrics = (Metric("words off", False),)

    def rows(self, pairs):
        counts = [abs(len(p.split()) - len(g.split())) for p, g in pairs]
        return {"words off": np.array(counts, dtype=float)}

    def extract(self, text):
        return text.partition("/")[0].strip() or None


VERSE = Task(
    "Verse-2",
    '"{verse}" is about {subject} ',
    "verse",
    ("subject",),
    query="about:",
    dated=False,
    answers=Verses(),
    aliases=("rhyme",),
)
'''

METHOD = '''
from contextlib import contextmanager

from prefheads.evaluation.methods import Method, Option


class Flat(Method):
    """Logits times a factor."""

    kind = "flat"
    accepts = {"by": Option(0.5)}
    likelihood = "logits"

    @contextmanager
    def acting(self, decoder, prompts):
        head = prompts.model.get_output_embeddings()
        hook = head.register_forward_hook(lambda module, inputs, out: out * self.options["by"])
        try:
            yield
        finally:
            hook.remove()

    def logits(self, own, bare):
        return own * self.options["by"]


FLAT = Flat()
'''


def install(site: Path, points: str, **modules: str) -> Path:
    """Make a folder look like one that packages are installed in.

    Args:
        points: What the package's ``entry_points.txt`` says.
        modules: Its modules by name.
    """
    about = site / "verses-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: verses\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(points)
    for name, text in modules.items():
        (site / f"{name}.py").write_text(text)
    return site


def write_verses(path: Path, users: int = 6) -> Path:
    """Examples of the task, two profile items each, of which retrieval keeps one."""
    subjects = ("rain", "the sea", "old clocks")
    rows = [
        {
            "id": str(i),
            "user_id": f"u{i}",
            "task": "rhyme",
            "profile": [{"verse": f"{s} and {i}", "subject": s} for s in subjects],
            "input": f"Write a verse about: {subjects[i % 3]}",
            "output": f"{subjects[i % 3]} {'again ' * (i % 3)}",
        }
        for i in range(users)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
