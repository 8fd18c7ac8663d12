"""Progress of long work: tqdm's bar on a terminal and in a notebook, elsewhere a line now and then.

A bar is redrawn many times a second, which fills a log; without one, a command that runs under
nohup says nothing for an hour. So where standard error is no terminal, tqdm's figures are written
as whole lines: at the start, after a few seconds, then more and more rarely, and at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import Any

from tqdm import auto
from tqdm.asyncio import tqdm_asyncio
from tqdm.std import tqdm

FIRST, LAST = 3.0, 60.0  # seconds between lines: doubled from the first to the last

_START = "{desc}: {total_fmt}{units} to do"
_RESUMED = "{desc}: {n_fmt} of {total_fmt}{units} done before"
_NOW = (
    "{desc}: {n_fmt} of {total_fmt}{units} ({percentage:.0f} %) after {elapsed}, "
    "{remaining} to go, ends about {eta:%H:%M}"
)
_UNBOUND = "{desc}: {n_fmt}{units} after {elapsed}"
_ENDED = "{desc}: {n_fmt} of {total_fmt}{units} in {elapsed}"


class Lines(tqdm):  # type: ignore[misc]
    """tqdm's counting, written as lines.

    Takes what tqdm takes; averages over all of the work, since steps differ in length.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        options |= {"miniters": 0, "smoothing": 0, "gui": True}
        super().__init__(*args, **options)
        self.mininterval: float = FIRST
        if not self.disable:
            self._write(_RESUMED if self.initial else _START)

    def __iter__(self) -> Iterator[Any]:
        with self:  # tqdm's own loop would not see that the interval changes
            for item in self.iterable:
                yield item
                self.update()

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write how far the work is."""
        if self.n == self.total:
            return  # `close` says so
        self._write(_NOW if self.total else _UNBOUND)
        self.mininterval = min(2 * self.mininterval, LAST)

    def close(self) -> None:
        """Write the last line."""
        if not self.disable and self.n > self.initial:
            self._write(_ENDED if self.total else _UNBOUND)
        super().close()

    def _write(self, form: str) -> None:
        units = "" if self.unit_scale else f" {self.unit}s"
        figures = self.format_dict | {"bar_format": form.replace("{units}", units)}
        print(self.format_meter(**figures), file=self.fp, flush=True)


def track(*args: Any, **options: Any) -> Any:
    """A progress bar with the arguments of ``tqdm``, in the form that suits where it is seen."""
    notebook = auto.tqdm is not tqdm_asyncio
    if notebook or sys.stderr.isatty():
        return auto.tqdm(*args, **options)
    return Lines(*args, **options)


@contextmanager
def stage(name: str, shown: bool = True) -> Iterator[None]:
    """Say what is going on in the block, should it take longer than a few seconds.

    For work whose steps cannot be counted: reading, loading, tests over many resamples.
    """
    ended = Event()

    def tell() -> None:
        pause, began = FIRST, monotonic()
        while not ended.wait(pause):
            so_far = tqdm.format_interval(monotonic() - began)
            print(f"{name}: {so_far} so far", file=sys.stderr, flush=True)
            pause = min(2 * pause, LAST)

    if shown:
        Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
