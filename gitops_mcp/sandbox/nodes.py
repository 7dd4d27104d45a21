"""The one node of the cluster, as its kubelet would register it.

Receives a store; leaves a Ready Node in it. Nothing ever runs on it: pods are played.
"""

from __future__ import annotations

from gitops_mcp.sandbox.discovery import VERSION
from gitops_mcp.sandbox.pods import NODE
from gitops_mcp.sandbox.store import KindKey, Store, timestamp

NODES: KindKey = ("", "nodes")
CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "10000"}
"""More than any demo asks for: the sandbox has no scheduler that could say no."""


def register(store: Store) -> None:
    """Register the node, unless an earlier start did."""
    if store.get(NODES, None, NODE) is not None:
        return
    labels = {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux"}
    node = store.create(NODES, {"metadata": {"name": NODE, "labels": labels}}, manager="kubelet")
    now = timestamp(store.clock())
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "kubelet is posting ready status",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    status = {
        "capacity": CAPACITY,
        "allocatable": CAPACITY,
        "conditions": [ready],
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "nodeInfo": {"kubeletVersion": VERSION["gitVersion"], "operatingSystem": "linux"},
    }
    store.update(NODES, {**node, "status": status}, manager="kubelet", subresource="status")
