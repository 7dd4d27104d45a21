"""The Service controller: the name of a Service in, its Endpoints, slice and address written.

What they contain is decided by the pure functions of `endpoints`.
"""

from __future__ import annotations

from gitops_mcp.sandbox import endpoints
from gitops_mcp.sandbox.access import MANAGER, Access
from gitops_mcp.sandbox.deployments import Object, parse
from gitops_mcp.sandbox.kinds import ENDPOINTS, SERVICES, SLICES
from gitops_mcp.sandbox.storage import KindKey

BALANCER_DELAY = 0.2
"""Simulated seconds until a Service of type LoadBalancer has its address."""


class Services:
    """The controller of all Services of one store."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def handle(self, namespace: str, name: str) -> float | None:
        """Bring one object up to date; returns the simulated seconds until only time changes it."""
        service = self._access.store.get(SERVICES, namespace, name)
        if service is None:
            if self._access.store.get(ENDPOINTS, namespace, name):
                self._access.store.delete(ENDPOINTS, namespace, name)
            return None
        if service["spec"].get("selector") and "deletionTimestamp" not in service["metadata"]:
            chosen = self._access.index.pods_of(service)
            self._put(ENDPOINTS, endpoints.endpoints(service, chosen))
            present = next(iter(self._access.index.children(SLICES, service)), None)
            self._put(SLICES, endpoints.endpoint_slice(service, chosen), present)
        return self._balance(service)

    def _balance(self, service: Object) -> float | None:
        balanced = service["spec"].get("type") == "LoadBalancer"
        given = bool(service.get("status", {}).get("loadBalancer"))
        if balanced == given:
            return None
        created = parse(service["metadata"]["creationTimestamp"])
        if balanced and (left := BALANCER_DELAY - self._access.since(created)) > 0:
            return left
        ingress = {"ingress": [{"ip": "127.0.0.1", "ipMode": "VIP"}]} if balanced else {}
        status = {**service.get("status", {}), "loadBalancer": ingress}
        self._access.write_status(SERVICES, service, status)
        return None

    def _put(self, kind: KindKey, wanted: Object, present: Object | None = None) -> None:
        metadata = wanted["metadata"]
        if present is None and "name" in metadata:
            present = self._access.store.get(kind, metadata["namespace"], metadata["name"])
        if present is None:
            self._access.store.create(kind, wanted, manager=MANAGER)
            return
        changed = {**present, **wanted, "metadata": {**present["metadata"]}}
        changed["metadata"]["labels"] = metadata["labels"]
        if changed != present:
            self._access.store.update(kind, changed, manager=MANAGER)
