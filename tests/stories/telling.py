"""What a story is told with: a git repository, syncs of it, and people with kubectl beside them.

A ``Story`` has a namespace and a source id of its own, so that stories share a cluster. Its syncs
go through the whole line, each over a new connection that notes every request and can be made to
fail at any of them.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import gitfixtures
import yaml

from gitops_mcp.base import times
from gitops_mcp.base.errors import Gone
from gitops_mcp.base.model import NoteRecord, Outcome, Propagation, Report
from gitops_mcp.base.names import API_VERSION, FINALIZER, KIND, JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.decide import record
from gitops_mcp.decide.pruning import Allowance
from gitops_mcp.report import noterecords
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync import connecting, pipeline, reading, syncoptions

VERSIONS = {KIND: API_VERSION, "Deployment": "apps/v1"}
QUICK = {"timeout": "0s", "preStop": "0s"}
"""``spec.drain`` of a server whose shutdown waits for nobody."""
SIMULATE = "sandbox.mcp.example.com/simulate"
"""The pod annotation that makes pods fail, on both clusters."""


@dataclass(frozen=True)
class Asked:
    """One request of a sync that may write."""

    verb: str
    """apply, patch or delete"""
    kind: str
    name: str
    subresource: str = ""
    manager: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.kind}{'/' if self.subresource else ''}{self.subresource}"


T = TypeVar("T")
Patch = list[JsonObject]
Writes = list[Asked]


class Interrupted(BaseException):
    """The sync's process ends here."""


class Line(Cluster):
    """A sync's connection. ``asked`` are its writing requests; ``before`` and ``after`` are called
    around each of them and may raise."""

    def __init__(
        self, kubeconfig: str, before: Callable[[Asked], None], after: Callable[[Asked], None]
    ) -> None:
        super().__init__(kubeconfig)
        self.is_sandbox = True  # on a plane, too, a story's pods have loopback addresses
        self.asked: Writes = []
        self.recorded = 0
        """How often the source's record was written, which is not among ``asked``."""
        self._before, self._after = before, after

    def apply(self, body: JsonObject, **options: Any) -> LiveObject:
        if options.get("dry_run"):
            return super().apply(body, **options)
        if body["kind"] == "ConfigMap":
            self.recorded += 1
            return super().apply(body, **options)
        manager = options.get("manager", "")
        asked = Asked(
            "apply", body["kind"], body["metadata"]["name"], options.get("subresource", ""), manager
        )
        return self._made(asked, lambda: super(Line, self).apply(body, **options))

    def json_patch(self, ref: ObjectRef, ops: Patch, **options: Any) -> LiveObject:
        asked = Asked("patch", ref.kind, ref.name)
        return self._made(asked, lambda: super(Line, self).json_patch(ref, ops, **options))

    def delete(self, ref: ObjectRef, **options: Any) -> LiveObject | None:
        asked = Asked("delete", ref.kind, ref.name)
        gone: LiveObject | None = self._made(
            asked, lambda: super(Line, self).delete(ref, **options)
        )
        return gone

    def _made(self, asked: Asked, request: Callable[[], T]) -> T:
        self._before(asked)
        self.asked.append(asked)
        answer = request()
        self._after(asked)
        return answer


@dataclass
class Story:
    """One source, one namespace, and what happens to them."""

    kubeconfig: str
    hand: Cluster
    """The connection of everybody but the sync."""
    repository: Path
    namespace: str
    report: Report = field(init=False)
    """Of the last sync."""
    asked: list[Asked] = field(default_factory=list)
    """The writing requests of the last sync, but for the record of the source."""
    recorded: int = 0
    """How often the last sync wrote the source's record."""
    watch_namespace: str | None = None
    """Where the syncs know one namespace only."""
    lease_namespace: str = "default"
    """Where the source's record is."""
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        gitfixtures.worktree(self.repository, {"README.md": "A fleet."})

    # --- git ---

    def write(self, name: str, *, file: str = "", **manifest: Any) -> None:
        """Write a server's manifest, without a commit: spec fields, or ``annotations``/``labels``.
        The default is an http server whose shutdown is quick."""
        metadata = {
            key: manifest.pop(key) for key in ("annotations", "labels") if key in manifest
        } | {"name": name}
        spec = {"image": "example.com/web:1", "transport": "http", "drain": QUICK} | manifest
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata}
        body["spec"] = {key: value for key, value in spec.items() if value is not None}
        text = yaml.safe_dump(body, sort_keys=False)
        gitfixtures.write(self.repository, {file or f"servers/{name}.yaml": text})

    def put(self, name: str, *, message: str = "Change", **manifest: Any) -> str:
        """Write a server's manifest and commit; the commit's id."""
        self.write(name, **manifest)
        return self.commit(message=message)

    def remove(self, *names: str, message: str = "Remove") -> str:
        """Remove servers' manifests and commit."""
        return self.commit({f"servers/{name}.yaml": None for name in names}, message)

    def commit(self, files: gitfixtures.Files | None = None, message: str = "Change") -> str:
        return gitfixtures.commit_all(self.repository, files or {}, message)

    def notes(self) -> list[NoteRecord]:
        """The deployment's records, oldest first."""
        with reading.open_repository(self.options()) as repository:
            return list(repository.notes("default").read())[::-1]

    # --- syncs ---

    def options(self, **changes: Any) -> SourceOptions:
        options = SourceOptions(
            location=str(self.repository), namespace=self.namespace, source_id=self.namespace
        )
        return replace(options, **changes)

    def sync(
        self,
        *,
        before: Callable[[Asked], None] = lambda _: None,
        after: Callable[[Asked], None] = lambda _: None,
        wait: float | None = None,
        allow_prune: int | str | None = None,
        source: Mapping[str, Any] | None = None,
        may_write: Callable[[bool], bool] = lambda _: True,
        **wishes: Any,
    ) -> dict[str, str]:
        """One sync, notes included; its results by server. ``wait``: seconds to wait for Ready;
        ``may_write``: asked before each write."""
        if wait is not None:
            wishes["ready_within"] = timedelta(seconds=wait)
        if allow_prune is not None:
            count = allow_prune if isinstance(allow_prune, int) else None
            wishes["allow_prune"] = Allowance(count, "--allow-prune")
        wishes = {"watch_namespace": self.watch_namespace} | wishes
        options = self.options(**(source or {}))
        line = Line(self.kubeconfig, before, after)
        try:
            with reading.open_repository(options) as repository:
                read = reading.read(options, repository)
                books = connecting.books(
                    line,
                    read.source_id,
                    self.lease_namespace,
                    area=record.area_of(self.watch_namespace),
                    read_only=bool(wishes.get("check")),
                )
                one = pipeline.Pass(
                    read,
                    line,
                    options,
                    syncoptions.SyncOptions(**wishes),
                    warn=self.warnings.append,
                    may_write=may_write,
                    books=books,
                )
                self.report = one.run()
                if not self.report.check:
                    records = noterecords.notes_of(
                        self.report, source=read.source_id, time=times.utc_now()
                    )
                    pipeline.write_notes(
                        read,
                        records,
                        cluster=options.cluster,
                        push=False,
                        warn=self.warnings.append,
                    )
        finally:
            line.close()
            self.asked, self.recorded = line.asked, line.recorded
        return {
            outcome.server.name: outcome.result
            for outcome in self.report.outcomes
            if outcome.server.namespace == self.namespace
        }

    def created(self, name: str = "web", **manifest: Any) -> LiveObject:
        """A server that git holds and the cluster runs, Ready or not; its MCPServer."""
        self.put(name, **manifest)
        assert self.sync()[name] == "changed", self.outcome(name).message
        return self.get(KIND, name)

    def outcome(self, name: str = "web") -> Outcome:
        """How a server ended the last sync."""
        key = ServerKey(self.namespace, name)
        return next(outcome for outcome in self.report.outcomes if outcome.server == key)

    def told(self, name: str = "web") -> dict[str, list[str]]:
        """The fields that the last sync named, by kind of object; only the action of those that
        came, went or were blocked."""
        return {
            change.ref.kind: [one.path for one in change.fields]
            if change.action == "update"
            else [change.action]
            for change in self.outcome(name).changes
        }

    def deeds(self) -> list[str]:
        """What the last sync wrote, in order: ``apply Deployment``, ``apply MCPServer/status`` …"""
        return [str(asked) for asked in self.asked]

    def settled(self) -> bool:
        """Does one more sync find nothing to do?"""
        results = self.sync()
        return set(results.values()) <= {"ok"} and self.deeds() == [] and self.recorded == 0

    # --- the cluster ---

    def ref(self, kind: str, name: str = "web") -> ObjectRef:
        return ObjectRef(VERSIONS.get(kind, "v1"), kind, self.namespace, name)

    def find(self, kind: str, name: str = "web") -> LiveObject | None:
        return self.hand.get(self.ref(kind, name))

    def get(self, kind: str, name: str = "web") -> LiveObject:
        found = self.find(kind, name)
        assert found is not None, f"no {kind} {name}"
        return LiveObject(found)

    def pods(self, name: str = "web") -> list[LiveObject]:
        pods, _ = self.hand.list(
            "v1", "Pod", self.namespace, label_selector=f"app.kubernetes.io/instance={name}"
        )
        return pods

    def objects(self) -> dict[str, LiveObject]:
        """Every object that stands for a server, as ``Kind/name``."""
        found: dict[str, LiveObject] = {}
        for kind in (KIND, "Deployment", "Service"):
            items, _ = self.hand.list(VERSIONS.get(kind, "v1"), kind, self.namespace)
            found |= {f"{kind}/{item['metadata']['name']}": item for item in items}
        found.pop("Service/kubernetes", None)
        return found

    def conditions(self, name: str = "web") -> dict[str, str]:
        """Each condition's reason, by type; of a False one after ``!``, of an Unknown one ``?``."""
        marks = {"True": "", "False": "!", "Unknown": "?"}
        status = self.get(KIND, name).get("status") or {}
        return {c["type"]: marks[c["status"]] + c["reason"] for c in status.get("conditions", ())}

    def status(self, name: str = "web") -> JsonObject:
        status: JsonObject = self.get(KIND, name)["status"]
        return status

    def patch(
        self,
        kind: str,
        body: JsonObject,
        name: str = "web",
        *,
        manager: str = "kubectl-edit",
        subresource: str = "",
    ) -> JsonObject:
        """A merge patch of somebody's."""
        return self.hand.merge_patch(
            self.ref(kind, name), body, manager=manager, subresource=subresource
        )

    def apply(
        self, kind: str, body: JsonObject, name: str = "web", *, manager: str = "controller"
    ) -> LiveObject:
        """A forced server-side apply of somebody's."""
        ref = self.ref(kind, name)
        body = copy.deepcopy(body)
        body["metadata"] = {"name": name, "namespace": self.namespace} | body.get("metadata", {})
        return self.hand.apply(
            {"apiVersion": ref.api_version, "kind": kind} | body, manager=manager
        )

    def scale(self, kind: str, replicas: int, name: str = "web") -> None:
        """As kubectl scale does, or a horizontal autoscaler."""
        self.patch(
            kind, {"spec": {"replicas": replicas}}, name, manager="kubectl", subresource="scale"
        )

    def delete(
        self, kind: str, name: str = "web", *, propagation: Propagation = "Background"
    ) -> None:
        self.hand.delete(self.ref(kind, name), uid=None, propagation=propagation)

    def until(self, holds: Callable[[], object], what: str = "that", within: float = 20.0) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + within
        while not holds():
            assert time.monotonic() < deadline, f"waited for {what} in vain"
            time.sleep(0.02)

    def end(self) -> None:
        """Leave no server behind that a later story's sync would come across."""
        for name, body in self.objects().items():
            ref = ObjectRef.of(body)
            with contextlib.suppress(Gone):  # with its owner, a moment ago
                if name.startswith(KIND) and body["metadata"].get("finalizers"):
                    self.hand.merge_patch(ref, {"metadata": {"finalizers": None}})
                self.hand.delete(ref, uid=None)


def held_by_us(cr: JsonObject) -> bool:
    """Does the MCPServer bear our finalizer?"""
    return FINALIZER in cr["metadata"].get("finalizers", ())
