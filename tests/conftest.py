"""What several test files share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from models import character_tokenizer
from saved import Result
from transformers import PreTrainedTokenizerFast

pytest.register_assert_rewrite("steered")


@pytest.fixture(scope="session")
def characters() -> PreTrainedTokenizerFast:
    """A tokenizer of single characters for the tiny models."""
    return character_tokenizer()


@pytest.fixture(scope="session")
def bundled_model():
    """The bundled model and its tokenizer."""
    from prefheads.loading import load_model

    return load_model("bundled")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command line in this process."""

    from prefheads.cli.main import run

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call
