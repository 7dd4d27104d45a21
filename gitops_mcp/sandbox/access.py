"""What every controller of the sandbox shares: the store, its index, the clock, and common writes.

Receives what a controller has decided; writes it if it changes anything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from gitops_mcp.sandbox import deployments
from gitops_mcp.sandbox.deployments import Object, stamp
from gitops_mcp.sandbox.errors import ApiError
from gitops_mcp.sandbox.index import Index
from gitops_mcp.sandbox.selectors import matches
from gitops_mcp.sandbox.storage import KindKey
from gitops_mcp.sandbox.store import Store

EVENTS: KindKey = ("", "events")
MANAGER = "kube-controller-manager"
RETRY = 1.0
"""Simulated seconds before something that the server refused is tried again."""

_log = logging.getLogger(__name__)


class Access:
    """One store, as its controllers see it. `speed` 10 makes time pass ten times faster."""

    def __init__(self, store: Store, *, speed: float) -> None:
        self.store = store
        self.index = Index()
        self.speed = speed

    def now(self) -> datetime:
        """The store's clock, in UTC."""
        return self.store.clock().astimezone(UTC)

    def since(self, moment: datetime) -> float:
        """Simulated seconds that have passed since a moment."""
        return (self.now() - moment).total_seconds() * self.speed

    def claim(self, kind: KindKey, owners: KindKey, owner: Object) -> list[Object]:
        """What `owner` controls: orphans that fit are adopted, what no longer fits is released."""
        namespace, uid = owner["metadata"]["namespace"], owner["metadata"]["uid"]
        claimed = []
        for child in self.index.children(kind, owner):
            if matches(owner["spec"]["selector"], child):
                claimed.append(child)
            else:
                kept = [one for one in child["metadata"]["ownerReferences"] if one["uid"] != uid]
                self._set_owners(kind, child, kept)
        present = self.store.get(owners, namespace, owner["metadata"]["name"])
        if present is None or "deletionTimestamp" in present["metadata"]:
            return claimed
        for child in self.index.orphans(kind, namespace):
            going = "deletionTimestamp" in child["metadata"]
            if not going and matches(owner["spec"]["selector"], child):
                own = deployments.controller_reference(owner)
                others = child["metadata"].get("ownerReferences", [])
                claimed.append(self._set_owners(kind, child, [*others, own]))
        return claimed

    def change(self, kind: KindKey, obj: Object, annotations: Object, spec: Object) -> Object:
        """Update an object's annotations and spec, if they change."""
        metadata = {**obj["metadata"], "annotations": annotations}
        changed = {**obj, "metadata": metadata, "spec": spec}
        return obj if changed == obj else self.store.update(kind, changed, manager=MANAGER)

    def write_status(
        self,
        kind: KindKey,
        obj: Object,
        status: Object,
        annotations: Mapping[str, str] | None = None,
        *,
        manager: str = MANAGER,
    ) -> None:
        """Write a status if it changes. A second write in one pass is refused, as the real ones are

        (the object is no longer the one that was read), and decided anew in the next pass.
        """
        present = obj["metadata"].get("annotations", {})
        wanted = {**present, **(annotations or {})}
        if wanted == present and status == obj.get("status", {"conditions": []}):
            return
        changed = {**obj, "status": status}
        if annotations:
            changed["metadata"] = {**obj["metadata"], "annotations": wanted}
        self.store.update(kind, changed, manager=manager, subresource="status")

    def event(self, about: Object, kind: str, reason: str, message: str, source: str) -> None:
        """Write an Event about an object."""
        metadata, now = about["metadata"], stamp(self.now())
        involved = {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")}
        event = {
            "metadata": {
                "generateName": f"{metadata['name']}.",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                **involved,
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": source},
            "reportingComponent": source,
            "reportingInstance": "",
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
        }
        try:
            self.store.create(EVENTS, event, manager=source)
        except ApiError as error:  # a namespace that ends takes none
            _log.debug("event %s: %s", reason, error)

    def _set_owners(self, kind: KindKey, child: Object, owners: list[Object]) -> Object:
        metadata = {**child["metadata"], "ownerReferences": owners}
        if not owners:
            del metadata["ownerReferences"]
        return self.store.update(kind, {**child, "metadata": metadata}, manager=MANAGER)
