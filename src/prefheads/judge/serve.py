"""A small web page for blinded pairwise annotation; votes need no JavaScript."""

from __future__ import annotations

import re
import socket
import sqlite3
import unicodedata
from urllib.parse import quote, unquote

import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from prefheads.judge.pairs import Pair, Study
from prefheads.judge.store import TIE, Votes

COOKIE, A_YEAR = "annotator", 365 * 24 * 3600
NAME = re.compile(r"[^\W_][\w .'-]{0,39}")  # what a spreadsheet takes for text, not for a formula
SHORT = 280  # characters of a field of a profile that is shown without being unfolded
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(study: Study, votes: Votes) -> Starlette:
    """The web application: a name, then one pair after the other until all are voted on."""
    site = _Site(study, votes)
    return Starlette(
        routes=[
            Route("/", site.next_pair),
            Route("/name", site.ask_name),
            Route("/name", site.set_name, methods=["POST"]),
            Route("/vote", site.vote, methods=["POST"]),
            Route("/undo", site.undo, methods=["POST"]),
            Mount("/static", StaticFiles(packages=[("prefheads.judge", "static")])),
        ],
        exception_handlers={HTTPException: site.refuse, sqlite3.Error: site.refuse},
    )


def serve(study: Study, votes: Votes, listening: socket.socket) -> None:
    """Serve the page until interrupted."""
    config = uvicorn.Config(make_app(study, votes), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


def annotator_name(text: str) -> str | None:
    """The one form of a name, however a phone capitalises it; None if it is no name."""
    name = " ".join(unicodedata.normalize("NFKC", text).split()).casefold()
    return name if NAME.fullmatch(name) else None


class _Site:
    def __init__(self, study: Study, votes: Votes) -> None:
        self.study, self.votes = study, votes
        self.pairs = {pair.id: pair for pair in study.differing}
        self.pages = Environment(
            loader=PackageLoader("prefheads.judge"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    async def next_pair(self, request: Request) -> Response:
        name = _name(request)
        if name is None:
            return self._page("name.html.j2", name="", problem=None)
        voted = [key for key in self.votes.voted(name) if key in self.pairs]
        left = [pair for key, pair in self.pairs.items() if key not in set(voted)]
        last = voted[-1] if voted else None
        shared = {"name": name, "last": last, "done": len(voted), "total": len(self.pairs)}
        if not left:
            return self._page("done.html.j2", **shared)
        pair = left[0]
        texts = pair.texts[::-1] if self.study.swapped(pair, name) else pair.texts
        return self._page("pair.html.j2", pair=pair, texts=texts, short=SHORT, **shared)

    async def ask_name(self, request: Request) -> Response:
        return self._page("name.html.j2", name=_name(request) or "", problem=None)

    async def set_name(self, request: Request) -> Response:
        text = await _field(request, "name")
        name = annotator_name(text)
        if name is None:
            problem = "Begin with a letter or digit; at most 40 letters, digits, spaces, . ' or -"
            return self._page("name.html.j2", 400, name=text, problem=problem)
        answer = _to_next_pair()
        answer.set_cookie(COOKIE, quote(name), max_age=A_YEAR, httponly=True, samesite="lax")
        return answer

    async def vote(self, request: Request) -> Response:
        name, pair = _name(request), await self._pair(request)
        if name is not None:
            first, second = self.study.methods
            if self.study.swapped(pair, name):
                first, second = second, first
            chosen = {"1": first, "2": second, TIE: TIE}.get(await _field(request, "choice"))
            if chosen is None:
                raise HTTPException(400, "No such choice.")
            self.votes.add(pair, name, chosen, first)
        return _to_next_pair()

    async def undo(self, request: Request) -> Response:
        name, pair = _name(request), await self._pair(request)
        if name is not None:
            self.votes.remove(pair, name)
        return _to_next_pair()

    async def refuse(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return self._page("problem.html.j2", error.status_code, problem=error.detail)
        return self._page("problem.html.j2", 503, problem="Not kept; please try again.")

    async def _pair(self, request: Request) -> Pair:
        pair = self.pairs.get(await _field(request, "pair"))
        if pair is None:
            raise HTTPException(400, "No such pair.")
        return pair

    def _page(self, template: str, status: int = 200, /, **values: object) -> HTMLResponse:
        html = self.pages.get_template(template).render(values)
        return HTMLResponse(html, status, headers=HEADERS)


def _name(request: Request) -> str | None:
    return annotator_name(unquote(request.cookies.get(COOKIE, "")))


async def _field(request: Request, field: str) -> str:
    form = await request.form(max_files=0, max_fields=4)
    value = form.get(field)
    return value if isinstance(value, str) else ""


def _to_next_pair() -> RedirectResponse:
    return RedirectResponse("/", 303, headers={"Cache-Control": "no-store"})
