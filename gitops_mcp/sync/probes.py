"""The MCP handshake over HTTP: an address in, what answered there out.

Both eras are spoken: first ``server/discover`` of 2026-07-28, which makes no session; then the
``initialize`` of 2025-11-25 and before, whose session is ended again; then the older HTTP+SSE.
Answers are judged by their JSON-RPC body, since servers send errors with status 200, and as the
official clients judge them (``answers``). The servers are strangers: each answer has its limits of
time and bytes, all of them together have another, and nothing that they say is repeated but their
name and version, cut and cleaned. Trouble on the network is an answer, never an error.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Final

from gitops_mcp.base import answers, limits
from gitops_mcp.base.model import Handshake, Probe, ProbeResult
from gitops_mcp.base.names import JsonObject
from gitops_mcp.base.reasons import PROVEN, VERIFIED, Reason
from gitops_mcp.sync.conversation import CLIENT, Talk, always, request_of, session_header
from gitops_mcp.sync.sessiongauge import sessions
from gitops_mcp.sync.verdicts import BUSY, Answer, Ended, Slow, clean, failed, gate

MODERN: Final = "2026-07-28"
LEGACY: Final = "2025-11-25"
HTTP_SSE: Final = "2024-11-05"

AT_ONCE: Final = 8
"""Pods of one server that are asked at the same time."""
_MODERN_ERRORS: Final = frozenset({-32020, -32021, -32022})
"""JSON-RPC errors of the modern era alone: header mismatch, capability missing, version."""

_log = logging.getLogger(__name__)


def probe(
    url: str,
    *,
    host: str,
    timeout: float = 5.0,
    headers: Mapping[str, str] | None = None,
    loopback: Callable[[], bool] = always,
) -> Handshake:
    """Handshakes with the server at ``url`` (``http://<pod address>:<port><path>``).

    ``host``: the Host header that its clients send, ``name:port``; servers keep lists of those that
    they accept. ``timeout``: seconds for each answer (``limits`` has the bound of all of them).
    ``headers``: more of them, credentials as a rule: secret, sent to this address alone, and no
    redirect is followed with them. ``loopback``: see ``addresses.foreign``. Never raises for what
    the network or the server does.
    """
    try:
        with Talk(url, host, timeout, headers, loopback=loopback) as talk:
            return _discover(talk) or _initialize(talk)
    except Ended as end:
        return end.handshake
    except Exception as error:  # ours: whatever a stranger sends, nobody else is to suffer from it
        _log.error("a bug: the handshake could not judge an answer: %s", type(error).__name__)
        return Handshake(Reason.NOT_PROBED, "the agent could not judge the answer: a bug")


def summary(
    said: Mapping[str, Handshake], at: datetime, known: Mapping[str, Handshake] | None = None
) -> ProbeResult:
    """One result for a server from those of its pods (by uid, at least one): the worst of them,
    naming how many it speaks of. A pod that was too busy keeps the word that it gave before
    (``known``)."""
    known = known or {}
    words = {
        uid: answer if answer.wait is None else known.get(uid, answer)
        for uid, answer in said.items()
    }
    worst = min(words.values(), key=lambda answer: VERIFIED.index(answer.reason))
    told = [answer for answer in words.values() if answer.reason == worst.reason]
    message = worst.message
    if len(told) < len(words):
        message = f"{len(told)} of {len(words)} pods: {message}"
    info = next((answer.server_info for answer in words.values() if answer.server_info), None)
    passed = frozenset(uid for uid, answer in words.items() if answer.reason in PROVEN)
    wait = max((one.wait for one in said.values() if one.wait is not None), default=None)
    return ProbeResult(
        worst.reason, message, at, frozenset(words), info, passed, answers=words, wait=wait
    )


def asking(
    loopback: Callable[[], bool],
) -> Callable[[Probe, Callable[[], datetime]], ProbeResult | int | None]:
    """``ask``, where ``loopback`` says whether pods have loopback addresses (the sandbox's do)."""
    return partial(ask, loopback=loopback)


def ask(
    inquiry: Probe,
    now: Callable[[], datetime],
    *,
    loopback: Callable[[], bool] = lambda: False,
) -> ProbeResult | int | None:
    """The answer to an inquiry: a ProbeResult to a handshake, a number of sessions (None: a target
    did not say) to a count. ``AT_ONCE`` targets are asked at the same time, so that silent ones of
    a large server keep nobody else's inquiry waiting for long."""
    timeout = inquiry.timeout.total_seconds()
    uids = [uid for uid, _ in inquiry.targets]
    urls = [url for _, url in inquiry.targets]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="probe") as pool:
        if inquiry.kind == "handshake":
            shake = partial(
                probe,
                host=inquiry.host,
                timeout=timeout,
                headers=inquiry.headers,
                loopback=loopback,
            )
            said = dict(zip(uids, pool.map(shake, urls), strict=True))
            return summary(said, now(), inquiry.known)
        count = partial(
            sessions,
            gauge=inquiry.gauge,
            match=dict(inquiry.match),
            timeout=timeout,
            loopback=loopback,
        )
        counts = list(pool.map(count, urls))
    return None if None in counts else sum(count for count in counts if count is not None)


# --- the handshakes ---------------------------------------------------------------------------


def _discover(talk: Talk) -> Handshake | None:
    """The modern era; None where the server does not speak it. Silence and refusals are no answer
    yet: a server or a gateway that does not know the method may do anything about it."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": CLIENT,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "server/discover"}
    try:
        answer = talk.call("server/discover", {"_meta": meta}, headers)
    except Ended as end:
        if end.final:
            raise
        return None
    talk.leave()  # a legacy server may make a session for anything that it is asked
    try:
        gate(answer)
    except Ended as end:
        if end.final:
            raise
        return None
    result = answer.result
    if result is not None:
        if version := _newest(result.get("supportedVersions")):
            more = f" (redirects to {talk.moved})" if talk.moved else ""
            return _succeeded(_server_info(result), version, "modern", more)
    elif answer.error_code in _MODERN_ERRORS:
        offered = answer.error_data.get("supported")
        version = _newest(offered)
        if version or not isinstance(offered, list):
            return _succeeded({}, version, "modern", f" (refuses {MODERN}: {answer.error})")
    return None


def _newest(offered: object) -> str:
    """The version of the modern era among those that a server offers, ours if it can be; "" where
    there is none: some servers answer ``server/discover`` with versions of the other era alone."""
    known = offered if isinstance(offered, list) else []
    versions = [v for v in known if isinstance(v, str) and _VERSION.fullmatch(v) and v >= MODERN]
    return MODERN if MODERN in versions else max(versions, default="")


_VERSION: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")


def _initialize(talk: Talk) -> Handshake:
    """The legacy era, with a session that is ended again."""
    answer = talk.call("initialize", _initialization(LEGACY), {})
    gate(answer)
    if answer.result is None:
        return _http_sse(talk, answer)
    version = _agreed(answer.result)
    headers = {**session_header(answer.headers), "MCP-Protocol-Version": version}
    talk.agreed(headers)
    with contextlib.suppress(Slow):
        _works(talk.post(_INITIALIZED, headers), "notifications/initialized")
    with contextlib.suppress(Slow):
        pong = talk.post(request_of("ping", {}), headers, limit=limits.HANDSHAKE_PING_SECONDS)
        _works(pong, "ping")
        if pong.code == 200 and pong.message is None:
            raise failed(f"ping {pong.words}")
    more = f" (redirects to {talk.moved})" if talk.moved else ""
    return _succeeded(_server_info(answer.result), version, "legacy", more)


_INITIALIZED: Final = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def _initialization(version: str) -> JsonObject:
    return {"protocolVersion": version, "capabilities": {}, "clientInfo": CLIENT}


def _agreed(result: JsonObject) -> str:
    version = result.get("protocolVersion")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise failed("initialize names no protocol version")
    return version


def _works(answer: Answer, method: str) -> None:
    """After initialize, refusals (4xx) are a server's or a gateway's way, and clients go on; what
    breaks down breaks down for them as well."""
    if answer.code >= 500 and answer.code not in (501, *BUSY):
        raise failed(f"{method} {answer.words}")


def _http_sse(talk: Talk, refusal: Answer) -> Handshake:
    """The transport before streamable HTTP: a GET that begins with where to post to, and goes on
    with the answers."""
    if refusal.code not in (400, 404, 405):
        raise failed(f"initialize {refusal.words}")
    refused = failed(f"initialize {refusal.words}")
    try:
        stream = talk.listen()
        kind, data = stream.first()
    except Ended as end:
        # Silence may be a stream that is late; who refused in MCP's words has none to open.
        spoke = isinstance(end, Slow) and refusal.error_code is not None
        raise (
            refused if spoke or end.handshake.reason == Reason.HANDSHAKE_FAILED else end
        ) from None
    if kind != "endpoint":
        raise refused
    endpoint = talk.resolved(data.decode(errors="replace"))
    if endpoint is None:
        raise failed("HTTP+SSE: its endpoint event names another server")
    request = request_of("initialize", _initialization(HTTP_SSE))
    posted = talk.post(request, {}, path=endpoint)
    gate(posted)
    if not 200 <= posted.code < 300:
        raise failed(f"HTTP+SSE: initialize answers {posted.code} at its endpoint")
    message = stream.response(request["id"])
    answer = Answer(posted.code, {}, answers.Reading(message, "its events have no response"))
    if answer.result is None:
        raise failed(f"HTTP+SSE: initialize {answer.words}")
    version = _agreed(answer.result)
    with contextlib.suppress(Slow):
        noted = talk.post(_INITIALIZED, {}, path=endpoint)
        _works(noted, "HTTP+SSE: notifications/initialized")
    return _succeeded(_server_info(answer.result), version, "legacy", " (HTTP+SSE)")


def _succeeded(info: JsonObject, version: str, era: str, more: str = "") -> Handshake:
    known = {**info, "protocolVersion": version, "era": era}
    told = {key: value for key, value in known.items() if value}
    name = " ".join(filter(None, (info.get("name"), info.get("version")))) or "the server"
    spoken = f" speaks {version}" if version else " speaks MCP"
    return Handshake(Reason.HANDSHAKE_SUCCEEDED, f"{name}{spoken}{more}", told)


def _server_info(result: JsonObject) -> JsonObject:
    told = result.get("serverInfo")
    if not isinstance(told, dict):
        meta = result.get("_meta")
        told = meta.get("io.modelcontextprotocol/serverInfo") if isinstance(meta, dict) else None
    if not isinstance(told, dict):
        return {}
    return {key: clean(told[key]) for key in ("name", "version") if key in told}


# --- one request ------------------------------------------------------------------------------


# --- drain ------------------------------------------------------------------------------------
