"""What a decision needs to know of a server's pods that the API server cannot tell.

Pure: facts in, the due ``Probe`` out (handshakes, counts of sessions). Whoever runs decisions has
it answered by ``probes.ask`` and decides again; nothing here makes a request.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from gitops_mcp.base import limits, objects, transports
from gitops_mcp.base.model import Context, Facts, Probe, ProbeResult, SecretHeader
from gitops_mcp.base.names import ANNOTATION_RECONCILE
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.source import policies, serverschema

HANDSHAKE_INTERVAL = timedelta(seconds=60)
HANDSHAKE_TIMEOUT = timedelta(seconds=5)
HANDSHAKE_LONGEST = timedelta(seconds=limits.HANDSHAKE_LONGEST_SECONDS)
HANDSHAKE_RETRY, HANDSHAKE_RETRY_CAP = (
    timedelta(seconds=seconds) for seconds in limits.HANDSHAKE_RETRY_SECONDS
)
"""After a handshake that went wrong: a server may take a while to start behind its port. Each
further failure of the same pods doubles it."""
SPREAD = 0.1
"""The share of a wait that is cut off by chance, so that what began together goes apart."""
COUNT_INTERVAL = timedelta(seconds=2)
COUNT_TIMEOUT = timedelta(seconds=2)
CLEANUP_LIMIT = timedelta(seconds=limits.HOOKS_SECONDS)
CLEANUP_HURRIED = timedelta(seconds=10)
METRICS_PATH = "/metrics"
REQUEST_LIMIT = 256
"""Characters of a request for a fresh look: what is longer is cut, and so is its answer."""


def requested(cr: LiveObject | None) -> str:
    """The request for a fresh look at a server: whatever its annotation says, "" for none. It is
    answered in the status once the look has been taken, a handshake included."""
    return objects.text(cr, "metadata", "annotations", ANNOTATION_RECONCILE)[:REQUEST_LIMIT]


def handshake(facts: Facts, context: Context) -> tuple[Probe | None, datetime | None]:
    """The handshake that is due now, and when the next one will be; neither where nobody asks.

    A pod is asked once its containers are ready, a new one at once, all of them each interval,
    when those that failed have gone, and whenever somebody asks for a fresh look. Pods that fail
    are asked less and less often, at least each HANDSHAKE_RETRY_CAP.
    """
    spec = _spec(facts)
    health = objects.part(spec, "health")
    asked = context.probes and health.get("mode", "handshake") == "handshake"
    if not asked or not transports.of_spec(spec).networked or facts.failure is not None:
        return None, None
    pods = dict(addresses(facts.pods))
    if not pods or any(policies.secrets(facts.key, spec, context.policy)):
        return None, None
    last, asked_for = facts.probe, requested(facts.cr)
    interval = transports.duration(health.get("interval"), HANDSHAKE_INTERVAL)
    if last is not None:
        again = interval
        if not pods.keys() <= last.passed:
            failures = last.failures if last.generation == objects.generation(facts.cr) else 1
            again = min(interval, HANDSHAKE_RETRY) * 2 ** min(max(failures - 1, 0), 16)
            again = min(again, HANDSHAKE_RETRY_CAP)
        again = _spread(again, facts, last.at)
        again = max(again, last.wait or again)
        fresh = last.asked == asked_for and facts.now < last.at + again
        speaks_of_others = pods.keys() <= last.passed < last.pods
        if pods.keys() <= last.pods and fresh and not speaks_of_others:
            return None, last.at + again
    port, path = spec["port"], spec["path"]
    inquiry = Probe(
        "handshake",
        targets=tuple((uid, f"http://{ip}:{port}{path}") for uid, ip in sorted(pods.items())),
        host=f"{facts.key.name}.{facts.key.namespace}.svc.{context.domain}:{port}",
        timeout=min(
            transports.duration(health.get("timeout"), HANDSHAKE_TIMEOUT), HANDSHAKE_LONGEST
        ),
        asked=asked_for,
        uid=objects.uid(facts.cr),
        generation=objects.generation(facts.cr),
        known=last.answers if last and last.generation == objects.generation(facts.cr) else {},
        headers_from=tuple(
            SecretHeader(
                item["name"],
                item["secretKeyRef"]["name"],
                item["secretKeyRef"]["key"],
                item.get("prefix", ""),
            )
            for item in objects.items(health, "headersFrom")
        ),
    )
    return inquiry, None


def answered(answer: ProbeResult, inquiry: Probe, last: ProbeResult | None) -> ProbeResult:
    """The answer to a handshake as it is remembered: which request it answers, and how often in a
    row the pods that fail have failed. A new pod, a new spec or a success begins anew."""
    failing = answer.pods - answer.passed
    same = last is not None and last.generation == inquiry.generation and failing <= last.pods
    before = last.failures if same and last is not None else 0
    return replace(
        answer,
        asked=inquiry.asked,
        generation=inquiry.generation,
        failures=before + 1 if failing else 0,
    )


def _spread(wait: timedelta, facts: Facts, at: datetime) -> timedelta:
    """A little less than ``wait``: how much less, server and time say."""
    chance = zlib.crc32(f"{objects.uid(facts.cr)} {at.isoformat()}".encode()) / 2**32
    return wait * (1 - SPREAD * chance)


def sessions(facts: Facts, context: Context) -> Probe | None:
    """How to count the sessions that a shutdown waits for, where the server can tell."""
    spec = _spec(facts)
    drain = objects.part(spec, "drain")
    counted = facts.sessions_at is not None and facts.now < facts.sessions_at + COUNT_INTERVAL
    if not context.probes or counted:
        return None
    if "url" in drain:
        if any(policies.drain_url(facts.key, spec, context.policy)):
            return None
        targets: tuple[tuple[str, str], ...] = (("", drain["url"]),)
        return Probe("sessions", targets, timeout=COUNT_TIMEOUT, uid=objects.uid(facts.cr))
    gauge = drain.get("gauge")
    pods = dict(addresses(facts.pods))
    if not gauge or not pods:
        return None
    port, path = gauge.get("port", spec["port"]), gauge.get("path", METRICS_PATH)
    targets = tuple((uid, f"http://{ip}:{port}{path}") for uid, ip in sorted(pods.items()))
    return Probe(
        "sessions",
        targets,
        timeout=COUNT_TIMEOUT,
        gauge=gauge["name"],
        match=tuple(sorted(objects.part(gauge, "match").items())),
        uid=objects.uid(facts.cr),
    )


def cleanup(facts: Facts) -> Probe | None:
    """The operator's hooks, where they have not been called yet; in a namespace that is going
    they are given less time."""
    if facts.cleanup is not None:
        return None
    limit = CLEANUP_HURRIED if facts.namespace == "Terminating" else CLEANUP_LIMIT
    return Probe("cleanup", targets=(), timeout=limit, uid=objects.uid(facts.cr))


def _spec(facts: Facts) -> Mapping[str, Any]:
    assert facts.cr is not None  # noqa: S101 -- asked only of servers that exist
    return objects.spec(serverschema.defaulted(facts.cr))


def addresses(pods: tuple[LiveObject, ...]) -> Iterator[tuple[str, str]]:
    """The uid and the address of each pod whose containers are ready and that is not ending. A
    pod may wait for a readiness gate that our handshake opens: its own Ready is not asked."""
    for pod in pods:
        ready = objects.condition(pod, "ContainersReady").get("status") == "True"
        ip = objects.text(pod, "status", "podIP")
        if ready and ip and not objects.is_deleting(pod):
            yield objects.uid(pod), f"[{ip}]" if ":" in ip else ip
