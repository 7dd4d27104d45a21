"""Responses: objects in the form that a client asked for.

Receives objects and an Accept header; returns bytes and aiohttp responses: plain JSON, Tables
(`kubectl get`) or metadata alone, in the API version of the URL.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from aiohttp import web

from gitops_mcp.sandbox import tables
from gitops_mcp.sandbox.bodies import JSON
from gitops_mcp.sandbox.kinds import Kind
from gitops_mcp.sandbox.storage import Object, Stored, dumps

Headers = list[tuple[str, str]] | tuple[()]


def of_json(body: Any, code: int = 200, headers: Headers = ()) -> web.Response:
    """A response with this value."""
    return of_bytes(dumps(body), code, headers)


def of_bytes(body: bytes, code: int = 200, headers: Headers = ()) -> web.Response:
    """A response with JSON that is serialised already."""
    response = web.Response(body=body, status=code, content_type=JSON)
    for name, value in headers:
        response.headers.add(name, value)
    return response


class Form:
    """How one client wants to see the objects of one kind. ``include`` is what a Table's rows are
    to hold besides their cells."""

    def __init__(
        self, accept: str, kind: Kind, clock: Callable[[], datetime], include: str = ""
    ) -> None:
        self._kind = kind
        self._clock = clock
        self._whole = include == "Object"
        self._table = "as=Table" in accept
        self._partial = "as=PartialObjectMetadata" in accept

    def one(self, obj: Object, data: bytes | None = None) -> bytes:
        """An object; `data` is its serialised form where it is at hand."""
        if self._table:
            rv = obj["metadata"].get("resourceVersion", "")
            return dumps(self._rows([obj], rv))
        if self._partial:
            return dumps(tables.partial(obj))
        if obj["apiVersion"] != self._kind.api_version:
            return dumps({**obj, "apiVersion": self._kind.api_version})
        return dumps(obj) if data is None else data

    def many(self, page: list[Stored], metadata: dict[str, Any]) -> bytes:
        """A list with this metadata."""
        kind = self._kind
        if self._table:
            objects = [one.object for one in page]
            rows = self._rows(objects, metadata["resourceVersion"])
            return dumps({**rows, "metadata": metadata})
        listing = {"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": metadata}
        if self._partial:
            listing |= {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
        if self._partial or kind.definition is not None:
            items = (self.one(one.object, one.data) for one in page)
        else:
            items = (dumps(_bare(one.object)) for one in page)
        return dumps(listing)[:-1] + b',"items":[' + b",".join(items) + b"]}"

    def _rows(self, objects: list[Object], rv: str) -> dict[str, Any]:
        return tables.table(self._kind, objects, rv, self._clock(), whole=self._whole)


def _bare(obj: Object) -> Object:
    """An item of a built-in kind's list, which names neither kind nor version."""
    return {key: value for key, value in obj.items() if key not in ("apiVersion", "kind")}
