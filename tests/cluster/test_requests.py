"""A request for a fresh look: answered only after one, also where a failure waits or a handshake
is still good; and what the commit of a server is, which no other server's commit moves."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from stage import CONTEXT, KEY, RENDERER, WEB, Stage, cr

from gitops_mcp.base.errors import Configuration
from gitops_mcp.base.model import Probe, ProbeResult
from gitops_mcp.base.names import ANNOTATION_RECONCILE, KIND, JsonObject, ObjectRef
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import Loaded, McpServer, Revision
from gitops_mcp.sync.memory import DesiredState

CR = ObjectRef("mcp.example.com/v1alpha1", KIND, "ai", "web")


def ask(stage: Stage, request: str) -> None:
    """Somebody annotates the MCPServer; a minute passes, as between any two looks here."""
    live = stage.server.objects[CR]
    version = str(int(live["metadata"]["resourceVersion"]) + 100)
    annotations = {**(live["metadata"].get("annotations") or {}), ANNOTATION_RECONCILE: request}
    metadata = {**live["metadata"], "annotations": annotations, "resourceVersion": version}
    stage.server.objects[CR] = {**live, "metadata": metadata}
    stage.view.put(LiveObject(stage.server.objects[CR]))
    stage.server._versions = itertools.count(int(version) + 1)
    stage.now += timedelta(seconds=60)


def status(stage: Stage) -> JsonObject:
    found: JsonObject = stage.server.objects[CR]["status"]
    return found


def answered(stage: Stage) -> str | None:
    found: str | None = status(stage).get("lastHandledReconcileAt")
    return found


def test_a_failure_is_tried_again_before_the_answer_and_only_once() -> None:
    stage = Stage()
    stage.stands(cr())

    def refuse(verb: str, ref: ObjectRef) -> None:
        if verb == "apply" and ref.kind == "Deployment":
            raise Configuration("refused", code=422)

    stage.server.refuse = refuse
    stage.engine.work(KEY)
    stage.now += timedelta(seconds=60)
    stage.server.asked.clear()
    stage.engine.work(KEY)
    assert "apply Deployment" not in stage.server.asked
    ask(stage, "first")
    for _ in range(3):
        stage.engine.work(KEY)
    assert stage.server.asked.count("apply Deployment") == 1
    assert answered(stage) == "first"
    conditions = {one["type"]: one["reason"] for one in status(stage)["conditions"]}
    assert conditions["Synced"] == "ApplyFailed"
    stage.server.refuse = lambda *_: None
    ask(stage, "second")
    stage.engine.work(KEY)
    assert answered(stage) == "second"
    assert stage.engine.memory(KEY).failure is None


@pytest.mark.parametrize("where", ["git", "the cluster"])
def test_a_suspended_server_answers_too(where: str) -> None:
    server = replace(WEB, spec={**WEB.spec, "suspend": True}) if where == "git" else WEB
    stage = Stage(git=server)
    body = cr(server=server)
    stage.stands({**body, "spec": {**body["spec"], "suspend": True}})
    stage.engine.work(KEY)
    stage.server.asked.clear()
    ask(stage, "now")
    stage.engine.work(KEY)
    assert answered(stage) == "now"
    assert stage.server.asked == ["apply MCPServer"]


def test_the_request_stays_where_it_is_and_is_no_drift() -> None:
    stage = Stage()
    stage.stands(cr())
    stage.engine.work(KEY)
    for request in ("one", "two"):
        ask(stage, request)
        stage.server.asked.clear()
        stage.engine.work(KEY)
        assert stage.server.asked == ["apply MCPServer"]
        assert answered(stage) == request
        live = stage.server.objects[CR]["metadata"]["annotations"]
        assert live[ANNOTATION_RECONCILE] == request
        stage.engine.work(KEY)
        assert stage.server.asked == ["apply MCPServer"]


def pod() -> LiveObject:
    labels = {
        "app.kubernetes.io/name": "mcp-server",
        "app.kubernetes.io/instance": "web",
        "app.kubernetes.io/managed-by": "gitops-mcp",
    }
    metadata = {"name": "web-1", "namespace": "ai", "labels": labels}
    return LiveObject(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**metadata, "uid": "p1", "resourceVersion": "1"},
            "spec": {},
            "status": {
                "podIP": "10.0.0.1",
                "conditions": [{"type": "ContainersReady", "status": "True"}],
            },
        }
    )


def test_the_answer_waits_for_a_handshake_that_is_new() -> None:
    def handshake(inquiry: Probe, clock: Any) -> ProbeResult:
        asked.append(inquiry.asked)
        uids = frozenset(uid for uid, _ in inquiry.targets)
        now: datetime = clock()
        return ProbeResult(Reason.HANDSHAKE_SUCCEEDED, "ok", now, uids, passed=uids)

    asked: list[str] = []
    stage = Stage(context=replace(CONTEXT, probes=True), ask=handshake)
    stage.stands(cr())
    stage.stands(pod())
    inquiry = stage.engine.work(KEY).inquiry
    assert inquiry is not None
    stage.engine.ask(KEY, inquiry)
    stage.now += timedelta(seconds=2)
    assert stage.engine.work(KEY).inquiry is None
    ask(stage, "now")
    stage.now -= timedelta(seconds=50)  # the last handshake holds for a minute
    inquiry = stage.engine.work(KEY).inquiry
    assert inquiry is not None
    assert answered(stage) is None
    stage.engine.ask(KEY, inquiry)
    stage.now += timedelta(seconds=2)
    assert stage.engine.work(KEY).inquiry is None
    assert answered(stage) == "now"
    assert asked == ["", "now"]


# --- the commit of a server ----------------------------------------------------------------------


def adopt(stage: Stage, revision: str, server: McpServer) -> None:
    context = replace(CONTEXT, revision=Revision(revision))
    stage.engine.aim(DesiredState(Loaded({KEY: server}), RENDERER, context))
    stage.now += timedelta(seconds=60)


def test_a_commit_that_does_not_touch_a_server_leaves_its_revision_and_writes_nothing() -> None:
    stage = Stage()
    stage.stands(cr())
    stage.engine.work(KEY)
    assert status(stage)["source"]["revision"] == "a" * 40
    stage.server.asked.clear()
    for revision in "bcd":
        adopt(stage, revision * 40, WEB)
        stage.engine.work(KEY)
    assert stage.server.asked == []
    changed = replace(WEB, digest="e" * 64, spec={**WEB.spec, "image": "y"})
    adopt(stage, "e" * 40, changed)
    stage.engine.work(KEY)
    assert status(stage)["source"]["revision"] == "e" * 40
    assert stage.server.asked == ["apply MCPServer", "apply Deployment", "apply MCPServer"]
