"""``/v1/profiles``: what is known of users."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import JSONResponse, Response

from prefheads.serve.problems import Problem
from prefheads.serve.profiles import NewItem, NoProfile, Summary
from prefheads.serve.schema import NAME, Item, Items
from prefheads.serve.service import Service, authenticated

router = APIRouter(prefix="/v1/profiles")
Key = Annotated[str, Depends(authenticated)]
User = Annotated[str, Path(pattern=NAME)]
After = Annotated[str, Query(max_length=128)]
Limit = Annotated[int, Query(ge=1, le=1000)]
MAX_FIELDS = 32


# These are plain functions: they wait for the database, so each runs in a thread.
@router.get("")
def list_profiles(request: Request, key: Key, after: After = "", limit: Limit = 100) -> Any:
    """The users of a key, by name."""
    found = Service.of(request).profiles.page(key, after, limit + 1)
    return _page([_shown(summary) for summary in found], limit, "user")


@router.put("/{user}")
def put(request: Request, key: Key, user: User, body: Items) -> Response:
    """Make a profile, or put other items in the place of its own."""
    service = Service.of(request)
    new = service.profiles.put(key, user, _checked(service, body.items))
    return JSONResponse(_shown(_found(service, key, user)), 201 if new else 200)


@router.get("/{user}")
def get(request: Request, key: Key, user: User) -> Any:
    """One profile, without its items."""
    return _shown(_found(Service.of(request), key, user))


@router.delete("/{user}")
def delete(request: Request, key: Key, user: User) -> Any:
    """Delete a user: the items, and all that was made of them."""
    if not Service.of(request).profiles.delete(key, user):
        raise NoProfile(user)
    return {"object": "profile.deleted", "user": user, "deleted": True}


@router.post("/{user}/items")
def append(request: Request, key: Key, user: User, body: Items) -> Any:
    """Add items; those that are there already, with the same id, are left as they are."""
    service = Service.of(request)
    added = service.profiles.append(key, user, _checked(service, body.items))
    if added is None:
        raise NoProfile(user)
    return _shown(_found(service, key, user)) | {"added": added}


@router.get("/{user}/items")
def list_items(
    request: Request, key: Key, user: User, after: After = "", limit: Limit = 100
) -> Any:
    """The items of a user, the oldest first, beginning after the one with the id ``after``."""
    profile = Service.of(request).profiles.get(key, user)
    if profile is None:
        raise NoProfile(user)
    begin = next((i + 1 for i, item in enumerate(profile.items) if item.id == after), 0)
    if after and not begin:
        raise Problem(404, "there is no item with the id in after", "item_not_found", "after")
    found = profile.items[begin : begin + limit + 1]
    return _page([{**item.fields, "id": item.id} for item in found], limit, "id")


@router.delete("/{user}/items/{item}")
def delete_item(
    request: Request, key: Key, user: User, item: Annotated[str, Path(pattern=NAME)]
) -> Any:
    """Delete one item."""
    if not Service.of(request).profiles.delete_item(key, user, item):
        raise Problem(404, "there is no such item", "item_not_found")
    return {"object": "item.deleted", "id": item, "deleted": True}


def _checked(service: Service, items: list[Item]) -> list[NewItem]:
    checked: list[NewItem] = []
    for i, item in enumerate(items):
        fields, place = item.fields, f"items.{i}"
        missing = [name for name in service.needed if not fields.get(name, "").strip()]
        if missing:
            raise Problem(400, f"{place}: needs {missing[0]}", "invalid_value", place)
        odd = [name for name in fields if not (name.isidentifier() and len(name) <= 64)]
        if odd or len(fields) > MAX_FIELDS:
            message = f"{place}: at most {MAX_FIELDS} fields, with names of letters and digits"
            raise Problem(400, message, "invalid_value", place)
        if sum(map(len, fields.values())) > service.limits.item_chars:
            message = f"{place}: more than {service.limits.item_chars} characters"
            raise Problem(400, message, "item_too_long", place)
        checked.append((item.id, fields))
    return checked


def _found(service: Service, key: str, user: str) -> Summary:
    summary = service.profiles.summary(key, user)
    if summary is None:
        raise NoProfile(user)
    return summary


def _shown(summary: Summary) -> dict[str, Any]:
    return {"object": "profile", **vars(summary)}


def _page(data: list[dict[str, Any]], limit: int, name: str) -> dict[str, Any]:
    page = data[:limit]
    last = page[-1][name] if page else None
    return {"object": "list", "data": page, "last": last, "has_more": len(data) > limit}
