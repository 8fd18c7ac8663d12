"""Whether a server can be reached, told within seconds.

Clients of the hub and of downloads retry for half a minute and longer before they give up, and then
name the last thing that failed. So they are asked only where there is a way to their server.
"""

from __future__ import annotations

from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants

SECONDS = 4.0


def unreachable(url: str) -> str:
    """Why a server does not answer at all; empty if it does, be it with an error.

    Proxies are used as the environment names them.
    """
    reasons = [f"no answer within {SECONDS:g} seconds"]

    def ask() -> None:
        try:
            request = Request(url, headers={"User-Agent": "prefheads"}, method="HEAD")
            with suppress(HTTPError):  # an answer
                urlopen(request, timeout=2 * SECONDS).close()
            reasons.append("")
        except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            reasons.append(str(getattr(reason, "strerror", None) or reason))

    # Looking a name up, and trying its addresses in turn, heeds no time limit.
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS)
    return reasons[-1]


def no_hub(source: str) -> str:
    """Why the hub cannot be asked for a model; empty if it can, or need not for a folder."""
    if Path(source).is_dir():
        return ""
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
