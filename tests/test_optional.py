"""Libraries of extras: imported, or told in a line with the command that installs them."""

from __future__ import annotations

import json
import sys

import pytest

from prefheads.errors import PrefheadsError
from prefheads.optional import needs, require

HOW = r'^absent is not installed; install the extra: pip install "prefheads\[judge\]"$'


def test_what_is_installed_is_imported() -> None:
    assert require("json", "judge") is json
    assert require("json.decoder", "judge") is json.decoder


def test_what_is_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "absent", None)
    with pytest.raises(PrefheadsError, match=HOW):
        require("absent", "judge")
    with pytest.raises(PrefheadsError, match=HOW), needs("judge"):
        import absent  # noqa: F401


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), needs("judge"):
        raise KeyError("absent")
