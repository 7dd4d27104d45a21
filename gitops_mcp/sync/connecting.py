"""How a run reaches the cluster, the pods and the notes that its options name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from gitops_mcp.base import times
from gitops_mcp.cluster import leadership
from gitops_mcp.cluster.leadership import Say
from gitops_mcp.decide.books import Books, Store
from gitops_mcp.source.settings import ConnectionOptions

if TYPE_CHECKING:
    from gitops_mcp.cluster.kube import Cluster

if TYPE_CHECKING:
    from gitops_mcp.cluster.kube import Cluster
    from gitops_mcp.cluster.reads import Reader
    from gitops_mcp.cluster.transport import Observer
    from gitops_mcp.sync.hooks import Hook


R = TypeVar("R", bound="Reader")


def notes_wanted(cluster: Cluster, chosen: str | None) -> bool:
    """Are deployment notes written? What happens in a sandbox was never deployed. Raises
    KubeError."""
    return chosen == "on" if chosen is not None else not cluster.is_sandbox


def connect(
    kind: type[R],
    options: ConnectionOptions,
    *,
    observe: Observer | None = None,
    warn: Say = lambda _: None,
    notice: Say = lambda _: None,
) -> R:
    """The cluster, as kubectl would find it; no request yet. ``kind``: ``reads.Reader``, or
    ``kube.Cluster`` to write. ``observe`` hears of each request, ``warn`` of a server that is
    not verified, ``notice`` of each warning of the API server, once.
    """
    cluster = kind(options.kubeconfig, options.context, observe=observe, notice=notice)
    if not cluster.verified:
        warn(
            f"the certificate of {cluster.server} is not verified (insecure-skip-tls-verify): "
            "whoever is between can read the credentials"
        )
    return cluster


def cleanup_hooks(configured: object) -> tuple[Hook, ...]:
    """The operator's hooks, from the configuration's ``hooks``. Raises UsageError."""
    from gitops_mcp.sync import hooks

    return hooks.parse(configured)


def probing(word: str | None) -> bool:
    """Are handshakes made? From inside of a cluster pods can be reached; elsewhere only if told."""
    return word == "on" if word is not None else in_cluster()


def in_cluster() -> bool:
    """Do we run in a pod?"""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def books(
    cluster: Cluster,
    source_id: str,
    namespace: str,
    *,
    area: str = "",
    take_over: bool = False,
    read_only: bool = False,
    may_write: Callable[[], bool] = lambda: True,
) -> Books:
    """The record of a source, beside the Lease of the same name in ``namespace``."""
    name = leadership.lease_name(source_id, area)
    return Books(
        Store(cluster, namespace, name, source_id),
        clock=times.utc_now,
        may_write=may_write,
        take_over=take_over,
        read_only=read_only,
    )
