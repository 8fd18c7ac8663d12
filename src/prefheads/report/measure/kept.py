"""What an analysis needs the model for, measured once: results are kept in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from prefheads.checkpoint import Checkpoint, digest
from prefheads.data.example import Example, spread
from prefheads.errors import ArtifactError, DataError
from prefheads.heads.scores import HeadScores, fingerprint
from prefheads.heads.weights import Head
from prefheads.report.measure.effects import Group, HeadRoles, measure_roles
from prefheads.report.measure.readings import Loaded
from prefheads.report.measure.tokens import Readings
from prefheads.storage import read_json, writable_dir

N_HEADS = 8  # top heads whose effect is measured, and as many random ones


class Measurements:
    """Measurements of one run.

    Args:
        folder: Where they are kept.
        config: The model's, which tells it from others; None to use only what is kept.
        load: Loads the model, called once and only if something is to be measured.
        n_samples: Samples to measure heads on.
        n_texts: Samples whose texts are read token by token.
    """

    def __init__(
        self,
        folder: Path,
        config: PreTrainedConfig | None = None,
        load: Callable[[], Loaded] | None = None,
        *,
        n_samples: int = 16,
        n_texts: int = 4,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.folder, self.config, self._load = folder, config, load
        self._kept = Checkpoint(folder / "measured.jsonl", "measurements")
        self.n_samples, self.n_texts, self.seed = n_samples, n_texts, seed
        self.progress = progress
        self.n_prompts = 0  # that went through the model

    @cached_property
    def model(self) -> Loaded:
        """The model and its tokenizer."""
        assert self._load is not None
        return self._load()

    def roles(
        self, name: str, scores: Mapping[str, HeadScores], source: Any, examples: Examples
    ) -> HeadRoles | None:
        """What the top heads of a discovery do, beside random heads.

        Args:
            name: Of the discovery; names the files.
            scores: Of the discovery, by target.
            source: Says, for JSON, where the samples are from.
            examples: Gives samples to choose from; users of the discovery come last.

        Returns:
            None where it has not been measured and there is no model.
        """
        name = name or "run"
        heads: dict[Any, dict[Group, list[Head]]] = {
            target: chosen_heads(s, self.seed) for target, s in scores.items()
        }
        scope = next(iter(scores.values())).info.scope or "response"
        attention = self.folder / f"{name}-attention.safetensors"

        def measure() -> Any:
            seen = {user for s in scores.values() for user in s.user_ids}
            some = _suitable(examples(), seen, self.n_samples, self.seed)
            model, tokenizer = self.model
            self.n_prompts += len(some)
            found = measure_roles(model, tokenizer, some, heads, scope, self.progress)  # type: ignore[arg-type]
            found.attention.save(attention)
            return found.to_dict()

        made_from = [source, self.n_samples, self.seed, scope, heads]
        content = self.of_model(f"{name}-heads", made_from, measure)
        if content is None:
            return None
        try:
            return HeadRoles.from_dict(HeadScores.load(attention), content)
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"{name}-heads", error) from None

    def texts(self, name: str, source: Any, read: Callable[[], Readings]) -> Readings | None:
        """Texts read token by token.

        Args:
            name, source: As for :meth:`roles`.
            read: Reads them.
        """
        name = f"{name or 'run'}-texts"
        made_from = [source, self.n_texts, self.seed]

        def make() -> Any:
            found = read()
            self.n_prompts += len(found.traces)
            return asdict(found)

        content = self.of_model(name, made_from, make)
        try:
            return None if content is None else Readings.from_dict(content)
        except (AttributeError, KeyError, TypeError) as error:
            raise self._damaged(name, error) from None

    def of_model(self, name: str, made_from: Any, make: Callable[[], Any]) -> Any:
        """What depends on the model: kept, or made where there is a model; else None."""
        if self.config is None:
            return self.kept(name)
        return self.kept(
            name, [self.config.name_or_path, fingerprint(self.config), made_from], make
        )

    def kept(self, name: str, made_from: Any = None, make: Callable[[], Any] | None = None) -> Any:
        """What is kept of this name; made anew if there is none or it was made of something else.

        Args:
            made_from: What it depends on, for JSON.
            make: Makes it, for JSON; None to take what there is, be it None.

        Raises:
            ArtifactError: The folder cannot be written.
        """
        key, found = digest(made_from), self._kept.done.get(name)
        old = self.folder / f"{name}.json"  # where earlier versions kept it
        if found is None and old.is_file():
            found = read_json(old)
        if not isinstance(found, dict) or found.keys() != {"made_from", "content"}:
            found = None
        if found is not None and (make is None or found["made_from"] == key):
            return found["content"]
        if make is None:
            return None
        writable_dir(self.folder)
        content = make()
        self._kept.add(name, {"made_from": key, "content": content})
        return content

    def _damaged(self, name: str, why: object) -> ArtifactError:
        return ArtifactError(f"{self.folder}: {name} is damaged ({why}); delete the folder")


Examples = Callable[[], Sequence[Example]]


def chosen_heads(scores: HeadScores, seed: int) -> dict[Group, list[Head]]:
    """The heads of highest PCS, and as many of the others drawn at random."""
    n = min(N_HEADS, scores.mean.numel() // 2)
    top = scores.top(k=n, signed=True)
    ranked = [(layer, head) for layer, head, _, _ in scores.ranked()[:n]]
    return {"top": ranked, "random": top.random_like(seed).heads}


def _suitable(
    examples: Sequence[Example], seen: set[str], limit: int, seed: int
) -> Sequence[Example]:
    """Samples with profile and response, of users that discovery has not seen if there are any."""
    usable = [e for e in examples if e.profile and e.output]
    if not usable:
        raise DataError("no sample has both a profile and a response to measure heads on")
    return spread([e for e in usable if e.user_id not in seen] or usable, limit, seed)
