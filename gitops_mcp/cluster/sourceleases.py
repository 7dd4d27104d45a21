"""The Leases and records of sources, found in a cluster."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from gitops_mcp.base import objects
from gitops_mcp.base.errors import Permanent, UsageError
from gitops_mcp.base.model import CLUSTER_SOURCE as CLUSTER_SOURCE
from gitops_mcp.base.names import (
    FIELD_MANAGER,
    GROUP,
    LABEL_MANAGED_BY,
    LABEL_SOURCE,
    JsonObject,
    ObjectRef,
)
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.decide.record import PREFIX, Record, parse
from gitops_mcp.decide.record import area_of as area_of
from gitops_mcp.decide.record import lease_name as lease_name

if TYPE_CHECKING:
    from gitops_mcp.cluster.reads import Reader
    from gitops_mcp.decide.sourcestatus import SourceStatus


STEP = 1.0
"""Seconds between two steps: within so much a stand-by sees that the lease is free."""


SECOND_LOOK = 7.0
"""Seconds after which a living agent has renewed its lease, whatever the clocks say: longer than a
holder may go without a renewal (``LeaseTiming.renew_deadline``)."""


LEASE_REVISION = f"{GROUP}/revision"
"""The Lease's annotation that bears the fleet's revision."""


LEASE_READ = f"{GROUP}/last-read"
"""The Lease's annotation with the answer to a reconcile request for the source: a JSON object with
``request``, ``result`` (moved, unchanged or failed), ``revision`` and ``message``."""


LEASE_TROUBLE = f"{GROUP}/trouble"
"""The Lease's annotation that says why its holder enforces nothing."""


LEASE_WAITS = f"{GROUP}/waits"
"""The Lease's annotation of an agent that has no commit yet and so leads nothing: a JSON object
with ``at`` (RFC 3339) and ``message``."""


def answer_of(lease: JsonObject | None) -> dict[str, str]:
    """The answer to a reconcile request that a Lease has; empty without one that can be read."""
    return annotated(lease, LEASE_READ)


def annotated(lease: JsonObject | None, annotation: str) -> dict[str, str]:
    text = objects.text(lease, "metadata", "annotations", annotation)
    try:
        answer = json.loads(text) if text else {}
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in answer.items()} if isinstance(answer, dict) else {}


def covers(name: str, source_id: str, namespace: str) -> bool:
    """Does whoever holds the Lease of this name run servers of the source in the namespace, as far
    as the name tells?"""
    source, _, area = name.removeprefix(PREFIX).partition("--")
    narrow = area.split(".")  # a namespace has no dot
    return source == source_id and (area == "" or len(narrow) == 2 or narrow[-1] == namespace)


def home(cluster: Reader, given: str | None) -> str:
    """Where our leases live if there are none yet: in ``given``, else in the namespace of the pod
    that we run in, else in ``default``. A kubeconfig's context has no say: whoever writes for the
    same source may have another one."""
    if given:
        return given
    return cluster.namespace if "KUBERNETES_SERVICE_HOST" in os.environ else "default"


def lease_namespaces(
    cluster: Reader, source_ids: tuple[str, ...], given: str | None
) -> tuple[str, ...]:
    """Where the Lease of each of these sources lives: where an agent holds it, else where anybody
    does, else where it was given up last, else ``home``."""
    own = home(cluster, given)
    found: dict[str, list[JsonObject]] = {source_id: [] for source_id in source_ids}
    for lease in find_leases(cluster, *source_ids, given=given).seen:
        found[source_named(lease["metadata"]["name"])].append(lease)

    def rank(lease: JsonObject) -> tuple[object, ...]:
        spec, metadata = objects.spec(lease), lease["metadata"]
        holder, whole = str(spec.get("holderIdentity") or ""), "--" not in metadata["name"]
        # Of two that have a holder one was left by somebody who died, whom the other outlived.
        renewed = str(spec.get("renewTime") or "")
        return is_agent(holder), holder != "", whole, renewed, metadata["namespace"]

    return tuple(
        max(leases, key=rank)["metadata"]["namespace"] if leases else own
        for leases in found.values()
    )


class FoundLeases(NamedTuple):
    """The Leases of some sources, as far as this user may read Leases."""

    seen: list[LiveObject]
    everywhere: bool
    """Whether all namespaces were listed. If not, an agent may hold a Lease that was not seen."""


def find_leases(cluster: Reader, *source_ids: str, given: str | None = None) -> FoundLeases:
    """The Leases of some sources and of their areas. If listing all namespaces is forbidden: those
    in ``given``, the context's namespace and ``default``. Raises KubeError, but for a 403."""
    api_version = "coordination.k8s.io/v1"
    areas = ("", area_of(cluster.namespace))
    names = [lease_name(each, area) for each in source_ids for area in areas]
    selector = f"{LABEL_MANAGED_BY}={FIELD_MANAGER}"
    everywhere = True
    try:
        leases, _ = cluster.list(api_version, "Lease", None, label_selector=selector)
    except Permanent:
        leases, everywhere = [], False
        places = {given or "default", cluster.namespace, "default"}
        for namespace, name in itertools.product(places, names):
            with suppress(Permanent):
                lease = cluster.get(ObjectRef(api_version, "Lease", namespace, name))
                leases += [lease] if lease is not None else []
    seen = [lease for lease in leases if source_named(lease["metadata"]["name"]) in source_ids]
    return FoundLeases(seen, everywhere)


def find_records(
    cluster: Reader, source_id: str, *, areas: Collection[str] = ()
) -> dict[ObjectRef, Record]:
    """The records of a source and of its areas. If listing all namespaces is forbidden: those
    beside its Leases, of the whole source and of these ``areas``. Raises KubeError, and UsageError
    for one that cannot be read."""
    selector = f"{LABEL_MANAGED_BY}={FIELD_MANAGER},{LABEL_SOURCE}={source_id}"
    try:
        bodies, _ = cluster.list("v1", "ConfigMap", None, label_selector=selector)
    except Permanent:
        leases = find_leases(cluster, source_id).seen
        places = {lease["metadata"]["namespace"] for lease in leases}
        names = [lease_name(source_id, area) for area in ("", *areas)]
        refs = [ObjectRef("v1", "ConfigMap", *each) for each in itertools.product(places, names)]
        bodies = [body for body in map(cluster.get, refs) if body is not None]
    found = {ObjectRef.of(body): body for body in bodies}
    named = {ref: body for ref, body in found.items() if ref.name.startswith(PREFIX)}
    return {ref: parse(body) for ref, body in named.items() if source_named(ref.name) == source_id}


def find_states(
    cluster: Reader, source_id: str, leases: Iterable[JsonObject]
) -> list[SourceStatus]:
    """The states in the records beside a source's Leases: its own, and those of agents with a
    ``--watch-namespace`` or a ``--limit``, as long as they are about the commit that the Lease
    names. A record that this user may not read is left out. One LIST a namespace. Raises KubeError,
    but for a 403."""
    selector = f"{LABEL_MANAGED_BY}={FIELD_MANAGER},{LABEL_SOURCE}={source_id}"
    states = []
    for lease in leases:
        metadata = lease["metadata"]
        ref = ObjectRef("v1", "ConfigMap", metadata["namespace"], metadata["name"])
        try:
            bodies, _ = cluster.list("v1", "ConfigMap", ref.namespace, label_selector=selector)
        except Permanent:
            bodies = []
            with suppress(Permanent):
                bodies = [body for body in (cluster.get(ref),) if body is not None]
        enforced = objects.annotations(lease).get(LEASE_REVISION)
        for body in bodies:
            with suppress(UsageError):
                state = parse(body).status
                if ObjectRef.of(body) == ref or enforced in (None, state.revision):
                    states.append(state)
    return states


def living(cluster: Reader, leases: Iterable[JsonObject]) -> tuple[ObjectRef, str] | None:
    """One of these Leases that is held and renewed, and its holder; None where there is none. Where
    somebody holds one, this takes ``SECOND_LOOK`` seconds at most. Raises KubeError."""
    held = {ObjectRef.of(lease): objects.spec(lease) for lease in leases if _holder(lease)}
    until = time.monotonic() + SECOND_LOOK
    while held and time.monotonic() < until:
        time.sleep(STEP / 4)
        for ref in tuple(held):
            lease = cluster.get(ref)
            if not _holder(lease):
                del held[ref]
            elif objects.spec(lease) != held[ref]:
                return ref, _holder(lease)
    return None


def _holder(lease: JsonObject | None) -> str:
    return objects.text(lease, "spec", "holderIdentity")


def is_agent(holder: str) -> bool:
    """Is this holder of a Lease an agent? An identity begins with what its process is."""
    return holder.partition("-")[0] == "agent"


def agents(lease: JsonObject) -> bool:
    """Does an agent hold the Lease, alive or not, as far as one object can say?"""
    return is_agent(_holder(lease))


def source_of(server: JsonObject) -> str | None:
    """The source id that the MCPServer bears as a label."""
    label = objects.labels(server).get(LABEL_SOURCE)
    return None if label is None else str(label)


def belongs_to(server: JsonObject, source_id: str | None) -> bool:
    """Does the MCPServer bear the label of this source? None stands for every source."""
    return source_id is None or source_of(server) == source_id


def source_named(name: str) -> str:
    return name.removeprefix(PREFIX).partition("--")[0]
