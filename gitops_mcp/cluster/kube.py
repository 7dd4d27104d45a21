"""Writing to a Kubernetes API server: plain dictionaries in, what is stored out.

Nothing here decides what to write. Who may import this module is an import contract: the modules
that write to the cluster are a list.
"""

from __future__ import annotations

import orjson

from gitops_mcp.base import objects
from gitops_mcp.base.model import Propagation
from gitops_mcp.base.names import FIELD_MANAGER, JsonObject, ObjectRef
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.cluster.kinds import path_of
from gitops_mcp.cluster.reads import Reader
from gitops_mcp.cluster.transport import Query


class Cluster(Reader):
    """One API server, as one user, who may also write. Every write is made at once, as each read
    is."""

    def apply(
        self,
        body: JsonObject,
        *,
        manager: str = FIELD_MANAGER,
        force: bool = True,
        dry_run: bool = False,
        subresource: str = "",
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> LiveObject:
        """Server-side apply. With ``uid`` an object that has gone is not made anew (Gone); with
        ``resource_version`` a write in between is a Conflict."""
        ref = ObjectRef.of(body)
        query: Query = {"fieldManager": manager, "force": "true" if force else "false"}
        return self._object(
            "PATCH",
            path_of(ref, subresource),
            operation=f"apply {subresource} of" if subresource else "apply",
            ref=ref,
            query=_dry(query, dry_run),
            body=orjson.dumps(_precondition(body, uid, resource_version)),
            content_type="application/apply-patch+yaml",
        )

    def json_patch(
        self,
        ref: ObjectRef,
        ops: list[JsonObject],
        *,
        manager: str = FIELD_MANAGER,
        dry_run: bool = False,
        subresource: str = "",
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> LiveObject:
        """RFC 6902 patch, guarded like ``apply``: operations come after the tests of uid and
        resourceVersion. A test that fails is a Conflict."""
        held = {"uid": uid, "resourceVersion": resource_version}
        tests = [
            {"op": "test", "path": f"/metadata/{key}", "value": value}
            for key, value in held.items()
            if value
        ]
        return self._object(
            "PATCH",
            path_of(ref, subresource),
            operation="patch",
            ref=ref,
            query=_dry({"fieldManager": manager}, dry_run),
            body=[*tests, *ops],
            content_type="application/json-patch+json",
        )

    def merge_patch(
        self,
        ref: ObjectRef,
        body: JsonObject,
        *,
        manager: str = FIELD_MANAGER,
        subresource: str = "",
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> LiveObject:
        """RFC 7386 patch, guarded like ``apply``."""
        guarded = _precondition(body, uid, resource_version) if uid or resource_version else body
        return self._object(
            "PATCH",
            path_of(ref, subresource),
            operation="patch",
            ref=ref,
            query={"fieldManager": manager},
            body=guarded,
            content_type="application/merge-patch+json",
        )

    def delete(
        self,
        ref: ObjectRef,
        *,
        uid: str | None,
        resource_version: str | None = None,
        propagation: Propagation = "Background",
        dry_run: bool = False,
    ) -> LiveObject | None:
        """Deletes that very object: another one of its name (or none at all) is Gone.

        Returns what still stands of it, held by finalizers or a grace period; None: it is gone.
        """
        held = {"uid": uid, "resourceVersion": resource_version}
        body: JsonObject = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {key: value for key, value in held.items() if value},
        }
        if dry_run:
            body["dryRun"] = ["All"]
        answer = self._object("DELETE", path_of(ref), operation="delete", ref=ref, body=body)
        # Some kinds (Service) are answered with the object as it was, though it has gone.
        if not objects.is_deleting(answer):
            return None
        return LiveObject({"apiVersion": ref.api_version, "kind": ref.kind, **answer})

    def create(
        self, body: JsonObject, *, manager: str = FIELD_MANAGER, timeout: float | None = None
    ) -> LiveObject:
        """POST: for what is made once and never applied (Events, reviews, Leases)."""
        metadata = body.get("metadata", {})
        ref = ObjectRef(body["apiVersion"], body["kind"], metadata.get("namespace", ""), "")
        return self._object(
            "POST",
            path_of(ref),
            operation="create",
            ref=ref,
            query={"fieldManager": manager},
            body=body,
            timeout=timeout,
        )

    def update(self, body: JsonObject, *, timeout: float | None = None) -> LiveObject:
        """PUT of a whole object that was read before; its resourceVersion guards it."""
        ref = ObjectRef.of(body)
        return self._object(
            "PUT",
            path_of(ref),
            operation="update",
            ref=ref,
            query={"fieldManager": FIELD_MANAGER},
            body=body,
            timeout=timeout,
        )


def _precondition(body: JsonObject, uid: str | None, resource_version: str | None) -> JsonObject:
    """A copy of the body whose metadata names the object that it was made for."""
    held = {"uid": uid, "resourceVersion": resource_version}
    metadata = {**body.get("metadata", {}), **{k: v for k, v in held.items() if v}}
    return {**body, "metadata": metadata}


def _dry(query: Query, dry_run: bool) -> Query:
    return {**query, "dryRun": "All"} if dry_run else query
