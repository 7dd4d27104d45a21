"""What must hold at each step: looked at with every request of ours, against the cluster as it is.

A process may know less than the cluster: then what it says and does must be right for what it
could know. So a claim is held against what its view held, and the view against what really was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from gitops_mcp.base import transports
from gitops_mcp.base.names import (
    FIELD_MANAGER,
    FINALIZER,
    KIND,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    JsonObject,
    ServerKey,
)
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.decide import ownership, shutdown
from gitops_mcp.sandbox.storage import KindKey, WatchEvent
from simulation.cluster import CRS, DEPLOYMENTS, KEYS, NAMESPACES, PODS, SERVICES, Plane, Request
from simulation.sources import SOURCE, Commit, Origin, load

if TYPE_CHECKING:
    from simulation.agents import Agent

Place = tuple[KindKey, str, str]


class Broken(BaseException):
    """A law does not hold. No code under test may catch it."""


class Laws:
    """Watches one run. ``actor`` is who acts on the cluster now; "" is anybody else."""

    def __init__(self, plane: Plane, origin: Origin) -> None:
        self.actor = ""
        self.writes = 0
        """Changes that agents made."""
        self._plane = plane
        self._origin = origin
        self._history: dict[Place, list[JsonObject]] = {}
        self._others: Counter[str] = Counter()
        """By uid, how often somebody else changed what an object should be."""
        self._withdrawn: Counter[str] = Counter()
        self._scaled: Counter[str] = Counter()
        self._cleaned: dict[str, int] = {}
        """By uid of an MCPServer, how many lives there had been when its hooks were called."""
        plane.store.subscribe(self._see)

    def _fail(self, law: str, *about: object) -> None:
        raise Broken(f"{law}: " + " ".join(map(str, about)))

    # --- what becomes of the cluster ---

    def _see(self, event: WatchEvent) -> None:
        if event.kind not in KEYS.values():
            return
        metadata = event.object["metadata"]
        place = event.kind, metadata.get("namespace", ""), metadata["name"]
        if event.type != "DELETED":
            self._history.setdefault(place, []).append(event.object)
        if self.actor:
            self.writes += 1
            self._acted(event)
        elif event.old is None or event.old.get("spec") != event.object.get("spec"):
            self._others[metadata["uid"]] += 1

    def _acted(self, event: WatchEvent) -> None:
        """An agent has changed something: did it keep the order of a shutdown?"""
        new, old = event.object, event.old
        metadata = new["metadata"]
        uid = metadata["uid"]
        if event.kind == SERVICES and old is not None and _withdraws(new) and not _withdraws(old):
            self._withdrawn[uid] += 1
            if self._withdrawn[uid] > 1 + self._others[uid]:
                self._fail("a shutdown step is not repeated", "withdraw", metadata["name"])
        if event.kind == DEPLOYMENTS and old is not None and event.type == "MODIFIED":
            stops = new["spec"].get("replicas", 1) == 0 and old["spec"].get("replicas", 1) > 0
            cr = self._controller(new)
            if stops and cr is not None and shutdown.state_of(LiveObject(cr)):
                self._stopped(new, cr)
        if event.kind == CRS and old is not None:
            released = event.type == "DELETED" or (
                FINALIZER in old["metadata"].get("finalizers", ())
                and FINALIZER not in metadata.get("finalizers", ())
            )
            if released:
                self._released(old)

    def _stopped(self, deployment: JsonObject, cr: JsonObject) -> None:
        uid, name = deployment["metadata"]["uid"], deployment["metadata"]["name"]
        self._scaled[uid] += 1
        if self._scaled[uid] > 1 + self._others[uid]:
            self._fail("a shutdown step is not repeated", "scale to 0", name)
        namespace = cr["metadata"]["namespace"]
        service = self._plane.store.get(SERVICES, namespace, name)
        if (
            service is not None
            and "deletionTimestamp" not in service["metadata"]
            and self._controller(service) is cr
            and not _withdraws(service)
            and not self._others[service["metadata"]["uid"]]
            and not _hidden(service)
        ):
            self._fail("a shutdown step is not skipped", "withdraw", name)
        state = shutdown.state_of(LiveObject(cr)) or {}
        timing = transports.timing(cr["spec"])
        until = datetime.fromisoformat(state["startedAt"]) + timing.drain_timeout
        if self._plane.world.clock() < until and state.get("endedBy", "Timeout") == "Timeout":
            self._fail("a shutdown step is not skipped", "drain", name)

    def _released(self, cr: JsonObject) -> None:
        metadata = cr["metadata"]
        namespace = self._plane.store.get(NAMESPACES, None, metadata["namespace"])
        ending = namespace is None or "deletionTimestamp" in namespace["metadata"]
        if ending or "orphan" in metadata.get("finalizers", ()):
            return
        for kind in (DEPLOYMENTS, SERVICES):
            child = self._plane.store.get(kind, metadata["namespace"], metadata["name"])
            if child is None or "deletionTimestamp" in child["metadata"]:
                continue
            fresh = self._others[child["metadata"]["uid"]]
            if not _hidden(child) and not fresh and _controller_uid(child) == metadata["uid"]:
                self._fail("a shutdown step is not skipped", "delete", child["kind"], cr["kind"])

    def cleans_up(self, uid: str, name: str, lives: int) -> None:
        """The hooks of a server are called: once, but for who has forgotten that it did so."""
        if self._cleaned.get(uid) == lives:
            self._fail("a shutdown step is not repeated", "cleanup hooks", name)
        self._cleaned[uid] = lives
        namespace, _, server = name.partition("/")
        cr = self._plane.store.get(CRS, namespace, server)
        deployment = self._plane.store.get(DEPLOYMENTS, namespace, server)
        if cr is None or cr["metadata"]["uid"] != uid or deployment is None:
            return
        ours = (
            _controller_uid(deployment) == uid and not self._others[deployment["metadata"]["uid"]]
        )
        ending = self._plane.store.get(NAMESPACES, None, namespace)
        if (
            ours
            and deployment["spec"]["replicas"]
            and ending
            and ending["status"]["phase"] == "Active"
        ):
            self._fail("a shutdown step is not skipped", "scale to 0 before the hooks", name)

    def _controller(self, child: JsonObject) -> JsonObject | None:
        metadata = child["metadata"]
        cr = self._plane.store.get(CRS, metadata["namespace"], metadata["name"])
        same = cr is not None and _controller_uid(child) == cr["metadata"]["uid"]
        return cr if same else None

    # --- what is sent ---

    def sent(self, agent: Agent, request: Request) -> None:
        """One write of an agent, as it leaves."""
        ref = request.ref
        assert ref is not None
        if not agent.leads():
            self._fail("one writer a source", request)
        if ref.kind in ("Pod", "Namespace") and request.method == "DELETE":
            self._fail("nothing is deleted that is not ours", request)
        if ref.kind not in KEYS:
            return
        key = ServerKey(ref.namespace, ref.name)
        commits = agent.working.get(key, [])
        truth = self._plane.store.get(KEYS[ref.kind], ref.namespace, ref.name)
        if request.method == "DELETE":
            self._deletes(request, truth, key, commits)
        elif request.status and ref.kind == KIND and isinstance(request.content, dict):
            self._claims(agent, request.content, truth, key)
        elif request.headers["Content-Type"].startswith("application/apply-patch"):
            self._applies(agent, request, truth, key, commits)

    def _deletes(
        self, request: Request, truth: JsonObject | None, key: ServerKey, commits: list[Commit]
    ) -> None:
        assert request.ref is not None
        held = (request.content or {}).get("preconditions") or {}
        custom = request.ref.kind == KIND
        if not held.get("uid") or (custom and not held.get("resourceVersion")):
            self._fail("a delete carries what it was decided on", request)
        if truth is None or truth["metadata"]["uid"] != held["uid"]:
            return
        if not custom:
            self._deletes_child(request, truth)
            return
        if truth["metadata"]["resourceVersion"] != held["resourceVersion"]:
            return
        if ownership.owner_of(LiveObject(truth), SOURCE) is not ownership.Owner.OURS:
            self._fail("nothing is deleted that is not ours", request)
        state = shutdown.state_of(LiveObject(truth))
        held_by_git = all(_holds(commit, key) for commit in commits)
        if held_by_git and not (state and not state.get("recreate")):
            self._fail("nothing is deleted that git holds", request)

    def _deletes_child(self, request: Request, truth: JsonObject) -> None:
        metadata = truth["metadata"]
        cr = self._plane.store.get(CRS, metadata["namespace"], metadata["name"])
        controller = _controller_uid(truth)
        if cr is None:
            if not controller:
                self._fail("nothing is deleted that is not ours", request)
            return
        recreate = bool((shutdown.state_of(LiveObject(cr)) or {}).get("recreate"))
        if controller != cr["metadata"]["uid"] and not (recreate and not controller):
            former = any(
                one["metadata"]["uid"] == controller for one in self._states(CRS, metadata)
            )
            if not former:
                self._fail("nothing is deleted that is not ours", request)
            return
        networked = transports.of_spec(cr["spec"]).networked
        unwanted = truth["kind"] == "Service" and any(
            not transports.of_spec(one["spec"]).networked for one in self._states(CRS, metadata)
        )
        # The view may lag behind a transport that has changed back meanwhile.
        wanted = (networked or truth["kind"] != "Service") and not unwanted
        if wanted and not shutdown.under_way(LiveObject(cr)):
            self._fail("nothing is deleted that git holds", request)

    def _applies(
        self,
        agent: Agent,
        request: Request,
        truth: JsonObject | None,
        key: ServerKey,
        commits: list[Commit],
    ) -> None:
        assert request.ref is not None
        body = request.content
        seen = agent.view.live(key)
        if seen.get(request.ref) is not None and "uid" not in body["metadata"]:
            self._fail("a write carries the uid of what was seen", request)
        if request.query.get("fieldManager") != FIELD_MANAGER:
            return
        protected = all(key in load(commit.files).protected for commit in commits)
        if request.ref.kind == KIND and protected and truth is not None:
            ours = ownership.owner_of(LiveObject(truth), SOURCE) is ownership.Owner.OURS
            if (
                ours
                and body.get("spec")
                and body["metadata"].get("uid") == truth["metadata"]["uid"]
            ):
                self._fail("an invalid manifest changes nothing", request)
        if request.ref.kind == "Deployment" and seen.cr is not None:
            wanted = seen.cr["spec"]["image"]
            if body["spec"]["template"]["spec"]["containers"][0]["image"] != wanted:
                self._fail("children are what the MCPServer says", request)

    # --- what is claimed ---

    def _claims(
        self, agent: Agent, body: JsonObject, truth: JsonObject | None, key: ServerKey
    ) -> None:
        if truth is None or truth["metadata"]["uid"] != body["metadata"].get("uid"):
            return  # it will be refused
        status = body["status"]
        generation = status.get("observedGeneration")
        conditions = {one["type"]: one for one in status.get("conditions", ())}
        if any(one["observedGeneration"] != generation for one in conditions.values()):
            self._fail("a status speaks of one generation", key)
        seen = agent.view.live(key)
        if seen.cr is None:
            return  # it has gone since: the uid decides
        if generation > truth["metadata"]["generation"]:
            self._fail("a status speaks of a generation that was", key, generation)
        behind = {feed.watched.kind: feed.behind for feed in agent.feeds}
        if generation != truth["metadata"]["generation"] and not behind[KIND]:
            self._fail("a status speaks of the generation that is", key, generation)
        self._revision(status.get("source") or {}, key)
        if conditions["Ready"]["status"] != "True" or conditions["Synced"]["status"] != "True":
            return
        spec = next(
            (
                one["spec"]
                for one in reversed(self._states(CRS, truth["metadata"]))
                if one["metadata"]["uid"] == truth["metadata"]["uid"]
                and one["metadata"]["generation"] == generation
            ),
            None,
        )
        if spec is None:
            self._fail("a status speaks of a generation that was", key, generation)
            return
        self._is_ready(seen.children.get("Deployment"), spec, truth, key, behind)
        if conditions["Verified"]["status"] == "True":
            self._is_verified(agent, key, behind)

    def _revision(self, source: JsonObject, key: ServerKey) -> None:
        """The commit that is named brought this very state of the server."""
        if "revision" not in source or "digest" not in source:
            return
        commit = self._origin.commits.get(source["revision"])
        if commit is None:
            self._fail("a status names a commit that was", key, source["revision"])
            return
        server = load(commit.files).servers.get(key)
        if server is None or server.digest[:16] != source["digest"]:
            self._fail("a status names the commit that brought it", key, source["revision"])

    def _is_ready(
        self,
        deployment: JsonObject | None,
        spec: JsonObject,
        cr: JsonObject,
        key: ServerKey,
        behind: Mapping[str, bool],
    ) -> None:
        law = "Ready is claimed of what is ready"
        if deployment is None:
            self._fail(law, key, "no Deployment")
            return
        metadata, counts = deployment["metadata"], deployment.get("status") or {}
        if _controller_uid(deployment) != cr["metadata"]["uid"]:
            self._fail(law, key, "another's Deployment")
        if counts.get("observedGeneration", 0) < metadata["generation"]:
            self._fail(law, key, "a Deployment that nobody has looked at yet")
        if deployment["spec"]["template"]["spec"]["containers"][0]["image"] != spec["image"]:
            self._fail(law, key, "a Deployment of another generation")
        replicas = spec.get("replicas", deployment["spec"].get("replicas", 1))
        for count in ("replicas", "updatedReplicas", "availableReplicas"):
            if counts.get(count, 0) != replicas:
                self._fail(law, key, count, counts.get(count, 0), "of", replicas)
        states = self._states(DEPLOYMENTS, metadata)
        if not any(_same(one, deployment) for one in states):
            self._fail("what is known has been", key, "Deployment")
        live = self._plane.store.get(DEPLOYMENTS, key.namespace, key.name)
        if not behind["Deployment"] and (live is None or not _same(live, deployment)):
            self._fail(law, key, "a Deployment that is another one by now")

    def _is_verified(self, agent: Agent, key: ServerKey, behind: Mapping[str, bool]) -> None:
        engine = agent.controller._engine
        assert engine is not None
        probe = engine.memory(key).probe
        if probe is None or behind["Pod"]:
            return  # what stood there before, or pods that have gone since
        present = {
            pod["metadata"]["uid"]
            for pod in self._plane.store.list(PODS, key.namespace)
            if pod["metadata"].get("labels", {}).get(LABEL_INSTANCE) == key.name
        }
        if probe.pods and not probe.pods & present:
            self._fail("Verified is claimed of a pod that is", key)

    def _states(self, kind: KindKey, metadata: JsonObject) -> list[JsonObject]:
        return self._history.get((kind, metadata.get("namespace", ""), metadata["name"]), [])


def _controller_uid(child: JsonObject) -> str:
    references = child["metadata"].get("ownerReferences") or ()
    return next((str(one["uid"]) for one in references if one.get("controller")), "")


def _holds(commit: Commit, key: ServerKey) -> bool:
    loaded = load(commit.files)
    return key in loaded.servers or key in loaded.protected


def _hidden(child: JsonObject) -> bool:
    """Has somebody taken away the label by which it is found?"""
    return LABEL_MANAGED_BY not in (child["metadata"].get("labels") or {})


def _withdraws(service: JsonObject) -> bool:
    return shutdown.WITHDRAWN in (service["spec"].get("selector") or {})


def _same(one: JsonObject, other: JsonObject) -> bool:
    keys = ("uid", "resourceVersion")
    return all(one["metadata"][key] == other["metadata"][key] for key in keys)
