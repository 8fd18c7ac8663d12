"""What commands share: checks that need no model, loading, and warnings as notes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

import prefheads
from prefheads.cli.output import tell
from prefheads.data.encoding import TruncationWarning
from prefheads.data.people import Seen
from prefheads.errors import ArtifactError
from prefheads.heads.scores import fingerprint
from prefheads.models.bundled import model_name
from prefheads.models.loading import load_model
from prefheads.progress import stage
from prefheads.steerer import files as steerer_files
from prefheads.storage import read_json, writable_dir, write_json

RUN_FILE = "run.json"
_PACKAGE = str(Path(prefheads.__file__).parent)


def load(
    model: str, device: str, dtype: str, seed: int, shown: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model, saying so should it take long and be shown; fix every random generator."""
    set_seed(seed)
    with stage(f"loading {model}", shown):
        return load_model(model, device=device, dtype=None if dtype == "auto" else dtype)


def open_run(
    folder: Path, command: str, model: str, config: PreTrainedConfig, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Make sure that a folder can take this run, and return what to record in it.

    A folder that holds results takes only the very same run again, which then resumes.

    Raises:
        ArtifactError: The folder cannot be written, or holds another run.
    """
    writable_dir(folder)
    run = describe_run(command, model, config, options)
    if has_results(folder):
        if not (folder / RUN_FILE).exists():
            raise ArtifactError(f"{folder}: holds results of something else; give another folder")
        require_same_run(folder, run)
    return run


def recorded(options: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """The options that a run's results depend on: all of a command's but these and the usual."""
    usual = ("model", "out", "device", "quiet", "as_json")
    return {name: value for name, value in options.items() if name not in (*usual, *but)}


def describe_run(
    command: str, model: str, config: PreTrainedConfig, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``run.json`` records of a run: ``model`` as it was named, ``source`` where it was.

    Of the options, ``data`` is recorded but may have moved when the run is resumed.
    """
    return {
        "command": command,
        "version": prefheads.__version__,
        "model": model,
        "source": config.name_or_path,
        "fingerprint": fingerprint(config),
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in options.items()},
    }


def require_same_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Make sure that a folder whose ``run.json`` tells of a run tells of this one.

    Raises:
        ArtifactError: It holds a run of another command, model, or options.
    """
    if not (folder / RUN_FILE).exists():
        return
    before = read_json(folder / RUN_FILE)
    if not isinstance(before, dict) or not isinstance(before.get("options"), dict):
        raise ArtifactError(f"{folder / RUN_FILE}: damaged; give another folder")
    model = named_model(before)
    old = {"command": before.get("command"), **before["options"]}
    new = {"command": run["command"], **run["options"]}
    other = [n for n in sorted((old.keys() | new.keys()) - {"data"}) if old.get(n) != new.get(n)]
    if before.get("fingerprint") != run["fingerprint"]:
        what = f"of another model ({model}), not of {run['model']}"
    elif before.get("source", before.get("model")) != run["source"]:
        what = f"with another model ({model}, now {run['model']})"
    elif other:
        what = f"with another {other[0]} ({old.get(other[0])}, now {new.get(other[0])})"
    else:
        return
    raise ArtifactError(f"{folder}: holds a run {what}; give another folder")


def named_model(run: Mapping[str, Any]) -> str:
    """The model of a run as its user named it; runs of before that was recorded have its folder."""
    return model_name(run.get("model"))


def begin(folder: Path, run: Mapping[str, Any]) -> None:
    """Record what the folder is for, before the first result; later runs only resume."""
    if not has_results(folder):
        write_json(folder / RUN_FILE, run)


def has_results(folder: Path) -> bool:
    """Whether a run has begun to write there: maps, or a checkpoint of what it recorded before."""
    begun = (folder / RUN_FILE).exists() and any(folder.glob("*.jsonl"))
    return begun or any(folder.glob("*.safetensors"))


def options_of(folder: Path) -> dict[str, Any]:
    """What the command that made a run was given; empty where it is not recorded."""
    run = read_json(folder / RUN_FILE) if (folder / RUN_FILE).is_file() else {}
    options = run.get("options", {}) if isinstance(run, dict) else {}
    return options if isinstance(options, dict) else {}


def load_seen(folder: Path) -> Seen:
    """What a fit saw; told where it did not keep the samples themselves."""
    seen = steerer_files.load_seen(folder)
    if not seen.samples:
        tell(
            f"{folder} is of an older version: people whom its data did not name may be among the "
            "unseen; fit again"
        )
    return seen


def require_same_profiles(folder: Path, loading: Mapping[str, Any]) -> None:
    """Make sure that profiles are made as those of a run, with the same options.

    Raises:
        ArtifactError: The run had others.
    """
    options = options_of(folder)
    for name, now in loading.items():
        if name in options and options[name] != now:
            raise ArtifactError(
                f"{folder}: was made with --{name} {options[name]}, not {now}; heads are for "
                "prompts like those that they were found with"
            )


@contextmanager
def notes() -> Iterator[list[int]]:
    """Collect warnings and tell them once, in a line each, when the block has succeeded.

    Yields:
        A list that the block puts the number of its prompts into.
    """
    prompts: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield prompts
    ours = [w for w in caught if w.filename.startswith(_PACKAGE)]
    cut = sorted({str(w.message) for w in ours if issubclass(w.category, TruncationWarning)})
    if cut:
        context = cut[0].rpartition(" to fit ")[2]
        examples = {message.partition(": ")[0] for message in cut}  # one may be cut to two limits
        tell(
            f"{len(examples)} of {sum(prompts)} prompts had profile items cut to fit {context}; "
            "inputs are never cut"
        )
    others = (str(w.message) for w in ours if not issubclass(w.category, TruncationWarning))
    for message in dict.fromkeys(others):
        tell(message)
