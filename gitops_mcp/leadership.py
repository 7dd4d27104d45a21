"""Leadership: one writer of each source, and one of the servers that kubectl made.

Receives a connection and the name of a source; holds that source's Lease for as long as somebody
writes, and says at once when it is not ours any more. Never writes anything but Leases (and, where
that is wanted, the namespace that they live in).
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from gitops_mcp.errors import KubeError, LeaseLost, Permanent
from gitops_mcp.model import FIELD_MANAGER, GROUP, LABEL_MANAGED_BY, JsonObject, ObjectRef

if TYPE_CHECKING:
    from gitops_mcp.kube import Cluster, Lease

LEASE_DURATION = timedelta(seconds=10)
LEASE_RENEWAL = 2.0
"""Seconds between two renewals: several may fail before the lease is lost."""
LEASE_PATIENCE = 15.0
"""Seconds that a sync waits for another sync's lease."""
LEASE_REVISION = f"{GROUP}/revision"
"""The Lease's annotation that bears the revision of the last pass."""
CLUSTER_SOURCE = "cluster"
"""The pseudo-source of servers that kubectl made."""

Say = Callable[[str], None]


def lease_name(source_id: str) -> str:
    """The name of a source's Lease."""
    return f"gitops-mcp-{source_id}"


def lease_namespaces(
    cluster: Cluster, source_ids: tuple[str, ...], given: str | None
) -> tuple[str, ...]:
    """Where the Lease of each of these sources lives: in ``given``, else where its agent holds it,
    else in the namespace of the pod that we run in, else in ``default``."""
    if given:
        return (given,) * len(source_ids)
    own = cluster.namespace if "KUBERNETES_SERVICE_HOST" in os.environ else "default"
    agents: dict[str, set[str]] = {}
    for lease in find_leases(cluster, *source_ids):
        if str(lease.get("spec", {}).get("holderIdentity") or "").startswith("agent-"):
            metadata = lease["metadata"]
            agents.setdefault(metadata["name"], set()).add(metadata["namespace"])
    found = (agents.get(lease_name(source_id), {own}) for source_id in source_ids)
    return tuple(own if own in places else min(places) for places in found)


def find_leases(cluster: Cluster, *source_ids: str) -> list[JsonObject]:
    """The Leases of some sources, wherever we may look for them."""
    api_version, names = "coordination.k8s.io/v1", [lease_name(each) for each in source_ids]
    selector = f"{LABEL_MANAGED_BY}={FIELD_MANAGER}"
    try:
        leases, _ = cluster.list(api_version, "Lease", None, label_selector=selector)
    except Permanent:
        leases = []
        for namespace, name in itertools.product({cluster.namespace, "default"}, names):
            with suppress(Permanent):
                lease = cluster.get(ObjectRef(api_version, "Lease", namespace, name))
                leases += [lease] if lease is not None else []
    return [lease for lease in leases if lease["metadata"]["name"] in names]


def create_namespace(cluster: Cluster, name: str) -> None:
    """Make the namespace that a Lease lives in, where there is none yet."""
    if cluster.get(ObjectRef("v1", "Namespace", "", name)) is None:
        cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, force=False
        )


@contextmanager
def only_writer(
    cluster: Cluster,
    namespace: str,
    source_id: str,
    *,
    holder: str,
    take_over: bool,
    lost: threading.Event,
    ended: threading.Event | None = None,
    say: Say = lambda _: None,
) -> Iterator[Lease | None]:
    """Hold the source's Lease, renewed in the background; ``lost`` is set when it is not ours any
    more. ``holder`` is what we are: ``sync`` or ``agent``. A sync waits for another sync, but not
    for an agent; an agent stands by until whoever holds it has ended, well or badly, or until
    ``ended`` is set: only then we do not have it (None)."""
    lease = source_lease(cluster, namespace, source_id, holder)
    name = f"lease {namespace}/{lease_name(source_id)}"
    ended = ended or threading.Event()
    if not _acquire(lease, name, holder == "agent", ended, take_over=take_over, say=say):
        yield None
        return
    with _renewed(lease, lost, say):
        yield lease


def source_lease(cluster: Cluster, namespace: str, source_id: str, holder: str) -> Lease:
    """A source's Lease, for ``holder`` (``sync`` or ``agent``). Keep it: that its holder is gone is
    seen by looking at it for a while."""
    from gitops_mcp.kube import Lease

    identity = f"{holder}-{socket.gethostname()}-{os.getpid()}-{random.getrandbits(32):08x}"
    return Lease(cluster, namespace, lease_name(source_id), identity, duration=LEASE_DURATION)


@contextmanager
def kubectl_writer(
    lease: Lease, *, patience: float, lost: threading.Event, say: Say = lambda _: None
) -> Iterator[bool]:
    """Stand for the servers that kubectl made: True where nobody else does. ``lease`` is that of
    CLUSTER_SOURCE; an agent that has it is left alone at once, a sync after ``patience`` seconds.
    """
    until = time.monotonic() + patience
    while not lease.acquire():
        if lease.holder.startswith("agent-") or time.monotonic() >= until:
            say(f"servers made by kubectl are left to {lease.holder}")
            yield False
            return
        time.sleep(0.5)
    with _renewed(lease, lost, say):
        yield True


@contextmanager
def _renewed(lease: Lease, lost: threading.Event, say: Say) -> Iterator[None]:
    """Renew a lease that we have until the end, then give it up."""
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lease, stop, lost), name="lease", daemon=True)
    guard = threading.Thread(target=_guard, args=(lease, stop, lost), name="guard", daemon=True)
    renewal.start()
    guard.start()
    try:
        yield
    finally:
        stop.set()
        renewal.join()
        try:
            lease.release()
        except KubeError as error:
            say(f"the lease could not be released: {error.message}")


def _acquire(
    lease: Lease, name: str, stand_by: bool, ended: threading.Event, *, take_over: bool, say: Say
) -> bool:
    until = time.monotonic() + LEASE_PATIENCE
    told = False
    while not lease.acquire(take_over=take_over):
        hint = "stop it, or use --take-over"
        if lease.holder.startswith("agent-") and not stand_by:
            raise LeaseLost(f"{name} is held by {lease.holder}", hint=hint)
        if time.monotonic() >= until and not stand_by:
            raise LeaseLost(f"{name} is still held by {lease.holder}", hint=hint)
        if not told:
            say(f"waiting for {lease.holder}, which holds {name}")
            told = True
        if ended.wait(0.5):
            return False
    return True


def _guard(lease: Lease, stop: threading.Event, lost: threading.Event) -> None:
    """A renewal may hang longer than the lease lasts: its time is looked at beside it."""
    while not stop.wait(LEASE_RENEWAL / 4):
        if not lease.held:
            lost.set()
            return


def _renew(lease: Lease, stop: threading.Event, lost: threading.Event) -> None:
    while not stop.wait(LEASE_RENEWAL):
        try:
            if not lease.acquire():
                lost.set()
                return
        except KubeError:
            if not lease.held:
                lost.set()
                return
