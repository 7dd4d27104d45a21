"""The source record on an API server in memory."""

from __future__ import annotations

from gitops_mcp.base.errors import Conflict
from gitops_mcp.base.names import JsonObject, ObjectRef
from gitops_mcp.decide.record import ABSENT


class Api:
    """One ConfigMap, with versions as the API server counts them."""

    def __init__(self) -> None:
        self.live: JsonObject | None = None
        self.asked: list[str] = []

    def get(self, _: ObjectRef) -> JsonObject | None:
        self.asked.append("get")
        return self.live

    def apply(
        self, body: JsonObject, *, uid: str | None = None, resource_version: str | None = None
    ) -> JsonObject:
        self.asked.append("apply")
        metadata = self.live["metadata"] if self.live else {"uid": "u", "resourceVersion": ABSENT}
        if resource_version != metadata["resourceVersion"] or uid not in (None, metadata["uid"]):
            raise Conflict("somebody wrote it", code=409)
        version = str(int(metadata["resourceVersion"]) + 1)
        self.live = body | {"metadata": body["metadata"] | {"uid": "u", "resourceVersion": version}}
        return self.live
