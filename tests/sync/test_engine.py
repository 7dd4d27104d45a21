"""The engine on a small API server in memory: one that can refuse, lose and change."""

from __future__ import annotations

import base64
import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from stage import (
    CONTEXT,
    DELETED,
    KEY,
    NAMESPACE,
    NOW,
    RENDERER,
    WEB,
    Stage,
    _merged,
    children,
    cr,
    terminating,
)

from gitops_mcp.base.errors import Configuration, Permanent, PolicyRefused, Transient
from gitops_mcp.base.model import Probe, ProbeResult, SecretHeader
from gitops_mcp.base.names import (
    ANNOTATION_PRUNE,
    FINALIZER,
    KIND,
    LABEL_MANAGED_BY,
    LABEL_SOURCE,
    JsonObject,
    ObjectRef,
    ServerKey,
)
from gitops_mcp.base.objects import DesiredObject, LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.resources import folder
from gitops_mcp.base.source import Loaded
from gitops_mcp.decide import inquiries, writing
from gitops_mcp.source.rendering import Renderer
from gitops_mcp.sync import hooks, namespaces
from gitops_mcp.sync.engine import HOOKS_MARGIN
from gitops_mcp.sync.memory import DesiredState
from gitops_mcp.sync.namespaces import NAMESPACE_HOLDS


def test_a_namespace_that_begins_to_go_is_asked_about_once() -> None:
    stage = Stage()
    stage.stands(cr())
    terminating(stage.server)
    decision = stage.engine.work(KEY)
    assert decision.result == "skipped"
    assert stage.server.asked == ["apply Deployment", "get Namespace"]
    assert stage.engine.outcome(KEY).result == "skipped"


def test_a_namespace_that_may_not_be_made_is_tried_once_and_the_cause_is_told() -> None:
    stage = Stage(context=replace(CONTEXT, create_namespace=True))
    del stage.server.objects[NAMESPACE]

    def refuse(verb: str, _: ObjectRef) -> None:
        if verb == "apply":
            raise Permanent("apply namespace/ai: forbidden")

    stage.server.refuse = refuse
    stage.engine.work(KEY)
    assert stage.server.asked == ["get Namespace", "apply Namespace"]
    outcome = stage.engine.outcome(KEY)
    assert (outcome.result, outcome.message) == ("failed", "apply namespace/ai: forbidden")


def test_an_active_namespace_is_not_asked_about_for_each_server_that_is_made_in_it() -> None:
    stage = Stage()
    for later in (0, 30, 59):
        stage.now = NOW + timedelta(seconds=later)
        stage.engine.facts(KEY)
    assert stage.server.asked == ["get Namespace"]
    stage.now = NOW + timedelta(seconds=60)
    stage.engine.facts(KEY)
    assert stage.server.asked == ["get Namespace"] * 2


def test_the_end_of_a_namespace_is_seen_in_seconds_where_a_server_in_it_is_deleted() -> None:
    stage = Stage(git=None)
    stage.stands(cr(**DELETED))
    assert stage.engine.facts(KEY).namespace == "Active"
    terminating(stage.server)
    stage.now = NOW + NAMESPACE_HOLDS
    assert stage.engine.facts(KEY).namespace == "Terminating"


def test_a_namespace_that_has_gone_is_asked_about_when_a_create_misses_it_and_made_anew() -> None:
    stage = Stage(context=replace(CONTEXT, create_namespace=True))
    stage.engine.facts(KEY)
    del stage.server.objects[NAMESPACE]

    def refuse(verb: str, ref: ObjectRef) -> None:
        if verb == "apply" and ref != NAMESPACE and NAMESPACE not in stage.server.objects:
            raise Transient('namespaces "ai" not found', code=404)

    stage.server.refuse = refuse
    stage.engine.work(KEY)
    assert stage.server.asked[:3] == ["get Namespace", "apply MCPServer", "get Namespace"]
    failure = stage.engine.memory(KEY).failure
    assert failure is not None
    stage.now = failure.retry_at
    stage.engine.work(KEY)
    assert NAMESPACE in stage.server.objects
    assert ObjectRef.of(cr()) in stage.server.objects


def test_a_check_asks_no_hook_and_waits_for_none() -> None:
    stage = Stage(git=None, check=True, cleanup=[hooks.Hook("dns", "http://127.0.0.1:1/")])
    stage.stands(cr(**DELETED))
    terminating(stage.server)
    decision = stage.engine.work(KEY)
    assert decision.inquiry is None


def test_a_deletion_does_not_wait_longer_for_its_hooks_than_they_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All threads may be busy with the hooks of others, or one may hang for good."""
    stage = Stage(git=None, cleanup=[hooks.Hook("dns", "http://127.0.0.1:1/")])
    stage.stands(cr(**DELETED | {"deletionTimestamp": NOW.strftime("%Y-%m-%dT%H:%M:%SZ")}))
    until = stage.now + timedelta(minutes=5)
    while (decision := stage.engine.work(KEY)).inquiry is None:
        assert decision.look_again is not None, decision
        stage.now = decision.look_again
        assert stage.now < until
    began = stage.now
    limits: list[timedelta] = []

    def run(*_: object, limit: timedelta) -> str:
        limits.append(limit)
        return "1 of 1 hooks done"

    monkeypatch.setattr(hooks, "run", run)
    stage.now = began + timedelta(seconds=50)
    decision = stage.engine.work(KEY)
    assert decision.inquiry is not None
    late = decision.look_again
    assert late == began + inquiries.CLEANUP_LIMIT + HOOKS_MARGIN
    stage.now = late
    decision = stage.engine.work(KEY)
    assert decision.inquiry is None
    assert stage.engine.memory(KEY).cleanup == "0 of 1 hooks done: not in time"
    assert limits == []


def test_hooks_that_waited_for_their_turn_have_what_is_left_of_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(git=None, cleanup=[hooks.Hook("dns", "http://127.0.0.1:1/")])
    stage.stands(cr(**DELETED | {"deletionTimestamp": NOW.strftime("%Y-%m-%dT%H:%M:%SZ")}))
    while (decision := stage.engine.work(KEY)).inquiry is None:
        assert decision.look_again is not None, decision
        stage.now = decision.look_again
    limits: list[timedelta] = []

    def run(*_: object, limit: timedelta) -> str:
        limits.append(limit)
        return "1 of 1 hooks done"

    monkeypatch.setattr(hooks, "run", run)
    stage.now += timedelta(seconds=50)
    stage.engine.ask(KEY, decision.inquiry)
    assert limits == [timedelta(seconds=10)]


@pytest.mark.parametrize(
    "metadata",
    [
        {**DELETED, "finalizers": [FINALIZER, "orphan"]},
        {"annotations": {ANNOTATION_PRUNE: "disabled"}},
    ],
    ids=["released", "disowned"],
)
def test_a_check_foresees_the_end_of_our_hold_on_a_server(metadata: JsonObject) -> None:
    stage = Stage(git=None, check=True)
    stage.stands(cr(**metadata))
    stage.engine.work(KEY)
    outcome = stage.engine.outcome(KEY)
    assert outcome.result in ("pruned", "changed"), outcome.message
    assert not any(asked.startswith(("apply", "patch")) for asked in stage.server.asked)


def conditions(stage: Stage) -> dict[str, str]:
    status = stage.server.objects[ObjectRef.of(cr())]["status"]
    return {one["type"]: f"{one['status']} {one['reason']}" for one in status["conditions"]}


def test_children_that_a_former_server_left_make_no_new_one_ready() -> None:
    stage = Stage()
    for body in children(stage.stands(cr()), uid="former"):
        stage.stands(body)
    decision = stage.engine.work(KEY)
    assert decision.ready is False
    assert decision.waiting == "deletion of deployment/web, service/web"
    told = conditions(stage)
    assert told["Ready"] == "False DeploymentNotFound"
    assert told["Synced"] == "False RolloutInProgress"


def test_the_same_kind_of_another_group_is_a_stranger() -> None:
    stage = Stage()
    owner = {"apiVersion": "other.example.org/v1", "uid": "theirs"}
    for body in children(stage.stands(cr()), **owner):
        stage.stands(body)
    stage.engine.work(KEY)
    outcome = stage.engine.outcome(KEY)
    assert outcome.result == "blocked"
    assert "deployment/web is controlled by mcpserver/web" in outcome.message


@pytest.mark.parametrize("timeout", ["999999999h", "99999999999999999999s", "9" * 400 + "h"])
def test_a_time_beyond_all_bounds_does_not_keep_a_server_from_its_shutdown(timeout: str) -> None:
    stage = Stage(git=None)
    body = cr(labels={}, managedFields=[], **DELETED)
    stage.stands({**body, "spec": {**body["spec"], "drain": {"timeout": timeout}}})
    assert stage.engine.work(KEY).waiting.startswith("shutdown")


def test_a_server_that_another_source_takes_in_the_last_moment_is_not_pruned() -> None:
    stage = Stage(git=None)
    body = stage.stands(cr())
    ref = ObjectRef.of(body)

    def taken(verb: str, _: ObjectRef) -> None:
        if verb == "apply":
            theirs = {"labels": {LABEL_SOURCE: "other"}, "resourceVersion": "2"}
            stage.server.objects[ref] = _merged(body, {"metadata": theirs})

    stage.server.refuse = taken
    assert stage.engine.work(KEY).result == "skipped"
    assert "status" not in stage.server.objects[ref]


def test_a_spec_that_cannot_be_rendered_fails_alone() -> None:
    class Broken(Renderer):
        def children(self, cr: JsonObject) -> tuple[DesiredObject, ...]:
            raise Configuration(f"{cr['metadata']['name']}: no such filter")

    stage = Stage(renderer=Broken(folder("templates"), source="default"))
    stage.stands(cr())
    stage.engine.work(KEY)
    outcome = stage.engine.outcome(KEY)
    assert (outcome.result, outcome.message) == ("failed", "ApplyFailed: web: no such filter")
    assert conditions(stage)["Ready"] == "False ConfigurationInvalid"


def test_a_lost_answer_is_no_failure_once_its_effect_is_seen() -> None:
    stage = Stage()
    stage.stands(cr())
    failing = True

    def refuse(_: str, ref: ObjectRef) -> None:
        if failing and ref.kind == "Service":
            raise Transient("no answer in time")

    stage.server.refuse = refuse
    stage.engine.work(KEY)
    assert stage.engine.outcome(KEY).result == "failed"
    failing = False
    stage.now += timedelta(seconds=2)
    stage.engine.work(KEY)
    assert stage.engine.outcome(KEY).result == "changed"


def test_a_status_that_could_not_be_written_leaves_no_failure_behind() -> None:
    stage = Stage()
    stage.stands(cr())
    failing = True

    def refuse(_: str, ref: ObjectRef) -> None:
        if failing and ref.kind == KIND:
            raise Transient("apply status of mcpserver/web: HTTP 503")

    stage.server.refuse = refuse
    stage.engine.work(KEY)
    assert stage.engine.outcome(KEY).result == "failed"
    failing = False
    stage.now += timedelta(seconds=2)
    stage.engine.work(KEY)
    stage.now += timedelta(seconds=2)
    stage.engine.work(KEY)
    assert stage.engine.outcome(KEY).result == "changed"
    status = stage.server.objects[ObjectRef.of(cr())]["status"]
    synced = {c["type"]: c["status"] for c in status["conditions"]}["Synced"]
    assert synced == "True"


def test_a_child_that_lost_the_label_it_is_found_by_is_updated_and_not_said_to_be_new() -> None:
    stage = Stage()
    stage.stands(cr())
    stage.engine.work(KEY)
    stage.engine.told(KEY)
    ref = ObjectRef("apps/v1", "Deployment", "ai", "web")
    live = stage.server.objects[ref]
    labels = {k: v for k, v in live["metadata"]["labels"].items() if k != LABEL_MANAGED_BY}
    metadata = live["metadata"] | {"labels": labels, "resourceVersion": "100"}
    stage.server.objects[ref] = live | {"metadata": metadata}
    stage.server._versions = itertools.count(101)
    # What the watch says, whose selector it does not match any more.
    stage.view.drop(LiveObject(live | {"metadata": live["metadata"] | {"resourceVersion": "100"}}))
    stage.engine.work(KEY)
    (change,) = stage.engine.outcome(KEY).changes
    told = change.action, change.ref, [field.path for field in change.fields]
    assert told == ("update", ref, ["/metadata/labels/app.kubernetes.io~1managed-by"])


# --- what an engine that lives for months remembers -----------------------------------------------


def test_namespaces_that_come_and_go_are_not_remembered_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(namespaces, "NAMESPACES", 3)
    stage = Stage()
    for index in range(10):
        stage.engine.facts(ServerKey(f"ns{index}", "web"))
    assert list(stage.engine._namespaces._phases) == ["ns7", "ns8", "ns9"]
    assert not stage.engine._namespaces._locks


def test_what_servers_were_refused_is_forgotten_with_the_last_of_them() -> None:
    stage = Stage()
    stage.stands(cr())

    def refuse(_: str, ref: ObjectRef) -> None:
        if ref.kind == "Deployment":
            raise Permanent("apply deployment: forbidden", code=403)

    stage.server.refuse = refuse
    stage.engine.work(KEY)
    assert stage.engine._failures._failing
    assert stage.engine._failures._refusals
    stage.engine.forget(KEY)
    assert not stage.engine._failures._failing
    assert not stage.engine._failures._refusals


def test_a_right_that_one_server_has_now_is_tried_for_the_others_at_once() -> None:
    woken: list[ServerKey] = []
    other = ServerKey("ai", "other")
    stage = Stage(wake=woken.append)
    stage.engine.aim(
        DesiredState(
            Loaded({key: replace(WEB, key=key) for key in (KEY, other)}), RENDERER, CONTEXT
        )
    )
    forbidden = True

    def refuse(verb: str, ref: ObjectRef) -> None:
        if forbidden and verb == "apply" and ref.kind == "Deployment":
            raise Permanent("apply deployment: forbidden", code=403)

    stage.server.refuse = refuse
    for key in (KEY, other):
        stage.engine.work(key)
        assert stage.engine.outcome(key).result == "failed"
    forbidden = False
    failure = stage.engine.memory(KEY).failure
    assert failure is not None
    stage.now = failure.retry_at
    stage.engine.work(KEY)
    assert woken == [other]
    assert stage.engine.memory(other).failure is None


def test_another_aim_tries_what_somebody_may_have_mended_and_no_other_failure() -> None:
    refused, away, fine = (ServerKey("ai", name) for name in ("refused", "away", "fine"))
    aim = DesiredState(
        Loaded({key: replace(WEB, key=key) for key in (refused, away, fine)}), RENDERER, CONTEXT
    )
    stage = Stage()
    stage.engine.aim(aim)

    def refuse(verb: str, ref: ObjectRef) -> None:
        if verb == "apply" and ref.name == "refused":
            raise Configuration("refused", code=422)
        if verb == "apply" and ref.name == "away":
            raise Transient("no answer in time")

    stage.server.refuse = refuse
    for key in aim.loaded.servers:
        stage.engine.work(key)
    assert stage.engine.aim(aim) == {refused}
    assert stage.engine.aim(aim) == set()


def test_what_failed_is_tried_again_by_a_clock_that_was_set_back() -> None:
    stage = Stage()

    def refuse(verb: str, _: ObjectRef) -> None:
        if verb == "apply":
            raise Transient("no answer in time")

    stage.server.refuse = refuse
    stage.engine.work(KEY)
    memory = stage.engine.memory(KEY)
    assert memory.failure is not None
    memory.probe = ProbeResult(Reason.HANDSHAKE_SUCCEEDED, "", stage.now)
    memory.status_written_at = memory.sessions_at = stage.now
    stage.server.refuse = lambda *_: None
    stage.now -= timedelta(hours=1)
    stage.engine.set_back()
    facts = stage.engine.facts(KEY)
    assert facts.probe is not None
    assert facts.probe.at == facts.status_written_at == stage.now
    stage.engine.work(KEY)
    assert ObjectRef("apps/v1", "Deployment", "ai", "web") in stage.server.objects
    assert stage.engine.memory(KEY).failure is None


def test_what_was_refused_is_tried_at_once_when_its_mcpserver_is_mended_and_not_before() -> None:
    stage = Stage()
    stage.stands(cr())

    def refuse(verb: str, ref: ObjectRef) -> None:
        if (verb, ref.kind) == ("apply", "Deployment"):
            raise Configuration("apply deployment/web: refused", code=400)

    stage.server.refuse = refuse
    stage.engine.work(KEY)
    stage.server.asked.clear()
    stage.engine.work(KEY)
    assert "apply Deployment" not in stage.server.asked
    stage.server.refuse = lambda *_: None
    stage.stands(cr(generation=2, resourceVersion="100"))
    stage.engine.work(KEY)
    assert "apply Deployment" in stage.server.asked


def test_that_a_namespace_goes_is_told_to_all_of_its_servers_once() -> None:
    woken: list[ServerKey] = []
    stage = Stage(wake=woken.append)
    stage.stands(cr())
    others = [ServerKey("ai", "other"), ServerKey("data", "web")]
    for key in others:
        stage.engine.memory(key)
    terminating(stage.server)
    stage.engine.work(KEY)
    stage.engine.work(KEY)
    assert sorted(woken) == sorted([KEY, others[0]])


# --- credentials of a handshake ----------------------------------------------------------------

SECRET = ObjectRef("v1", "Secret", "ai", "web")


def inquiring(stage: Stage, secret: JsonObject | None, key: str = "token") -> list[Probe]:
    """What is asked about a server whose handshake takes a header from a Secret."""
    asked: list[Probe] = []

    def ask(inquiry: Probe, _: Callable[[], datetime]) -> ProbeResult:
        asked.append(inquiry)
        return ProbeResult(Reason.HANDSHAKE_SUCCEEDED, "ok", stage.now, frozenset({"p"}))

    stage.stands(cr())
    if secret is not None:
        stage.server.objects[SECRET] = {"data": secret}
    header = SecretHeader("Authorization", "web", key, "Bearer ")
    uid = cr()["metadata"]["uid"]
    inquiry = Probe("handshake", (("p", "http://127.0.0.7/"),), timedelta(seconds=1), uid=uid)
    stage.engine._ask = ask
    stage.engine.ask(KEY, replace(inquiry, headers_from=(header,), asked="now-1"))
    return asked


def encoded(value: str) -> JsonObject:
    return {"token": base64.b64encode(value.encode()).decode()}


def test_a_header_is_read_anew_for_each_handshake_and_kept_nowhere() -> None:
    stage = Stage()
    (first,) = inquiring(stage, encoded("s3cret\n"))
    assert first.headers == {"Authorization": "Bearer s3cret"}
    (second,) = inquiring(stage, encoded("rotated"))
    assert second.headers == {"Authorization": "Bearer rotated"}
    assert "rotated" not in repr((stage.engine.memory(KEY), second))


@pytest.mark.parametrize(
    ("secret", "key", "error", "words"),
    [
        (None, "token", None, "health.headersFrom: Secret ai/web does not exist"),
        ({}, "token", None, "health.headersFrom: Secret ai/web has no key token"),
        (encoded("a\nEvil: s3cret"), "token", None, "the value of token is not one line of ASCII"),
        (encoded(""), "token", None, "the value of token is not one line of ASCII"),
        ({"token": "%"}, "token", None, "the value of token is not one line of ASCII"),
        (None, "token", Permanent("s3cret", code=403), "install --handshake-secrets"),
        (None, "token", Transient("s3cret"), "cannot be read: Transient error"),
    ],
)
def test_a_header_that_cannot_be_had_is_no_fault_of_the_server(
    secret: JsonObject | None, key: str, error: Exception | None, words: str
) -> None:
    stage = Stage()

    def refuse(_: str, ref: ObjectRef) -> None:
        if error is not None and ref == SECRET:
            raise error

    stage.server.refuse = refuse
    assert inquiring(stage, secret, key) == []
    told = stage.engine.memory(KEY).probe
    assert told is not None
    assert (told.reason, told.asked) == ("NotProbed", "now-1")
    assert told.pods == frozenset("p")
    assert words in told.message
    assert "s3cret" not in told.message


def test_a_dry_run_that_the_ownership_policy_refuses_is_a_local_comparison() -> None:
    stage = Stage(check=True)
    stage.stands(cr(server=replace(WEB, spec=WEB.spec | {"image": "old"})))

    def refuse(verb: str, ref: ObjectRef) -> None:
        if verb == "dry-run" and ref.kind == KIND:
            raise PolicyRefused("forbidden: ValidatingAdmissionPolicy 'ownership.mcp.example.com'")

    stage.server.refuse = refuse
    stage.engine.work(KEY)
    assert stage.engine.refused_dry_runs
    outcome = stage.engine.outcome(KEY)
    assert outcome.result == "changed"
    assert {change.ref.kind for change in outcome.changes} == {KIND, "Deployment", "Service"}


# --- fights -----------------------------------------------------------------------------------

DEPLOYMENT = ObjectRef("apps/v1", "Deployment", "ai", "web")


def overwrite(stage: Stage, image: str = "other:9") -> bool:
    """Another controller puts its image in, where ours stands; did it have to?"""
    live = stage.server.objects[DEPLOYMENT]
    (container,) = live["spec"]["template"]["spec"]["containers"]
    if container["image"] == image:
        return False
    body = copy.deepcopy(live)
    body["spec"]["template"]["spec"]["containers"][0]["image"] = image
    key = 'k:{"name":"mcp-server"}'
    pod: JsonObject = {"f:spec": {"f:containers": {key: {"f:image": {}}}}}
    theirs = {
        "manager": "kustomize-controller",
        "operation": "Apply",
        "fieldsV1": {"f:spec": {"f:template": pod}},
    }
    mark: JsonObject = {"f:metadata": {"f:labels": {"f:app.kubernetes.io/managed-by": {}}}}
    ours = {"manager": "gitops-mcp", "operation": "Apply", "fieldsV1": mark}
    body["metadata"]["managedFields"] = [ours, theirs]
    body["metadata"]["resourceVersion"] = str(next(stage.server._versions))
    stage.server.objects[DEPLOYMENT] = body
    stage.view.put(LiveObject(body), asked=True)
    return True


def conditions_of(stage: Stage) -> dict[str, JsonObject]:
    status = stage.server.objects[ObjectRef.of(cr())]["status"]
    return {one["type"]: one for one in status["conditions"]}


def fight(stage: Stage, seconds: int) -> list[int]:
    """The seconds at which we applied the Deployment, while another controller undoes it."""
    healed = []
    for second in range(seconds):
        overwrite(stage)
        stage.server.asked.clear()
        stage.engine.work(KEY)
        if "apply Deployment" in stage.server.asked:
            healed.append(second)
        stage.now += timedelta(seconds=1)
    return healed


def fighting() -> Stage:
    stage = Stage()
    stage.stands(cr())
    stage.engine.work(KEY)
    stage.now += timedelta(seconds=60)
    return stage


def test_a_fight_is_bounded_and_says_with_whom() -> None:
    stage = fighting()
    healed = fight(stage, 60)
    assert healed == [0, 1, 3, 7, 15, 31]
    synced = conditions_of(stage)["Synced"]
    assert (synced["status"], synced["reason"]) == ("False", "RolloutInProgress")
    assert "deployment/web: kustomize-controller keeps undoing" in synced["message"]
    assert stage.engine.contested(KEY), "what is applied next heals a drift"
    outcome = stage.engine.outcome(KEY)
    assert outcome.result == "failed"
    assert outcome.message.startswith("Contested: deployment/web: kustomize-controller")
    (change,) = [one for one in outcome.changes if one.ref == DEPLOYMENT and one.reason]
    assert change.reason == "undone by kustomize-controller"
    healed = fight(stage, 3600)
    gaps = [later - earlier for earlier, later in itertools.pairwise(healed)]
    assert max(gaps) == 300
    assert len(healed) < 20


def test_who_is_fought_with_is_told_until_the_object_holds_still() -> None:
    stage = fighting()
    fight(stage, 40)
    stage.now += timedelta(minutes=2)
    decision = stage.engine.work(KEY)
    assert conditions_of(stage)["Synced"]["status"] == "True"
    assert "kustomize-controller keeps undoing" in conditions_of(stage)["Synced"]["message"]
    assert decision.look_again is not None
    assert decision.look_again <= stage.now + writing.STILL
    stage.now += timedelta(hours=3)  # past the least time between two wordings, too
    stage.engine.work(KEY)
    assert "kustomize" not in conditions_of(stage)["Synced"]["message"]
    assert fight(stage, 3) == [0, 1], "it begins anew"


def test_a_new_commit_and_a_request_are_not_held_off_by_a_fight() -> None:
    stage = fighting()
    fight(stage, 40)
    overwrite(stage)
    stage.server.asked.clear()
    stage.engine.work(KEY)
    assert "apply Deployment" not in stage.server.asked
    body = copy.deepcopy(stage.server.objects[ObjectRef.of(cr())])
    body["metadata"]["annotations"]["mcp.example.com/reconcile-requested-at"] = "now"
    body["metadata"]["resourceVersion"] = str(next(stage.server._versions))
    stage.stands(body)
    stage.view.put(LiveObject(body), asked=True)
    stage.engine.work(KEY)
    assert "apply Deployment" in stage.server.asked

    overwrite(stage)
    stage.server.asked.clear()
    changed = replace(WEB, spec=WEB.spec | {"image": "y"}, digest="e" * 64)
    stage.engine.aim(DesiredState(Loaded({KEY: changed}), RENDERER, CONTEXT))
    stage.engine.work(KEY)
    assert stage.server.asked[:2] == ["apply MCPServer", "apply Deployment"]


def test_what_others_put_into_a_contested_server_does_not_reach_its_pods() -> None:
    stage = fighting()
    ref = ObjectRef.of(cr())
    for _ in range(60):
        body = copy.deepcopy(stage.server.objects[ref])
        if body["spec"]["image"] == "x":
            body["spec"]["image"] = "evil"
            body["metadata"]["resourceVersion"] = str(next(stage.server._versions))
            stage.server.objects[ref] = body
            stage.view.put(LiveObject(body), asked=True)
        stage.server.asked.clear()
        stage.engine.work(KEY)
        pod = stage.server.objects[DEPLOYMENT]["spec"]["template"]["spec"]
        assert pod["containers"][0]["image"] == "x"
        stage.now += timedelta(seconds=1)
    assert stage.server.objects[ref]["spec"]["image"] == "evil"
    assert "mcpserver/web: somebody keeps undoing" in conditions_of(stage)["Synced"]["message"]
