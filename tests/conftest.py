"""What several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.judged import METHODS, write_run
from support.lamp_files import write_task
from support.models import character_tokenizer
from support.saved import Cli, Result, save_model
from transformers import PreTrainedTokenizerFast

from prefheads.data.example import Example, load_examples
from prefheads.judge.pairs import Study, load_study
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.setting import Setting

if TYPE_CHECKING:
    import openai
    from support.served import Running

pytest.register_assert_rewrite("support.steered", "support.commands", "support.exported")


@pytest.fixture(scope="session")
def characters() -> PreTrainedTokenizerFast:
    """A tokenizer of single characters for the tiny models."""
    return character_tokenizer()


@pytest.fixture(scope="session")
def bundled_model():
    """The bundled model and its tokenizer."""
    from prefheads.models.loading import load_model

    return load_model("bundled")


# --- the command line


@pytest.fixture(autouse=True)
def no_lines_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine makes commands say how far they are; tests read what is said in any case."""
    monkeypatch.setattr("prefheads.progress.FIRST", 3600.0)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command line in this process."""

    from prefheads.cli.main import run

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def people_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples of twelve users."""
    from support.commands import rows, write_rows  # not before its assertions are registered

    return write_rows(tmp_path_factory.mktemp("data") / "people.jsonl", rows())


@pytest.fixture
def profile_file(tmp_path: Path) -> Path:
    """A profile of two items."""
    path = tmp_path / "profile.txt"
    path.write_text("Beans again.\n\nGarlic, as ever.\n")
    return path


@pytest.fixture(scope="session")
def discovered(
    tiny_folder: Path, people_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What `prefheads discover` wrote."""
    from prefheads.cli.main import run

    out = tmp_path_factory.mktemp("runs") / "discovered"
    where = ["--model", str(tiny_folder), "--data", str(people_file), "--out", str(out)]
    assert run(["discover", *where]) == 0
    return out


@pytest.fixture(scope="session")
def fitted(tiny_folder: Path, people_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `prefheads fit` wrote."""
    from prefheads.cli.main import run

    out = tmp_path_factory.mktemp("runs") / "fitted"
    where = ["--model", str(tiny_folder), "--data", str(people_file), "--out", str(out)]
    assert run(["fit", *where, "--clusters", "2", "--min-samples", "1"]) == 0
    return out


# --- evaluation


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path):
    """The saved tiny model and its tokenizer."""
    from prefheads.models.loading import load_model

    return load_model(tiny_folder)


@pytest.fixture(scope="session")
def lamp_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of LaMP: tweets of 24 users, reviews of 10."""
    root = tmp_path_factory.mktemp("lamp")
    write_task(root, "LaMP_7", 24)
    write_task(root, "LaMP_3", 10)
    return root


@pytest.fixture(scope="session")
def tweets(lamp_folder: Path) -> list[Example]:
    """The samples of LaMP-7, one of each user."""
    return load_examples(lamp_folder / "LaMP_7")


@pytest.fixture(scope="session")
def tweet_steerer(tiny_model, tweets: list[Example]) -> PreferenceSteerer:
    """Heads found on the first ten tweets, and a calibration that chose to amplify them."""
    settings = [Setting("top 8% by head PCS", "amplify", "head", 0.5)]
    return PreferenceSteerer.fit(
        *tiny_model, tweets[:10], 2, settings=settings, min_samples=1, progress=False
    )


# --- judges


@pytest.fixture
def judged_run(tmp_path: Path) -> Path:
    """Eight pairs of texts that differ, and two that do not."""
    return write_run(tmp_path / "run", 8, same=2)


@pytest.fixture
def study(judged_run: Path) -> Study:
    """The pairs of that run."""
    return load_study(judged_run, METHODS)


# --- the service


@pytest.fixture(scope="module")
def twin() -> PreferenceSteerer:
    """The service's steerer on a model of its own, for what should be answered."""
    from support.served import make_steerer

    return make_steerer()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that listens, with an empty database."""
    from support.served import LIMITS, make_steerer, running

    database = tmp_path_factory.mktemp("serve") / "db.sqlite"
    with running(make_steerer(), str(database), limits=LIMITS) as running_one:
        yield running_one


@pytest.fixture(scope="module")
def client(run: Running) -> openai.OpenAI:
    """The official client of that service."""
    return run.openai()
