"""The first lists of what the source and the cluster hold, before anything is decided."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from gitops_mcp.base.errors import KindAbsent, Permanent, UsageError
from gitops_mcp.base.model import INSTALL_CRD
from gitops_mcp.base.names import API_VERSION, CRD_NAME, KIND, ObjectRef
from gitops_mcp.cluster.leadership import Say
from gitops_mcp.source import serverschema
from gitops_mcp.sync.permissions import require_min_version
from gitops_mcp.sync.reading import Source
from gitops_mcp.sync.syncoptions import SyncOptions

if TYPE_CHECKING:
    from gitops_mcp.cluster.reads import Reader
    from gitops_mcp.cluster.view import View
    from gitops_mcp.cluster.watches import Versions


def survey(
    cluster: Reader, view: View, source: Source, wishes: SyncOptions, *, warn: Say = lambda _: None
) -> Versions:
    """Fill the view with what the cluster holds; returns where its watches go on from. Raises
    UsageError with the one clear line where the cluster is not fit for us."""
    from gitops_mcp.cluster import watches
    from gitops_mcp.source import crd

    require_min_version(cluster)
    try:
        if wishes.watch_namespace is not None:
            # The CRD is outside of it.
            return watches.read(cluster, view, [wishes.watch_namespace])
        versions = _lists(cluster, view, source, warn)
        definition = None
        with contextlib.suppress(Permanent):  # without the right to look, the first write will tell
            definition = cluster.get(
                ObjectRef("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", CRD_NAME)
            )
    except KindAbsent as error:
        raise UsageError(
            f"the cluster does not know {KIND} ({API_VERSION})",
            hint=INSTALL_CRD,
        ) from error
    ours = crd.custom_resource_definition(serverschema.schema())
    missing = crd.missing(definition, ours) if definition is not None else ()
    if missing:
        raise UsageError(
            f"the CRD in the cluster is older than this version: it lacks {missing[0]}",
            hint=INSTALL_CRD,
        )
    return versions


def _lists(cluster: Reader, view: View, source: Source, warn: Say) -> Versions:
    """All namespaces; where that may not be listed, those of the manifests."""
    from gitops_mcp.cluster import watches

    try:
        return watches.read(cluster, view, watches.EVERYWHERE)
    except Permanent as error:
        loaded = source.loaded
        keys = filter(source.limit.selects, {*loaded.servers, *loaded.protected})
        namespaces = sorted({key.namespace for key in keys})
        if error.code != 403 or not namespaces:
            raise
        versions = watches.read(cluster, view, namespaces)
        warn(
            "without the right to list mcpservers in all namespaces, only those of the "
            f"manifests are looked at: {', '.join(namespaces)}"
        )
        return versions
