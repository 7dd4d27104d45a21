"""Lists in pages that all show the moment of the first one.

Receives lists and continue tokens; returns tokens, and where in which list to go on. A list that
is remembered no more goes on from the objects of now, if the client agrees to that.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Callable

import orjson

from gitops_mcp.sandbox.errors import ApiError, bad_request
from gitops_mcp.sandbox.storage import Object, Stored, dumps

REMEMBERED = 100
"""Lists whose next pages may still be asked for."""

Listing = tuple[int, list[Stored], int]
"""The resourceVersion of a list, its objects, and the index of the next one."""


class Pages:
    """The lists that clients are paging through."""

    def __init__(self) -> None:
        self._lists: OrderedDict[str, tuple[int, list[Stored]]] = OrderedDict()

    def token(self, listing: Listing) -> str:
        """The continue token for what follows."""
        rv, items, following = listing
        key = f"{rv}/{id(items)}"
        self._lists[key] = rv, items
        while len(self._lists) > REMEMBERED:
            self._lists.popitem(last=False)
        return _encode(key, following, _place(items[following - 1].object))

    def resume(self, token: str, now: Callable[[], tuple[int, list[Stored]]]) -> Listing:
        """Where a token goes on; ApiError 410 with another token if its list is forgotten."""
        try:
            key, following, place = orjson.loads(base64.urlsafe_b64decode(token))
        except ValueError:
            raise bad_request("continue key is not valid") from None
        if key in self._lists:
            return *self._lists[key], following
        if key:
            raise ApiError(
                410,
                "Expired",
                "The provided continue parameter is too old to display a consistent list result."
                " You can start a new list without the continue parameter, or use the continue"
                " token in this response to retrieve the remainder of the results.",
                continue_token=_encode("", 0, place),
            )
        rv, items = now()
        return rv, [one for one in items if _place(one.object) > place], 0


def _encode(key: str, following: int, place: list[str]) -> str:
    return base64.urlsafe_b64encode(dumps([key, following, place])).decode()


def _place(obj: Object) -> list[str]:
    return [obj["metadata"].get("namespace", ""), obj["metadata"]["name"]]
