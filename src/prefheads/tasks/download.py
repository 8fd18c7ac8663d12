"""Fetching the files of LaMP and LongLaMP: resumed, complete, and checked before they are kept.

LongLaMP is on the hub, whose client fetches it. LaMP is on a plain web server, for which that
client has no public function that resumes a file; pooch and the like begin anew, too.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from typing import Literal, get_args
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from prefheads.data.task import task_name
from prefheads.errors import DataError
from prefheads.models.network import unreachable
from prefheads.progress import track
from prefheads.storage import writable_dir
from prefheads.tasks.lamp import LAMP, OUTPUTS, QUESTIONS, read_golds, read_lamp
from prefheads.tasks.longlamp import FOLDERS, LONGLAMP, splits_in

BASE_URL = "https://ciir.cs.umass.edu/downloads/LaMP/"
DATASET = "LongLaMP/LongLaMP"
Separation = Literal["user", "time"]
SPLITS = ("train", "dev", "test")

_PRIVATE = {
    "LaMP-6": "LDC2015T03 from the LDC and LaMP's script data/avocado/create_avocado_dataset.py",
    "LongLaMP-1": "LDC2015T03 from the LDC and LongLaMP's script for it",
}
_CHUNK = 2**20
_TIMEOUT = 60.0  # seconds without a byte
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


def download(
    tasks: Sequence[str],
    splits: Sequence[str],
    out: Path,
    *,
    setting: Separation = "user",
    base_url: str = BASE_URL,
    retries: int = 5,
    wait: float = 1.0,
    progress: bool = True,
) -> list[Path]:
    """Fetch splits of tasks; files that are there already are left alone.

    LaMP goes to ``out/LaMP_<n>/<split>/`` (``out/time/...`` for the setting ``"time"``), with golds
    except for ``test``, whose golds the benchmark keeps to itself. LongLaMP goes to
    ``out/<task>_<setting>/`` as the hub has it. Each is a source for ``load_examples``.

    Args:
        setting: ``"user"``: other users in each split; ``"time"``: later texts of the same users.
        retries: How often in a row a transfer may fail without a byte more; then it is given up.
        wait: Seconds before the first retry, doubled for each further one.

    Returns:
        The files of LaMP, and of LongLaMP the splits.

    Raises:
        DataError: Unknown or private tasks, no network, no such file, or damaged files.
    """
    names = [_public(task) for task in tasks]
    for split in splits:
        if split not in SPLITS:
            raise DataError(f"unknown split {split!r}: use {', '.join(SPLITS)}")
    if not names or not splits:
        raise DataError("name at least one task and one split")
    if setting not in get_args(Separation):
        raise DataError(f"unknown setting {setting!r}: use {' or '.join(get_args(Separation))}")
    if not base_url.startswith(("http://", "https://")):
        raise DataError(f"not an address: {base_url!r}; it must begin with https://")
    writable_dir(out)
    server = _Server(base_url.rstrip("/"), retries, wait, progress)
    files: list[Path] = []
    for name in dict.fromkeys(names):
        for split in dict.fromkeys(splits):
            if name in FOLDERS:
                files.append(_longlamp(name, split, out, setting))
            else:
                files += server.lamp(name, split, out, setting)
    return files


def _public(task: str) -> str:
    name = task_name(task)
    offered = [t.name for t in (*LAMP, *LONGLAMP)]
    if name not in offered:
        raise DataError(f"unknown task {task!r}: the tasks are {', '.join(offered)}")
    if name in _PRIVATE:
        raise DataError(
            f"{name} is made of private e-mails (the Avocado collection) and cannot be downloaded; "
            f"make its files with {_PRIVATE[name]}, they are read like the others"
        )
    return name


def _longlamp(task: str, split: str, out: Path, setting: Separation) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    if why := unreachable(constants.ENDPOINT):
        raise DataError(
            f"the hub ({constants.ENDPOINT}) cannot be reached: {why}; check the network"
        )
    folder = f"{FOLDERS[task]}_{'temporal' if setting == 'time' else 'user'}"
    name = "val" if split == "dev" else split
    patterns = [f"{folder}/{name}[-.]*", f"{folder}/{name}/*"]
    try:
        # Where the hub refuses, `snapshot_download` returns what the folder holds, and no error.
        offered = HfApi().list_repo_files(DATASET, repo_type="dataset")
        if not any(fnmatch(file, pattern) for file in offered for pattern in patterns):
            raise DataError(f"{DATASET}: the hub has no split {name} in {folder}")
        snapshot_download(DATASET, repo_type="dataset", allow_patterns=patterns, local_dir=out)
    except DataError:
        raise
    except Exception as error:  # the hub's client raises whatever its parts raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{DATASET} cannot be fetched from the hub: {reason}") from error
    if name not in splits_in(out / folder):
        raise DataError(f"{DATASET}: split {name} of {folder} has not come; try again")
    return out / folder / name


@dataclass(frozen=True)
class _Server:
    """Where the folders of LaMP are, and how to fetch from there."""

    base_url: str
    retries: int
    wait: float
    progress: bool

    def lamp(self, task: str, split: str, out: Path, setting: Separation) -> list[Path]:
        """One split of LaMP: questions, and golds unless it is the test split."""
        folder = ("time/" if setting == "time" else "") + task.replace("-", "_")
        # The server keeps under LaMP_2 itself an older task, news categorisation.
        remote = f"{self.base_url}/{folder}{'/new' if task == 'LaMP-2' else ''}/{split}"
        local = writable_dir(out / folder / split)
        wanted = [split + QUESTIONS] + ([split + OUTPUTS] if split != "test" else [])
        files = [local / name for name in wanted]
        if all(file.is_file() for file in files):
            return files
        if why := unreachable(self.base_url):
            raise DataError(f"{self.base_url} cannot be reached: {why}; check the network")
        came = [f if f.is_file() else self.part_of(f, f"{remote}/{f.name}") for f in files]
        try:
            _check(task, *came)
        except DataError as error:
            for part in set(came) - set(files):
                part.unlink()
            raise DataError(
                f"{remote}: what came is not what it should be ({error}); "
                "try again or check the address"
            ) from None
        for part, file in zip(came, files, strict=True):
            part.rename(file)
        return files

    def part_of(self, file: Path, url: str) -> Path:
        """The whole file, as ``<name>.part``; what is there of it is not fetched again."""
        part = file.with_name(file.name + ".part")
        failures = 0
        while failures <= self.retries:
            before = _size(part)
            try:
                if self.transfer(url, part):
                    return part
                reason = "the connection ended early"
            except HTTPError as error:
                reason = f"the server says {error.code} {error.reason}"
                if error.code not in _TRANSIENT:
                    raise DataError(f"{url}: {reason}") from None
            except (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            failures = 0 if _size(part) > before else failures + 1
            time.sleep(self.wait * 2 ** min(max(failures - 1, 0), 5))
        raise DataError(
            f"{url}: cannot be fetched ({reason}; {_size(part)} bytes so far); check the network "
            "and run the same command again, which resumes"
        )

    def transfer(self, url: str, part: Path) -> bool:
        """Fetch what is missing of a file; whether it is complete then."""
        have = _size(part)
        headers = {"User-Agent": "prefheads", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            response = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
        except HTTPError as error:
            if error.code != 416:
                raise
            # Nothing lies behind what is there: it is complete, or it belongs to another file.
            complete = error.headers.get("Content-Range") == f"bytes */{have}"
            if not complete:
                part.unlink(missing_ok=True)
            return complete
        with response:
            start, total = 0, response.length  # a server may send all of it again
            if response.status == 206:
                sent = response.headers.get("Content-Range", "")
                match = re.fullmatch(rf"bytes {have}-\d+/(?:(\d+)|\*)", sent)
                if match is None:
                    raise HTTPException("the server sent another part of the file than asked for")
                start, total = have, match[1] and int(match[1])
            bar = track(
                desc="/".join(part.parts[-3:]).removesuffix(".part"), total=total, initial=start,
                unit="B", unit_scale=True, disable=not self.progress,
            )  # fmt: skip
            with bar, part.open("ab" if start else "wb") as file:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        return total is None or _size(part) == total


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check(task: str, questions: Path, outputs: Path | None = None) -> None:
    """Make sure that files hold questions of the task, and a gold for each and no other."""
    golds: dict[str, str] = {}
    if outputs is not None:
        named, golds = read_golds(outputs)
        if named != task:
            raise DataError(f"{outputs}: holds {named}, not {task}")
    ids = set()
    for where, row in read_lamp(questions, outputs, require_output=outputs is not None):
        if not isinstance(row.get("input"), str) or not isinstance(row.get("profile"), list):
            raise DataError(f'{where}: must have an "input" and a "profile"')
        ids.add(row["id"])
    if not ids:
        raise DataError(f"{questions}: holds no questions")
    if foreign := sorted(golds.keys() - ids):
        raise DataError(f"{outputs}: golds without a question: {foreign[:3]}")
