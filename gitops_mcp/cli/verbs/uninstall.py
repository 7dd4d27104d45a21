"""``uninstall``: the agents stop, and nothing in the cluster waits for them any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import click

from gitops_mcp.base import objects
from gitops_mcp.cli import options
from gitops_mcp.source import settings

if TYPE_CHECKING:
    from gitops_mcp.base.names import JsonObject, ObjectRef
    from gitops_mcp.base.objects import LiveObject
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.cluster.kube import Cluster

T = TypeVar("T")

STOP_WITHIN = 90.0
"""Seconds for an agent's pod to go: its grace period, and some."""
SILENCE = 10.0
"""Seconds without a renewal after which whoever held a lease has gone: a lease's own duration."""
LOOK = 0.5
"""Seconds between two looks at what is waited for."""
TRIES = 5
"""How often an object that somebody writes meanwhile is read again."""
_KINDS = "validatingadmissionpolicybinding,validatingadmissionpolicy,clusterrolebinding,clusterrole"


@click.command(
    "uninstall",
    cls=options.Verb,
    epilog="""\b
Examples:
  gitops-mcp uninstall --keep-servers                  then delete what is left: servers run on
  gitops-mcp uninstall -q --keep-servers | sh          and delete it at once
  gitops-mcp uninstall                                 the last commands take the servers as well
\b
Exit codes: 0 done, 2 could not be done (run it again: what is done stays done).
""",
)
@options.connection
@options.option("--keep-servers", is_flag=True, help="Their Deployments and Services stay.")
@options.common
def command(
    connection: settings.ConnectionOptions, *, keep_servers: bool, common: options.CommonOptions
) -> None:
    """Stop the agents, let go of every server, and print what is left to delete.

    The agents' Deployments are scaled to 0. Our finalizer is taken off, so that no deletion waits
    for an agent that is no more; with --keep-servers our owner references too, so that Deployments
    and Services outlive the MCPServers and the CRD. Nothing is deleted here: the commands that are
    left are printed, one a line, and a shell can run them.
    """
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.cluster.kube import Cluster
    from gitops_mcp.sync import connecting

    terminal = Terminal(common)
    cluster = connecting.connect(Cluster, connection, warn=terminal.warn, notice=terminal.notice)
    try:
        _stop_agents(cluster, terminal)
        leases = list(_leases(cluster))
        _until_silent(cluster, leases, terminal)
        _release(cluster, terminal, keep=keep_servers)
        namespaces = list(_namespaces(cluster, terminal))
    finally:
        cluster.close()
    for line in _left(leases, namespaces, keep=keep_servers):
        click.echo(line)


# --- agents ---------------------------------------------------------------------------------


def _stop_agents(cluster: Cluster, terminal: Terminal) -> None:
    """Scale every agent's Deployment to 0, and wait until its pods are gone."""
    from gitops_mcp.base.errors import UsageError
    from gitops_mcp.base.names import ObjectRef
    from gitops_mcp.cli import install

    selector = f"{install.LABEL_APP}={install.APP},app.kubernetes.io/component={install.COMPONENT}"
    agents, _ = cluster.list("apps/v1", "Deployment", None, label_selector=selector)
    for agent in agents:
        ref = ObjectRef.of(agent)
        cluster.merge_patch(
            ref, {"spec": {"replicas": 0}}, manager=_MANAGER, uid=agent["metadata"]["uid"]
        )
        terminal.say(f"{ref} in namespace {ref.namespace} is scaled to 0")
    if not agents:
        terminal.say("no agent is installed in this cluster")
        return
    until = time.monotonic() + STOP_WITHIN
    while pods := cluster.list("v1", "Pod", None, label_selector=selector)[0]:
        if time.monotonic() >= until:
            ref = ObjectRef.of(pods[0])
            raise UsageError(
                f"{ref} in namespace {ref.namespace} does not end",
                hint="delete it, then run the same command again",
            )
        time.sleep(LOOK)


def _leases(cluster: Cluster) -> Iterator[JsonObject]:
    """What says that somebody writes, or wrote, for a source."""
    from gitops_mcp.cluster import leadership

    found, _ = cluster.list("coordination.k8s.io/v1", "Lease", None)
    for lease in found:
        if lease["metadata"]["name"].startswith(leadership.lease_name("")):
            yield lease


def _until_silent(cluster: Cluster, leases: list[JsonObject], terminal: Terminal) -> None:
    """Whoever still renews a lease would take hold again of what we let go."""
    from gitops_mcp.base.errors import UsageError
    from gitops_mcp.base.names import ObjectRef

    held = {ObjectRef.of(lease): lease["spec"] for lease in leases if _holder(lease)}
    until = time.monotonic() + SILENCE
    while held and time.monotonic() < until:
        for ref, spec in list(held.items()):
            terminal.detail(f"{ref} in namespace {ref.namespace}: does its holder live?")
            now = cluster.get(ref)
            if now is None or not _holder(now):
                del held[ref]
            elif now["spec"].get("renewTime") != spec.get("renewTime"):
                raise UsageError(
                    f"{_holder(now)} is still at work: it renews {ref} in {ref.namespace}",
                    hint="stop it, then run the same command again",
                )
        time.sleep(LOOK)


def _holder(lease: JsonObject) -> str:
    return objects.text(lease, "spec", "holderIdentity")


# --- servers --------------------------------------------------------------------------------

_MANAGER = "gitops-mcp-uninstall"
"""A field manager of its own: ours owns nothing that was not applied."""


def _release(cluster: Cluster, terminal: Terminal, *, keep: bool) -> None:
    """Let go of children first: without its finalizer a deleted MCPServer takes them along."""
    from gitops_mcp.base.errors import KindAbsent
    from gitops_mcp.base.names import FINALIZER, KIND, ObjectRef

    try:
        servers = _servers(cluster)
    except KindAbsent:
        terminal.say(f"the cluster does not know {KIND}: there is nothing to release")
        return
    orphans = 0
    if keep:
        # One that is being deleted already goes with all that it has.
        staying = {objects.uid(s) for s in servers if not objects.is_deleting(s)}
        for child in _children(cluster):
            ref = ObjectRef.of(child)
            orphans += _edit(cluster, ref, lambda live: _owner_of_ours(live, staying))
    released = sum(
        _edit(cluster, ObjectRef.of(server), lambda live: _entry(live, "finalizers", FINALIZER))
        for server in servers
    )
    told = f"{released} of {len(servers)} MCPServers held our finalizer: released"
    terminal.say(told + (f"; {orphans} Deployments and Services stand alone now" if keep else ""))


def _servers(cluster: Cluster) -> list[LiveObject]:
    from gitops_mcp.base.names import API_VERSION, KIND

    return cluster.list(API_VERSION, KIND, None)[0]


def _children(cluster: Cluster) -> Iterator[JsonObject]:
    from gitops_mcp.base.names import KIND
    from gitops_mcp.cluster.view import WATCHED

    for watched in WATCHED:
        if watched.kind not in (KIND, "Pod"):
            yield from cluster.list(
                watched.api_version, watched.kind, None, label_selector=watched.selector
            )[0]


Found = tuple[str, int, object]
"""Where an entry of a list stands: the list's name in the metadata, its index, and itself."""


def _entry(live: JsonObject, name: str, wanted: object) -> Found | None:
    entries = live["metadata"].get(name) or []
    return (name, entries.index(wanted), wanted) if wanted in entries else None


def _owner_of_ours(live: JsonObject, staying: set[str]) -> Found | None:
    from gitops_mcp.base.names import GROUP, KIND

    for reference in objects.items(live, "metadata", "ownerReferences"):
        ours = reference["kind"] == KIND and reference["apiVersion"].startswith(f"{GROUP}/")
        if ours and reference["uid"] in staying:
            return _entry(live, "ownerReferences", reference)
    return None


def _edit(cluster: Cluster, ref: ObjectRef, find: Callable[[JsonObject], Found | None]) -> bool:
    """Take one entry out of a list of an object's metadata; False: it is not there (any more)."""
    from gitops_mcp.base.errors import Conflict, Gone

    for attempt in range(TRIES):
        live = cluster.get(ref)
        found = find(live) if live is not None else None
        if live is None or found is None:
            return False
        name, index, entry = found
        path = f"/metadata/{name}/{index}"
        ops: list[JsonObject] = [
            {"op": "test", "path": path, "value": entry},
            {"op": "remove", "path": path},
        ]
        try:
            cluster.json_patch(
                ref,
                ops,
                manager=_MANAGER,
                **objects.preconditions(live),
            )
        except (Conflict, Gone):
            if attempt == TRIES - 1:
                raise
        else:
            return True
    return False


# --- what is left ---------------------------------------------------------------------------


def _namespaces(cluster: Cluster, terminal: Terminal) -> Iterator[str]:
    """Namespaces that ``install`` made for agents: those that hold a server stay."""
    from gitops_mcp.base.errors import KindAbsent
    from gitops_mcp.cli import install

    labelled, _ = cluster.list(
        "v1", "Namespace", None, label_selector=f"{install.LABEL_APP}={install.APP}"
    )
    if not labelled:
        return
    found = list(_children(cluster))
    with suppress(KindAbsent):
        found += _servers(cluster)
    inhabited = {each["metadata"]["namespace"] for each in found}
    for namespace in labelled:
        name = namespace["metadata"]["name"]
        if name in inhabited:
            terminal.say(f"namespace {name} holds servers, and stays")
        else:
            yield name


def _left(leases: list[JsonObject], namespaces: list[str], *, keep: bool) -> Iterator[str]:
    """The commands that remove the rest, in an order in which none waits for another."""
    from gitops_mcp.base.names import (
        APP_NAME,
        CRD_NAME,
        FIELD_MANAGER,
        LABEL_MANAGED_BY,
        LABEL_NAME,
    )
    from gitops_mcp.cli import install

    ours = f"-l {install.LABEL_APP}={install.APP}"
    yield f"kubectl delete {_KINDS} {ours}"
    kinds = "deployment,service,rolebinding,role,serviceaccount"
    yield f"kubectl delete {kinds} --all-namespaces {ours}"
    for lease in leases:
        metadata = lease["metadata"]
        yield f"kubectl delete lease {metadata['name']} --namespace {metadata['namespace']}"
    # What they recorded of each source, beside its Lease.
    yield f"kubectl delete configmap --all-namespaces -l {LABEL_MANAGED_BY}={FIELD_MANAGER}"
    for name in namespaces:
        yield f"kubectl delete namespace {name}"
    if not keep:
        # The garbage collector forgets whose they were once it no longer knows the owner's kind.
        children = f"-l {LABEL_MANAGED_BY}={FIELD_MANAGER},{LABEL_NAME}={APP_NAME}"
        yield f"kubectl delete deployment,service --all-namespaces {children}  # the servers"
    yield f"kubectl delete crd {CRD_NAME}  # the MCPServers"
