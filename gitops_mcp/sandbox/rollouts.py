"""The Deployment controller: the name of a Deployment in, its ReplicaSets and status written.

What to write is decided by the pure functions of `deployments`.
"""

from __future__ import annotations

from collections.abc import Iterable

from gitops_mcp.sandbox import deployments
from gitops_mcp.sandbox.access import MANAGER, Access
from gitops_mcp.sandbox.deployments import Object, condition, size
from gitops_mcp.sandbox.errors import ApiError
from gitops_mcp.sandbox.kinds import DEPLOYMENTS, PODS, REPLICA_SETS


class Rollouts:
    """The controller of all Deployments of one store."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def handle(self, namespace: str, name: str) -> float | None:
        """Bring one object up to date; returns the simulated seconds until only time changes it."""
        deployment = self._access.store.get(DEPLOYMENTS, namespace, name)
        if deployment is None:
            return None
        owned = self._access.claim(REPLICA_SETS, DEPLOYMENTS, deployment)
        if "deletionTimestamp" in deployment["metadata"]:
            self._access.write_status(DEPLOYMENTS, deployment, self._counted(deployment, owned))
            return None
        self._note_pause(deployment)
        if deployment["spec"].get("paused") or deployments.is_scaled(deployment, owned):
            self._sync_size(deployment, owned)
            return None
        if deployment["spec"].get("strategy", {}).get("type") == "Recreate":
            return self._recreate(deployment, owned)
        owned = self._ensure_new(deployment, owned, create=True)
        new, old = _split(deployment, owned)
        if new is not None:
            self._scale(deployment, owned, deployments.roll(deployment, new, old))
        return self._finish(deployment, owned)

    def _recreate(self, deployment: Object, owned: list[Object]) -> float | None:
        owned = self._ensure_new(deployment, owned, create=False)
        _, old = _split(deployment, owned)
        ends = [deployments.Scale(rs["metadata"]["name"], 0) for rs in old if size(rs) > 0]
        if not ends and not any(self._access.index.children(PODS, rs) for rs in old):
            owned = self._ensure_new(deployment, owned, create=True)
            new, _ = _split(deployment, owned)
            if new is not None and size(new) != size(deployment):
                ends = [deployments.Scale(new["metadata"]["name"], size(deployment))]
        self._scale(deployment, owned, ends)
        return self._finish(deployment, owned)

    def _sync_size(self, deployment: Object, owned: list[Object]) -> None:
        owned = self._ensure_new(deployment, owned, create=False)
        new, old = _split(deployment, owned)
        self._scale(deployment, owned, deployments.scale(deployment, new, old))
        if deployment["spec"].get("paused"):
            self._drop_outdated(deployment, owned)
        self._access.write_status(DEPLOYMENTS, deployment, self._counted(deployment, owned))

    def _finish(self, deployment: Object, owned: list[Object]) -> float | None:
        new, old = _split(deployment, owned)
        now = self._access.now()
        status = deployments.rollout_status(deployment, new, old, now, self._access.speed)
        if deployments.complete(deployment, deployment.get("status", {})):
            self._drop_outdated(deployment, owned)
        self._access.write_status(DEPLOYMENTS, deployment, status)
        current = condition(status, "Progressing")
        ended = {"NewReplicaSetAvailable", "ProgressDeadlineExceeded"}
        if current is None or current["reason"] in ended:
            return None
        return deployments.time_left(deployment, current, now, self._access.speed) + 1

    def _counted(self, deployment: Object, owned: list[Object]) -> Object:
        return deployments.status(deployment, *_split(deployment, owned), self._access.now())

    def _note_pause(self, deployment: Object) -> None:
        current = condition(deployment, "Progressing")
        reason = current["reason"] if current else ""
        paused = bool(deployment["spec"].get("paused"))
        if deployments.deadline(deployment) is None or reason == "ProgressDeadlineExceeded":
            return
        if paused == (reason == "DeploymentPaused"):
            return
        status = {"conditions": [], **deployment.get("status", {})}
        word = "paused" if paused else "resumed"
        reason, text = f"Deployment{word.title()}", f"Deployment is {word}"
        deployments.set_condition(
            status, "Progressing", "Unknown", reason, text, self._access.now()
        )
        self._access.write_status(DEPLOYMENTS, deployment, status)

    def _ensure_new(self, deployment: Object, owned: list[Object], *, create: bool) -> list[Object]:
        """The ReplicaSets, the new one made or brought up to date; its revision noted."""
        new, old = _split(deployment, owned)
        number = max(map(deployments.revision, old), default=0) + 1
        status = {"conditions": [], **deployment.get("status", {})}
        told = condition(status, "Progressing") is None
        reason, text = "FoundNewReplicaSet", "Found new replica set"
        if new is not None:
            new = self._update_new(deployment, new, number)
        elif not create:
            return owned
        else:
            body = deployments.replica_set(deployment, owned, number)
            try:
                new = self._access.store.create(REPLICA_SETS, body, manager=MANAGER)
            except ApiError as error:
                self._refused_new(deployment, error)
                raise
            if size(new):
                self._tell_scaled(deployment, new, 0)
            told, reason, text = True, "NewReplicaSetCreated", "Created new replica set"
        if told and deployments.deadline(deployment) is not None:
            text = f'{text} "{new["metadata"]["name"]}"'
            deployments.set_condition(
                status, "Progressing", "True", reason, text, self._access.now()
            )
        annotations = {deployments.REVISION: str(deployments.revision(new))}
        self._access.write_status(DEPLOYMENTS, deployment, status, annotations)
        return [new, *old]

    def _update_new(self, deployment: Object, new: Object, number: int) -> Object:
        present = new["metadata"].get("annotations", {})
        wanted = deployments.replica_set_annotations(deployment, number)
        for kept in (deployments.DESIRED, deployments.MAXIMUM):  # written with a size only
            wanted.pop(kept)
        before = deployments.revision(new)
        if before >= number:
            wanted.pop(deployments.REVISION)
        elif before:
            history = "deployment.kubernetes.io/revision-history"
            wanted[history] = ",".join(filter(None, (present.get(history), str(before))))
        spec = {**new["spec"], "minReadySeconds": deployment["spec"].get("minReadySeconds", 0)}
        if not spec["minReadySeconds"]:
            del spec["minReadySeconds"]
        return self._access.change(REPLICA_SETS, new, {**present, **wanted}, spec)

    def _refused_new(self, deployment: Object, error: ApiError) -> None:
        status = {"conditions": [], **deployment.get("status", {})}
        if error.reason == "AlreadyExists":  # another template with the same hash: hash differently
            status["collisionCount"] = status.get("collisionCount", 0) + 1
        else:
            texts = "False", "ReplicaSetCreateError", f"Failed to create new replica set: {error}"
            deployments.set_condition(status, "Progressing", *texts, self._access.now())
        self._access.write_status(DEPLOYMENTS, deployment, status)

    def _scale(
        self, deployment: Object, owned: list[Object], steps: Iterable[deployments.Scale]
    ) -> None:
        """Resize ReplicaSets. The status of this pass still counts them as they were before."""
        by_name = {rs["metadata"]["name"]: rs for rs in owned}
        for one in steps:
            rs = by_name[one.name]
            annotations = rs["metadata"].get("annotations", {})
            annotations = {**annotations, **deployments.size_annotations(deployment)}
            spec = {**rs["spec"], "replicas": one.replicas}
            resized = self._access.change(REPLICA_SETS, rs, annotations, spec)
            if size(resized) != size(rs):
                self._tell_scaled(deployment, resized, size(rs))

    def _tell_scaled(self, deployment: Object, rs: Object, before: int) -> None:
        direction = "up" if size(rs) > before else "down"
        name = rs["metadata"]["name"]
        text = f"Scaled {direction} replica set {name} from {before} to {size(rs)}"
        self._access.event(deployment, "Normal", "ScalingReplicaSet", text, "deployment-controller")

    def _drop_outdated(self, deployment: Object, owned: list[Object]) -> None:
        _, old = _split(deployment, owned)
        for name in deployments.outdated(deployment, old):
            self._access.store.delete(REPLICA_SETS, deployment["metadata"]["namespace"], name)


def _split(deployment: Object, owned: list[Object]) -> tuple[Object | None, list[Object]]:
    new = deployments.new_replica_set(deployment, owned)
    return new, [rs for rs in owned if rs is not new]
