"""What several test files share."""

from __future__ import annotations

import pytest
from models import character_tokenizer
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
