"""The bytes of an MCP server's answer in; the JSON-RPC response in them out, or why there is none.

Pure, and bounded: receives the body in pieces as they arrive, reads limits.ANSWER decoded bytes of
it at most, and stops at the response. Takes what at least one official client takes and refuses
what none of them takes, so that a verdict is the one that a client would reach. Whoever sent the
bytes is a stranger: nothing here quotes them. Passes on what the pieces raise, raises nothing
itself.
"""

from __future__ import annotations

import enum
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gitops_mcp.base import limits
from gitops_mcp.base.names import JsonObject

KEPT: Final = 4096
"""Bytes of a body that are kept beside the response, to see what an error page is about."""

_PIECE: Final = 65536
_JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Reading:
    """``message`` is the JSON-RPC response to the request; None: ``flaw`` says why there is none.
    ``start`` is the beginning of the body."""

    message: JsonObject | None
    flaw: str = ""
    start: bytes = b""


class _Flawed(Exception):
    """The body cannot be read to its end; the text says why."""


def read(
    pieces: Iterable[bytes], headers: Mapping[str, str], request: object, *, succeeded: bool
) -> Reading:
    """Looks for the response to ``request`` (its id; None for a notification) in a body.

    ``headers`` have lower-case names. ``succeeded``: the status is 2xx; only then does the type
    have to be one that clients read, since whatever says no may say it in any form.
    """
    kind = media_type(headers)
    bounded = decoded(pieces, headers.get("content-encoding", ""))
    try:
        if kind == EVENTS:
            return _in_events(bounded, request)
        body = b"".join(bounded)
    except _Flawed as flawed:
        return Reading(None, str(flawed))
    message, lack = _parsed(body, request, batch=True)
    flaw = str(lack)
    if message is not None and succeeded and kind != _JSON:
        message, flaw = None, f"its Content-Type is {_shown(kind)}, not {_JSON} or {EVENTS}"
    return Reading(message, flaw, body[:KEPT])


def media_type(headers: Mapping[str, str]) -> str:
    """The media type of an answer, in lower case, without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _shown(kind: str) -> str:
    if not kind:
        return "missing"
    return kind if re.fullmatch(r"[a-z]+/[a-z.+-]{1,40}", kind) else "another"


# --- JSON -------------------------------------------------------------------------------------


class _Lack(enum.StrEnum):
    """Why a JSON text has no response for us."""

    NONE = ""
    EMPTY = "the body is empty"
    NOT_JSON = "not JSON"
    BATCH = "a batch in an event"
    NOT_IN_BATCH = "a batch without the response"
    NO_RESPONSE = "JSON without result or error"
    OTHER_ID = "its id is not that of the request"


def _parsed(body: bytes, request: object, *, batch: bool) -> tuple[JsonObject | None, _Lack]:
    """The response in a JSON text, or the flaw. Of a batch, which some clients still take in a
    body, the response among its messages."""
    if not body.strip():
        return None, _Lack.EMPTY
    try:
        message: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None, _Lack.NOT_JSON
    if isinstance(message, list):
        if not batch:
            return None, _Lack.BATCH
        found = (one for one in message if isinstance(one, dict) and _answers(one, request))
        response = next(found, None)
        return response, _Lack.NONE if response is not None else _Lack.NOT_IN_BATCH
    if not isinstance(message, dict) or not message.keys() & {"result", "error"}:
        return None, _Lack.NO_RESPONSE
    if _answers(message, request):
        return message, _Lack.NONE
    return None, _Lack.OTHER_ID


def _answers(message: JsonObject, request: object) -> bool:
    """An error may name another id, or none: who refuses a request has not always read it."""
    return "error" in message or ("result" in message and message.get("id") == request)


# --- server-sent events -----------------------------------------------------------------------


def _in_events(pieces: Iterable[bytes], request: object) -> Reading:
    """The response among a stream's events; requests and notifications of the server are not."""
    flaw = "its events have no response"
    for kind, data in _events(pieces):
        if kind != "message":
            continue
        message, lack = _parsed(data, request, batch=False)
        if message is not None:
            return Reading(message)
        if lack in (_Lack.BATCH, _Lack.OTHER_ID):
            flaw = str(lack)
    return Reading(None, flaw)


def events(pieces: Iterable[bytes], headers: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """The server-sent events of a body, each ``(type, data)``; the rest of a body that cannot be
    read is no event."""
    try:
        yield from _events(decoded(pieces, headers.get("content-encoding", "")))
    except _Flawed:
        return


def response(data: bytes, request: object) -> JsonObject | None:
    """The response to ``request`` in one event's data; None: it is another message."""
    return _parsed(data, request, batch=False)[0]


def _events(pieces: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """As the standard dispatches them: at an empty line, so that an unfinished one is none."""
    kind, data = "", list[bytes]()
    for line in _lines(pieces):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data:
                yield kind or "message", b"\n".join(data)
            kind, data = "", []
        elif field == b"data":
            data.append(value)
        elif field == b"event":
            kind = value.decode(errors="replace")


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream as they are complete: CR, LF and CRLF end one, a byte order mark at
    the start is none of its text, and what follows the last end is no line."""
    rest, started, after_cr = bytearray(), False, False
    for piece in pieces:
        if after_cr and piece:
            piece, after_cr = piece.removeprefix(b"\n"), False
        rest += piece
        if not started:
            if len(rest) < len(_MARK) and _MARK.startswith(rest):
                continue
            started = True
            if rest.startswith(_MARK):
                del rest[: len(_MARK)]
        if _END.search(piece):  # a long line in small pieces is split once, at its end
            *lines, last = _END.split(bytes(rest))
            rest = bytearray(last)
            yield from lines
        after_cr = after_cr or piece.endswith(b"\r")


_MARK: Final = b"\xef\xbb\xbf"
_END: Final = re.compile(rb"\r\n|\r|\n")


# --- compression and length -------------------------------------------------------------------


def decoded(pieces: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """The body without its compression, as it arrives. Raises _Flawed for a body that is longer
    than limits.ANSWER, and for one that does not decompress. Nobody asked for compression, but
    clients take it, so some servers and proxies never check."""
    codings = [name.strip().lower() for name in encoding.split(",")]
    codings = [name for name in codings if name not in ("", "identity")]
    if not codings:
        yield from _limited(pieces)
    elif codings in (["gzip"], ["x-gzip"], ["deflate"]):
        yield from _limited(_inflated(pieces))
    else:
        raise _Flawed("its Content-Encoding was not asked for")


def _limited(pieces: Iterable[bytes]) -> Iterator[bytes]:
    left = limits.ANSWER
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise _Flawed(f"it is longer than {limits.ANSWER // limits.MIB} MiB")
        yield piece


def _inflated(pieces: Iterable[bytes]) -> Iterator[bytes]:
    inflate: Any = None
    for piece in pieces:
        if inflate is None:
            # "deflate" is zlib's format by the standard, and raw in some servers.
            raw = piece[:1] not in (b"\x1f", b"\x78")
            inflate = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32)
        waiting, more = piece, True
        while more:
            try:
                out = inflate.decompress(waiting, _PIECE)
            except zlib.error:
                raise _Flawed("it does not decompress") from None
            yield out
            if inflate.eof:
                return
            waiting = inflate.unconsumed_tail
            more = bool(waiting) or len(out) == _PIECE
