"""The controllers of the sandbox: Deployment, ReplicaSet, Pod (scheduler and kubelet), Service.

Receives a `Store` and hears of every change in it; writes back what kube-controller-manager,
kube-scheduler and a kubelet would have written. One queue of object keys, handled one by one in the
server's event loop; timers where only time can change something; no polling, no second source of
truth: what is kept here is an index of the store and since when a pod is in its stage.

What to write is decided by pure functions: `deployments`, `pods`, `endpoints`, and for ReplicaSets
`status_of` and `surplus` here. Garbage collection, namespaces and defaults are the server's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gitops_mcp.sandbox import deployments, endpoints, pods
from gitops_mcp.sandbox.deployments import Object, condition, is_ready, parse, size, stamp
from gitops_mcp.sandbox.index import Index, controller
from gitops_mcp.sandbox.kinds import DEPLOYMENTS, PODS, SERVICES
from gitops_mcp.sandbox.store import ApiError, KindKey, Store, WatchEvent

REPLICA_SETS: KindKey = ("apps", "replicasets")
ENDPOINTS: KindKey = ("", "endpoints")
SLICES: KindKey = ("discovery.k8s.io", "endpointslices")
EVENTS: KindKey = ("", "events")

MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
KUBELET = "kubelet"

BALANCER_DELAY = 0.2
"""Simulated seconds until a Service of type LoadBalancer has its address."""
RETRY = 1.0
"""Simulated seconds before something that the server refused is tried again."""

Key = tuple[KindKey, str, str]
_log = logging.getLogger(__name__)


async def run(store: Store, *, speed: float = 1.0) -> None:
    """Control everything in the store until cancelled; `speed` 10 makes time pass ten times faster.

    Must run in the loop in which the store is written to.
    """
    control = Controllers(store, speed=speed, later=asyncio.get_running_loop().call_later)
    wake = asyncio.Event()
    control.notify = wake.set
    with_changes = store.subscribe(control.observe)
    control.start()
    try:
        while True:
            await wake.wait()
            wake.clear()
            while control.work():
                await asyncio.sleep(0)  # requests are answered between two objects
    finally:
        with_changes()
        control.stop()


class Controllers:
    """The queue, the index and the writes. `work` handles one object; `later` starts a timer."""

    def __init__(
        self,
        store: Store,
        *,
        speed: float,
        later: Callable[[float, Callable[[], None]], Any],
    ) -> None:
        self.notify: Callable[[], None] = lambda: None
        self._store = store
        self._speed = speed
        self._later = later
        self._queue: dict[Key, None] = {}
        self._timers: dict[Key, Any] = {}
        self._index = Index()
        # per pod uid: its stage and since when; and since when it is ready, finer than a second
        self._stages: dict[str, tuple[Hashable, datetime]] = {}
        self._ready: dict[str, datetime] = {}
        # per pod uid its address: each pod of a run gets the next one that was free at its start
        self._addresses: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._taken: set[str] = set()
        self._handlers: Mapping[KindKey, Callable[[str, str], float | None]] = {
            DEPLOYMENTS: self._deployment,
            REPLICA_SETS: self._replica_set,
            PODS: self._pod,
            SERVICES: self._service,
        }

    # --- what to look at

    def start(self) -> None:
        """Index and queue everything that exists."""
        self._taken = {pod["status"].get("podIP", "") for pod in self._store.list(PODS)}
        for kind in (*self._handlers, SLICES):
            for obj in self._store.list(kind):
                self._take_in(kind, obj, None)
                self._add(kind, obj["metadata"]["namespace"], obj["metadata"]["name"])

    def stop(self) -> None:
        """Drop all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def observe(self, event: WatchEvent) -> None:
        """Queue whatever a change in the store is news for."""
        kind, obj = event.kind, event.object
        if kind not in self._handlers and kind != SLICES:
            return
        deleted = event.type == "DELETED"
        self._take_in(kind, None if deleted else obj, obj if deleted else event.old)
        namespace = obj["metadata"]["namespace"]
        self._add(kind, namespace, obj["metadata"]["name"])
        if kind == SLICES:
            self._add_owner(obj, SERVICES)
        if kind == REPLICA_SETS:
            self._add_owner(obj, DEPLOYMENTS)
        if kind == PODS:
            self._observe_pod(event, namespace)

    def _observe_pod(self, event: WatchEvent, namespace: str) -> None:
        pod = event.object
        versions = [pod, *([event.old] if event.old else [])]
        owner = self._add_owner(pod, REPLICA_SETS)
        if owner is not None:
            if event.type == "DELETED":  # Recreate waits for it
                self._add_owner(owner, DEPLOYMENTS)
        elif event.type != "DELETED":
            for rs in self._store.list(REPLICA_SETS, namespace):
                if matches(rs["spec"]["selector"], pod):
                    self._add(REPLICA_SETS, namespace, rs["metadata"]["name"])
        if event.old and (before := controller(event.old)) != controller(pod) and before:
            self._add(REPLICA_SETS, namespace, before["name"])
        for version in versions:
            for service in self._index.services_of(version):
                self._add(SERVICES, namespace, service["metadata"]["name"])

    def _add_owner(self, obj: Object, kind: KindKey) -> Object | None:
        reference = controller(obj)
        if reference is None:
            return None
        namespace = obj["metadata"]["namespace"]
        self._add(kind, namespace, reference["name"])
        return self._store.get(kind, namespace, reference["name"])

    def _add(self, kind: KindKey, namespace: str, name: str) -> None:
        if kind not in self._handlers:
            return
        self._queue[kind, namespace, name] = None
        self.notify()

    def _take_in(self, kind: KindKey, new: Object | None, old: Object | None) -> None:
        self._index.put(kind, new, old)
        if new is None and old is not None:
            for known in (self._stages, self._ready, self._addresses):
                known.pop(old["metadata"]["uid"], None)

    # --- one step

    def work(self) -> bool:
        """Handle the object that has waited longest; False where none waits."""
        if not self._queue:
            return False
        key = next(iter(self._queue))
        del self._queue[key]
        kind, namespace, name = key
        if timer := self._timers.pop(key, None):
            timer.cancel()
        try:
            wait = self._handlers[kind](namespace, name)
        except ApiError as error:
            # its own earlier write in this pass, or a namespace that ends: look again
            _log.debug("%s %s/%s: %s", kind[1], namespace, name, error)
            wait = RETRY
        except Exception:
            _log.exception("%s %s/%s", kind[1], namespace, name)
            wait = RETRY
        if wait is not None and key not in self._queue:
            real = max(wait, 0.0) / self._speed
            self._timers[key] = self._later(real, lambda: self._add(kind, namespace, name))
        return True

    def _now(self) -> datetime:
        return self._store.clock().astimezone(UTC)

    def _since(self, moment: datetime) -> float:
        """Simulated seconds that have passed since a moment."""
        return (self._now() - moment).total_seconds() * self._speed

    # --- Deployments

    def _deployment(self, namespace: str, name: str) -> float | None:
        deployment = self._store.get(DEPLOYMENTS, namespace, name)
        if deployment is None:
            return None
        owned = self._claim(REPLICA_SETS, DEPLOYMENTS, deployment)
        if "deletionTimestamp" in deployment["metadata"]:
            self._write_status(DEPLOYMENTS, deployment, self._counted(deployment, owned))
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
        if not ends and not any(self._index.children(PODS, rs) for rs in old):
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
        self._write_status(DEPLOYMENTS, deployment, self._counted(deployment, owned))

    def _finish(self, deployment: Object, owned: list[Object]) -> float | None:
        new, old = _split(deployment, owned)
        now = self._now()
        status = deployments.rollout_status(deployment, new, old, now, self._speed)
        if deployments.complete(deployment, deployment.get("status", {})):
            self._drop_outdated(deployment, owned)
        self._write_status(DEPLOYMENTS, deployment, status)
        current = condition(status, "Progressing")
        ended = {"NewReplicaSetAvailable", "ProgressDeadlineExceeded"}
        if current is None or current["reason"] in ended:
            return None
        return deployments.time_left(deployment, current, now, self._speed) + 1

    def _counted(self, deployment: Object, owned: list[Object]) -> Object:
        return deployments.status(deployment, *_split(deployment, owned), self._now())

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
        deployments.set_condition(status, "Progressing", "Unknown", reason, text, self._now())
        self._write_status(DEPLOYMENTS, deployment, status)

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
                new = self._store.create(REPLICA_SETS, body, manager=MANAGER)
            except ApiError as error:
                self._refused_new(deployment, error)
                raise
            if size(new):
                self._tell_scaled(deployment, new, 0)
            told, reason, text = True, "NewReplicaSetCreated", "Created new replica set"
        if told and deployments.deadline(deployment) is not None:
            text = f'{text} "{new["metadata"]["name"]}"'
            deployments.set_condition(status, "Progressing", "True", reason, text, self._now())
        annotations = {deployments.REVISION: str(deployments.revision(new))}
        self._write_status(DEPLOYMENTS, deployment, status, annotations)
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
        return self._change(REPLICA_SETS, new, {**present, **wanted}, spec)

    def _refused_new(self, deployment: Object, error: ApiError) -> None:
        status = {"conditions": [], **deployment.get("status", {})}
        if error.reason == "AlreadyExists":  # another template with the same hash: hash differently
            status["collisionCount"] = status.get("collisionCount", 0) + 1
        else:
            texts = "False", "ReplicaSetCreateError", f"Failed to create new replica set: {error}"
            deployments.set_condition(status, "Progressing", *texts, self._now())
        self._write_status(DEPLOYMENTS, deployment, status)

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
            resized = self._change(REPLICA_SETS, rs, annotations, spec)
            if size(resized) != size(rs):
                self._tell_scaled(deployment, resized, size(rs))

    def _tell_scaled(self, deployment: Object, rs: Object, before: int) -> None:
        direction = "up" if size(rs) > before else "down"
        name = rs["metadata"]["name"]
        text = f"Scaled {direction} replica set {name} from {before} to {size(rs)}"
        self._event(deployment, "Normal", "ScalingReplicaSet", text, "deployment-controller")

    def _drop_outdated(self, deployment: Object, owned: list[Object]) -> None:
        _, old = _split(deployment, owned)
        for name in deployments.outdated(deployment, old):
            self._store.delete(REPLICA_SETS, deployment["metadata"]["namespace"], name)

    # --- ReplicaSets

    def _replica_set(self, namespace: str, name: str) -> float | None:
        rs = self._store.get(REPLICA_SETS, namespace, name)
        if rs is None:
            return None
        owned = self._claim(PODS, REPLICA_SETS, rs)
        active = [pod for pod in owned if _is_active(pod)]
        failure = None
        if "deletionTimestamp" not in rs["metadata"]:
            failure = self._resize(rs, active)
        waits = {pod["metadata"]["uid"]: self._until_available(rs, pod) for pod in active}
        available = sum(wait is not None and wait <= 0 for wait in waits.values())
        status = status_of(rs, owned, available, failure, self._now())
        self._write_status(REPLICA_SETS, rs, status)
        if failure:
            return RETRY
        return min((wait for wait in waits.values() if wait is not None and wait > 0), default=None)

    def _resize(self, rs: Object, active: Sequence[Object]) -> tuple[str, str] | None:
        """Create or delete pods; (reason, message) of a failure to create."""
        namespace = rs["metadata"]["namespace"]
        for _ in range(size(rs) - len(active)):
            try:
                if pods.simulated(rs["spec"]["template"]) == "create-failure":
                    raise ApiError(403, "Forbidden", "exceeded quota: simulated")
                pod = self._store.create(PODS, pod_of(rs), manager=MANAGER)
            except ApiError as error:
                text = f"Error creating: {error}"
                self._event(rs, "Warning", "FailedCreate", text, "replicaset-controller")
                return "FailedCreate", str(error)
            text = f"Created pod: {pod['metadata']['name']}"
            self._event(rs, "Normal", "SuccessfulCreate", text, "replicaset-controller")
        for pod in surplus(active, len(active) - size(rs)):
            self._store.delete(PODS, namespace, pod["metadata"]["name"])
            text = f"Deleted pod: {pod['metadata']['name']}"
            self._event(rs, "Normal", "SuccessfulDelete", text, "replicaset-controller")
        return None

    def _until_available(self, rs: Object, pod: Object) -> float | None:
        """Simulated seconds until a pod counts as available; None while it is not ready."""
        uid = pod["metadata"]["uid"]
        ready = condition(pod, "Ready")
        if ready is None or ready["status"] != "True":
            self._ready.pop(uid, None)
            return None
        since = parse(ready["lastTransitionTime"])
        if (self._now() - since).total_seconds() < 1:  # just now: seconds are too coarse
            since = self._now()
        return float(rs["spec"].get("minReadySeconds", 0)) - self._since(
            self._ready.setdefault(uid, since)
        )

    # --- Pods

    def _pod(self, namespace: str, name: str) -> float | None:
        pod = self._store.get(PODS, namespace, name)
        if pod is None:
            return None
        uid, stage, now = pod["metadata"]["uid"], pods.stage(pod), self._now()
        known, since = self._stages.get(uid, (None, now))
        if known != stage:
            since = now
        self._stages[uid] = stage, since
        step = pods.step(pod, self._since(since), now, self._address(uid))
        if step.placed:
            spec = {**pod["spec"], "nodeName": pods.NODE}
            text = f"Successfully assigned {namespace}/{name} to {pods.NODE}"
            self._store.update(PODS, {**pod, "spec": spec}, manager=SCHEDULER)
            self._event(pod, "Normal", "Scheduled", text, SCHEDULER)
        elif step.status is not None:
            self._write_status(PODS, pod, step.status, manager=KUBELET)
        if step.event:
            self._event(pod, *step.event, KUBELET)
        if step.gone:
            self._store.delete(PODS, namespace, name, uid=uid, grace=0)
        return step.wait

    def _address(self, uid: str) -> str:
        """A loopback address of the pod's own: nothing here is ever sent to another machine."""
        if uid not in self._addresses:
            free = (one for one in map(loopback, self._numbers) if one not in self._taken)
            self._addresses[uid] = next(free)
        return self._addresses[uid]

    # --- Services

    def _service(self, namespace: str, name: str) -> float | None:
        service = self._store.get(SERVICES, namespace, name)
        if service is None:
            if self._store.get(ENDPOINTS, namespace, name):
                self._store.delete(ENDPOINTS, namespace, name)
            return None
        if service["spec"].get("selector") and "deletionTimestamp" not in service["metadata"]:
            chosen = self._index.pods_of(service)
            self._put(ENDPOINTS, endpoints.endpoints(service, chosen))
            present = next(iter(self._index.children(SLICES, service)), None)
            self._put(SLICES, endpoints.endpoint_slice(service, chosen), present)
        return self._balance(service)

    def _balance(self, service: Object) -> float | None:
        balanced = service["spec"].get("type") == "LoadBalancer"
        given = bool(service.get("status", {}).get("loadBalancer"))
        if balanced == given:
            return None
        created = parse(service["metadata"]["creationTimestamp"])
        if balanced and (left := BALANCER_DELAY - self._since(created)) > 0:
            return left
        ingress = {"ingress": [{"ip": "127.0.0.1", "ipMode": "VIP"}]} if balanced else {}
        status = {**service.get("status", {}), "loadBalancer": ingress}
        self._write_status(SERVICES, service, status)
        return None

    def _put(self, kind: KindKey, wanted: Object, present: Object | None = None) -> None:
        metadata = wanted["metadata"]
        if present is None and "name" in metadata:
            present = self._store.get(kind, metadata["namespace"], metadata["name"])
        if present is None:
            self._store.create(kind, wanted, manager=MANAGER)
            return
        changed = {**present, **wanted, "metadata": {**present["metadata"]}}
        changed["metadata"]["labels"] = metadata["labels"]
        if changed != present:
            self._store.update(kind, changed, manager=MANAGER)

    # --- writes that several controllers make

    def _claim(self, kind: KindKey, owners: KindKey, owner: Object) -> list[Object]:
        """What `owner` controls: orphans that fit are adopted, what no longer fits is released."""
        namespace, uid = owner["metadata"]["namespace"], owner["metadata"]["uid"]
        claimed = []
        for child in self._index.children(kind, owner):
            if matches(owner["spec"]["selector"], child):
                claimed.append(child)
            else:
                kept = [one for one in child["metadata"]["ownerReferences"] if one["uid"] != uid]
                self._set_owners(kind, child, kept)
        present = self._store.get(owners, namespace, owner["metadata"]["name"])
        if present is None or "deletionTimestamp" in present["metadata"]:
            return claimed
        for child in self._index.orphans(kind, namespace):
            going = "deletionTimestamp" in child["metadata"]
            if not going and matches(owner["spec"]["selector"], child):
                own = deployments.controller_reference(owner)
                others = child["metadata"].get("ownerReferences", [])
                claimed.append(self._set_owners(kind, child, [*others, own]))
        return claimed

    def _set_owners(self, kind: KindKey, child: Object, owners: list[Object]) -> Object:
        metadata = {**child["metadata"], "ownerReferences": owners}
        if not owners:
            del metadata["ownerReferences"]
        return self._store.update(kind, {**child, "metadata": metadata}, manager=MANAGER)

    def _change(self, kind: KindKey, obj: Object, annotations: Object, spec: Object) -> Object:
        metadata = {**obj["metadata"], "annotations": annotations}
        changed = {**obj, "metadata": metadata, "spec": spec}
        return obj if changed == obj else self._store.update(kind, changed, manager=MANAGER)

    def _write_status(
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
        self._store.update(kind, changed, manager=manager, subresource="status")

    def _event(self, about: Object, kind: str, reason: str, message: str, source: str) -> None:
        metadata, now = about["metadata"], stamp(self._now())
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
            self._store.create(EVENTS, event, manager=source)
        except ApiError as error:  # a namespace that ends takes none
            _log.debug("event %s: %s", reason, error)


# --- pure: selectors, owners, addresses ------------------------------------------------------


def matches(selector: Object, obj: Object) -> bool:
    """Whether a label selector chooses an object; an empty one chooses all."""
    labels = obj["metadata"].get("labels") or {}
    wanted = (selector.get("matchLabels") or {}).items()
    expressions = selector.get("matchExpressions") or ()
    return wanted <= labels.items() and all(_holds(one, labels) for one in expressions)


def _holds(expression: Object, labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", ())
    return {
        "In": key in labels and labels[key] in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[expression["operator"]]


def loopback(number: int) -> str:
    """The loopback address of a pod, by its number from 1 up; never 127.0.x.x."""
    return f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def _split(deployment: Object, owned: list[Object]) -> tuple[Object | None, list[Object]]:
    new = deployments.new_replica_set(deployment, owned)
    return new, [rs for rs in owned if rs is not new]


# --- pure: ReplicaSets ----------------------------------------------------------------------


def _is_active(pod: Object) -> bool:
    phase = pod.get("status", {}).get("phase")
    return "deletionTimestamp" not in pod["metadata"] and phase not in {"Succeeded", "Failed"}


def pod_of(rs: Object) -> Object:
    """A new pod of a ReplicaSet; the server makes up the rest of its name."""
    template = rs["spec"]["template"]
    given = template.get("metadata", {})
    metadata = {
        "generateName": f"{rs['metadata']['name']}-",
        "namespace": rs["metadata"]["namespace"],
        **{key: given[key] for key in ("labels", "annotations", "finalizers") if key in given},
        "ownerReferences": [deployments.controller_reference(rs)],
    }
    return {"metadata": metadata, "spec": template["spec"]}


def surplus(active: Sequence[Object], number: int) -> list[Object]:
    """The pods to delete first: not placed, not running, not ready, cheap, restarted, young."""

    def worth(pod: Object) -> tuple[Any, ...]:
        phases = {"Pending": 0, "Unknown": 1}
        annotations = pod["metadata"].get("annotations", {})
        cost = annotations.get("controller.kubernetes.io/pod-deletion-cost", "0")
        statuses = pod.get("status", {}).get("containerStatuses", ())
        return (
            bool(pod["spec"].get("nodeName")),
            phases.get(pod.get("status", {}).get("phase", "Pending"), 2),
            is_ready(pod),
            int(cost) if cost.lstrip("-").isdigit() else 0,
            -max((one["restartCount"] for one in statuses), default=0),
        )

    youngest = sorted(active, key=lambda pod: pod["metadata"]["creationTimestamp"], reverse=True)
    return sorted(youngest, key=worth)[: max(number, 0)]


def status_of(
    rs: Object,
    owned: list[Object],
    available: int,
    failure: tuple[str, str] | None,
    now: datetime,
) -> Object:
    """A ReplicaSet's status, counted over the pods that were there before this pass's writes."""
    active = [pod for pod in owned if _is_active(pod)]
    wanted = rs["spec"]["template"].get("metadata", {}).get("labels", {}).items()
    counts = {
        "fullyLabeledReplicas": sum(wanted <= pod["metadata"]["labels"].items() for pod in active),
        "readyReplicas": sum(map(is_ready, active)),
        "availableReplicas": available,
    }
    result: Object = {
        "replicas": len(active),
        **{key: value for key, value in counts.items() if value},
        "terminatingReplicas": sum("deletionTimestamp" in pod["metadata"] for pod in owned),
        "observedGeneration": rs["metadata"]["generation"],
    }
    if failure:
        reason, message = failure
        known = condition(rs, "ReplicaFailure")
        result["conditions"] = [
            known
            or {
                "type": "ReplicaFailure",
                "status": "True",
                "lastTransitionTime": stamp(now),
                "reason": reason,
                "message": message,
            }
        ]
    return result
