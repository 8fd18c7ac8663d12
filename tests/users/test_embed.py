"""Profiles to vectors, with a stand-in for the sentence encoder."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prefheads.errors import DataError, ModelError, PrefheadsError
from prefheads.users import ProfileEncoder


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


class Letters:
    """Counts vowels, scaled to length 1, like an encoder with normalised embeddings."""

    def __init__(self, name: str, **_: Any) -> None:
        if "missing" in name:
            raise OSError("no such encoder\nand a long story")

    def encode(self, texts: list[str], **options: Any) -> NDArray[np.float32]:
        assert options["normalize_embeddings"]
        counts = np.array([[text.count(v) for v in "aeiou"] for text in texts], dtype=np.float32)
        return np.asarray(counts / np.linalg.norm(counts, axis=1, keepdims=True))


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> ProfileEncoder:
    stand_in = SimpleNamespace(SentenceTransformer=Letters)
    monkeypatch.setitem(sys.modules, "sentence_transformers", stand_in)
    monkeypatch.setattr("prefheads.users.embed.no_hub", lambda source: "")
    return ProfileEncoder("letters")


def test_profile_is_the_unit_mean_of_its_items(letters: ProfileEncoder) -> None:
    profiles: list[list[dict[str, Any]]] = [
        [{"text": "aaaa"}, {"text": "e"}, {"text": "  "}],
        [{"id": "uuu", "date": "uuu", "title": "i", "text": "o", "score": 5}],
    ]
    expected = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]) / np.sqrt(2)
    embedded = letters.embed(profiles)
    assert embedded.dtype == np.float32
    assert np.allclose(embedded, expected)
    assert np.array_equal(embedded, letters.embed(profiles))
    assert np.allclose(letters.embed(profiles[1:]), embedded[1:])


def test_profile_without_text_is_named(letters: ProfileEncoder) -> None:
    empty: list[list[dict[str, Any]]] = [[], [{"text": " "}], [{"id": "7", "score": 3}]]
    for profile in empty:
        with pytest.raises(DataError, match="profile 1") as error:
            letters.embed([[{"text": "a"}], profile])
        one_line(error)
    with pytest.raises(DataError):
        letters.embed([])


def test_missing_encoder_and_missing_extra_are_one_line(
    letters: ProfileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="'missing'") as error:
        ProfileEncoder("missing")
    assert one_line(error).endswith("no such encoder")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(PrefheadsError, match=r"prefheads\[cluster\]") as absent:
        ProfileEncoder("letters")
    one_line(absent)
