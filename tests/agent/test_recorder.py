"""Events: which looks are worth one, what they say, and what writing them may cost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from looks import WEB, look

from gitops_mcp.agent.recorder import BURST, MUTED, QUEUE, Recorder
from gitops_mcp.base.errors import (
    Category,
    Configuration,
    Conflict,
    Gone,
    KubeError,
    Permanent,
    Terminating,
    Transient,
)
from gitops_mcp.base.model import Change, Failure, FieldChange, Result
from gitops_mcp.base.names import KIND, JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.reasons import Reason
from gitops_mcp.decide.transitions import Transitions

NOW = datetime(2026, 5, 1, 12, 0, 0, 250_000, UTC)
SHA = "a" * 40


@dataclass
class Server:
    """An API server that keeps Events; ``answers`` are errors for the next requests."""

    events: dict[str, JsonObject] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    answers: list[Exception | None] = field(default_factory=list)
    lost: bool = False
    """The next answer is lost, after the request was carried out."""

    def _answer(self) -> None:
        error = self.answers.pop(0) if self.answers else None
        if error is not None:
            raise error

    def create(self, body: JsonObject) -> JsonObject:
        self.requests.append("create")
        self._answer()
        name = body["metadata"]["name"]
        if name in self.events:
            raise Conflict("exists", code=409)
        self.events[name] = dict(body)
        if self.lost:
            self.lost = False
            raise Transient("no answer")
        return body

    def merge_patch(self, ref: ObjectRef, body: JsonObject) -> JsonObject:
        self.requests.append("patch")
        self._answer()
        if ref.name not in self.events:
            raise Gone("not found", code=404)
        self.events[ref.name] |= body
        return self.events[ref.name]

    def told(self) -> list[tuple[str, str, str, int]]:
        return [(e["type"], e["reason"], e["message"], e["count"]) for e in self.events.values()]

    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.events.values()]


class Rig:
    """A recorder, its API server and its clock."""

    def __init__(self) -> None:
        self.now = NOW
        self.server = Server()
        self.warnings: list[str] = []
        self.dropped = 0
        self.recorder = Recorder(
            self.server,
            instance="agent-1",
            clock=lambda: self.now,
            warn=self.warnings.append,
            dropped=self._drop,
        )
        self.transitions = Transitions(clock=lambda: self.now)
        self.transitions.begin()

    def _drop(self) -> None:
        self.dropped += 1

    def look(
        self,
        *conditions: tuple[str, str, str],
        made: tuple[Change, ...] = (),
        result: Result = "ok",
        message: str = "",
        key: ServerKey = WEB,
        uid: str = "u1",
        commit: str = SHA,
        ended: JsonObject | None = None,
        age: int = 0,
        **rest: Any,
    ) -> None:
        """One look, a second after the last; conditions as (type, status, reason). ``age`` says
        how long ago they turned."""
        self.now += timedelta(seconds=1)
        turned = (self.now - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%SZ")
        status: JsonObject = {
            "conditions": [
                {"type": kind, "status": value, "reason": reason, "lastTransitionTime": turned,
                 "message": f"{reason} it is"}
                for kind, value, reason in conditions
            ]
        }  # fmt: skip
        if commit:
            status["source"] = {"revision": commit}
        if "step" in rest:
            state = {"step": rest.pop("step"), "deadline": "2026-05-01T12:01:00Z"}
            status["shutdown"] = state | rest.pop("state", {})
        worked = look(
            result, *made, key=key, message=message, shutdown=ended, revision=SHA, uid=uid,
            commit=commit if uid else "", status=status if uid else {}, at=self.now, **rest,
        )  # fmt: skip
        self.recorder.heard(self.transitions.to(worked))

    def flush(self, seconds: float = 0, *, last: bool = False) -> list[tuple[str, str, str, int]]:
        self.now += timedelta(seconds=seconds)
        self.recorder.flush(last=last)
        return self.server.told()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def change(action: Any, kind: str = "Deployment", *paths: str, key: ServerKey = WEB) -> Change:
    ref = ObjectRef("any/v1", kind, key.namespace, key.name)
    return Change(action, key, ref, tuple(FieldChange(path, "s3cret", "s3cret") for path in paths))


CREATED = (change("create", KIND), change("create"))
READY = ("Ready", "True", "MCPServerReady")
WAITING = ("Ready", "False", "DeploymentNotReady")


# --- what is told ------------------------------------------------------------------------------


def test_a_new_server_has_two_events_and_they_name_the_object(rig: Rig) -> None:
    rig.look(WAITING, made=CREATED)
    for _ in range(3):
        rig.look(WAITING)
    for _ in range(3):
        rig.look(READY)
    assert rig.flush() == [
        ("Normal", "Applied", f"revision {SHA}: create MCPServer, Deployment", 1),
        ("Normal", "MCPServerReady", "MCPServerReady it is", 1),
    ]
    event = next(iter(rig.server.events.values()))
    assert event["involvedObject"] == {
        "apiVersion": "mcp.example.com/v1alpha1",
        "kind": "MCPServer",
        "namespace": "ai",
        "name": "web",
        "uid": "u1",
    }
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2026-05-01T12:00:01Z"
    assert event["source"] == {"component": "gitops-mcp"}
    assert rig.server.requests == ["create", "create"]


def test_what_stood_before_the_agent_began_is_no_news(rig: Rig) -> None:
    broken = ("Synced", "False", "ManifestInvalid")
    for _ in range(3):
        rig.look(READY, broken, age=3600)
    rig.look(READY, broken, key=ServerKey("ai", "off"), step="Draining", age=3600)
    assert rig.flush(60) == []
    assert rig.server.requests == []


def test_what_turned_while_another_agent_led_is_no_news(rig: Rig) -> None:
    rig.look(WAITING, made=CREATED)
    rig.flush()
    rig.now += timedelta(hours=9)
    rig.transitions.begin()
    rig.look(READY, age=3600)
    assert len(rig.flush()) == 1
    rig.look(WAITING)
    rig.look(READY)
    assert [reason for _, reason, _, _ in rig.flush()] == ["Applied", "MCPServerReady"]


def test_what_turns_at_the_first_look_is_news(rig: Rig) -> None:
    rig.look(("Synced", "False", "ManifestInvalid"), READY)
    assert [(kind, reason) for kind, reason, _, _ in rig.flush()] == [
        ("Warning", "ManifestInvalid"),
        ("Normal", "MCPServerReady"),
    ]


def test_a_healed_drift_names_fields_and_no_values(rig: Rig) -> None:
    rig.look(READY, age=99)
    rig.look(
        READY,
        made=(
            change("update", "Deployment", "/spec/replicas", "/spec/x"),
            change("create", "Service"),
        ),
        result="changed",
        drift=True,
        age=99,
    )
    rig.look(READY, made=(change("delete", "Service"),), drift=True, age=99)
    assert rig.flush() == [
        ("Normal", "DriftHealed", "Deployment: /spec/replicas, /spec/x; Service was missing", 1),
        ("Normal", "DriftHealed", "Service was too much", 1),
    ]
    assert "s3cret" not in repr(rig.server.events)


def test_a_scaled_server_is_followed_and_not_healed(rig: Rig) -> None:
    rig.look(READY, age=99)
    scaled = change("update", "Deployment", "/spec/replicas")
    rig.look(READY, made=(scaled, change("create", "Service")), drift=True, scaled=True, age=99)
    assert rig.flush() == [
        ("Normal", "ScaleFollowed", "Deployment: /spec/replicas", 1),
        ("Normal", "DriftHealed", "Service was missing", 1),
    ]


def test_a_server_that_kubectl_made_names_no_revision(rig: Rig) -> None:
    rig.look(WAITING, made=(change("create"),), commit="")
    assert rig.flush() == [("Normal", "Applied", "create Deployment", 1)]


def test_each_reason_is_told_when_it_turns_and_waiting_never(rig: Rig) -> None:
    rig.look(READY, age=99)
    for deployment in ("RolloutInProgress", "ImagePullFailed", "ImagePullFailed", "CrashLooping"):
        rig.look(("DeploymentReady", "False", deployment), ("Ready", "False", deployment))
    rig.look(("DeploymentReady", "True", "DeploymentReady"), READY)
    rig.look(("Verified", "Unknown", "Unreachable"), READY)
    rig.look(("Synced", "False", "Suspended"), READY)
    assert [(kind, reason) for kind, reason, _, _ in rig.flush()] == [
        ("Warning", "ImagePullFailed"),
        ("Warning", "CrashLooping"),
        ("Warning", "Unreachable"),
        ("Normal", "MCPServerReady"),
        ("Normal", "Suspended"),
    ]


def test_one_mistake_in_a_manifest_is_one_event(rig: Rig) -> None:
    rig.look(READY, age=99)
    for _ in range(2):
        rig.look(
            ("ConfigurationValid", "False", "ConfigurationInvalid"),
            ("Synced", "False", "ManifestInvalid"),
            ("Ready", "False", "ConfigurationInvalid"),
            ("Stalled", "True", "ConfigurationInvalid"),
            result="failed",
            message="ManifestInvalid: ManifestInvalid it is",
        )
    assert rig.flush() == [("Warning", "ManifestInvalid", "ManifestInvalid it is", 1)]


def failure(
    attempts: int,
    category: Category = Category.CONFIGURATION,
    reason: Reason = Reason.APPLY_FAILED,
) -> Failure:
    return Failure(category, reason, "apply deployment/web: no", attempts, NOW)


def test_each_attempt_that_fails_counts(rig: Rig) -> None:
    refused = ("Synced", "False", "ApplyFailed")
    rig.look(READY, age=99)
    for attempt in range(1, 5):
        for _ in range(2):
            rig.look(refused, failure=failure(attempt), result="failed")
    assert rig.flush() == [("Warning", "ApplyFailed", "apply deployment/web: no", 4)]
    rig.look(READY)
    rig.look(refused, failure=failure(1), result="failed")
    assert rig.flush(60)[0][3] == 5


def test_an_error_that_passes_by_itself_is_no_event(rig: Rig) -> None:
    rig.look(READY, age=99)
    for attempt in (1, 2):
        rig.look(READY, failure=failure(attempt, Category.TRANSIENT), age=99)
    assert rig.flush() == []
    rig.look(READY, failure=failure(3, Category.TRANSIENT), age=99)
    rig.look(READY, failure=failure(1, Category.TRANSIENT, Reason.RESOURCES_EXHAUSTED), age=99)
    assert sorted(rig.server.reasons() or [r for _, r, _, _ in rig.flush()]) == [
        "ApplyFailed",
        "ResourcesExhausted",
    ]


def test_a_server_that_is_not_ours_is_told_at_its_owner_s_object(rig: Rig) -> None:
    for _ in range(3):
        rig.look(
            READY,
            result="blocked",
            message="NotOwned: mcpserver/web was made by hand",
            reason=Reason.NOT_OWNED,
            age=9,
        )
    assert rig.flush() == [("Warning", "NotOwned", "mcpserver/web was made by hand", 1)]


def test_a_shutdown_is_told_by_its_steps_also_after_its_object_has_gone(rig: Rig) -> None:
    rig.look(READY, age=99)
    ended = {"endedBy": "Timeout", "activeSessions": 3}
    rig.look(step="Withdrawing")
    rig.look(step="Draining", made=(change("update", "Service"),))
    rig.look(step="Draining")
    rig.look(step="Stopping", state=ended)
    rig.look(step="Deleting", state=ended)
    rig.look(uid="", result="pruned", made=CREATED, ended={**ended, "startedAt": "t"})
    rig.look(uid="", result="pruned", ended={**ended, "startedAt": "t"})
    assert rig.flush() == [
        ("Normal", "Terminating", "shutting down, to be done by 2026-05-01T12:01:00Z", 1),
        ("Normal", "Drained", "the drain ended by Timeout, 3 session(s) left", 1),
        ("Normal", "Stopped", "shut down, ended by Timeout", 1),
    ]
    assert {e["involvedObject"]["uid"] for e in rig.server.events.values()} == {"u1"}


def test_a_recreate_ends_its_shutdown_and_is_applied_again(rig: Rig) -> None:
    rig.look(READY, age=99)
    rig.look(step="Stopping")
    rig.look(WAITING)
    rig.look(READY, made=(change("create"),))
    assert [reason for _, reason, _, _ in rig.flush()] == [
        "Terminating", "Drained", "Stopped", "Applied", "MCPServerReady",
    ]  # fmt: skip


def test_messages_are_one_line_short_and_without_what_looks_like_a_secret(rig: Rig) -> None:
    rig.look(READY, age=99)
    text = "GET https://u:hunter2@git.example.com\nfailed " + "é" * 2000
    rig.look(
        READY, failure=Failure(Category.CONFIGURATION, Reason.APPLY_FAILED, text, 1, NOW), age=99
    )
    ((_, _, message, _),) = rig.flush()
    assert "hunter2" not in message
    assert "\n" not in message
    assert 900 < len(message.encode()) <= 1024


# --- what it costs -----------------------------------------------------------------------------


def flap(rig: Rig, times: int = 1) -> None:
    for _ in range(times):
        rig.look(("Verified", "False", "HandshakeFailed"))
        rig.look(("Verified", "True", "HandshakeSucceeded"))


def test_the_same_again_raises_the_count_and_that_not_too_often(rig: Rig) -> None:
    rig.look(READY, age=99)
    flap(rig)
    assert rig.flush()[0][3] == 1
    for _ in range(10):
        flap(rig)
        rig.flush(1)
    assert rig.server.requests == ["create"]
    assert rig.flush(60)[0][3] == 11
    assert rig.server.requests == ["create", "patch"]
    event = next(iter(rig.server.events.values()))
    assert event["firstTimestamp"] < event["lastTimestamp"]
    flap(rig)
    assert rig.flush(last=True)[0][3] == 12  # at the end nothing is kept back


def test_after_a_while_it_is_an_event_of_its_own(rig: Rig) -> None:
    rig.look(READY, age=99)
    flap(rig)
    rig.flush(700)
    flap(rig)
    assert [count for _, _, _, count in rig.flush()] == [1, 1]


def test_an_event_that_has_expired_is_made_anew_with_its_count(rig: Rig) -> None:
    rig.look(READY, age=99)
    flap(rig)
    rig.flush()
    rig.server.events.clear()
    flap(rig)
    assert rig.flush(60)[0][3] == 2


def test_one_server_cannot_take_more_than_its_budget(rig: Rig) -> None:
    rig.look(READY, age=99)
    for index in range(BURST + 10):
        text = f"no {index}"
        rig.look(failure=Failure(Category.CONFIGURATION, Reason.APPLY_FAILED, text, index + 1, NOW))
        rig.look(failure=None)
    rig.look(WAITING, made=CREATED, key=ServerKey("ai", "other"), uid="u2")
    rig.flush()
    assert len(rig.server.events) == BURST + 1
    assert rig.dropped == 10
    rig.look(failure=Failure(Category.CONFIGURATION, Reason.APPLY_FAILED, "again", 1, NOW))
    rig.flush(300)
    assert len(rig.server.events) == BURST + 2


@pytest.mark.parametrize("told", [False, True], ids=["unnoticed", "told"])
def test_a_clock_that_is_set_back_takes_nothing_out_of_the_budget(rig: Rig, told: bool) -> None:
    rig.look(READY, age=99)
    rig.look(failure=Failure(Category.CONFIGURATION, Reason.APPLY_FAILED, "no", 1, NOW))
    rig.flush()
    rig.now -= timedelta(days=1)
    if told:
        rig.recorder.set_back()
    rig.look(failure=Failure(Category.CONFIGURATION, Reason.APPLY_FAILED, "no, again", 2, NOW))
    rig.flush()
    assert (len(rig.server.events), rig.dropped) == (2, 0)


def test_a_clock_that_is_set_back_silences_nobody(rig: Rig) -> None:
    rig.look(READY, age=99)
    flap(rig)
    rig.flush()
    flap(rig)
    rig.server.answers = [Transient("busy", code=429)]
    rig.look(WAITING, made=CREATED, key=ServerKey("ai", "other"), uid="u2")
    rig.flush()
    rig.now -= timedelta(days=1)
    rig.recorder.set_back()
    rig.flush()
    assert rig.recorder.pending == 0
    assert [count for _, _, _, count in rig.server.told()] == [2, 1]


def test_the_queue_is_bounded_and_warnings_come_first(rig: Rig) -> None:
    for index in range(QUEUE + 5):
        rig.look(WAITING, made=CREATED, key=ServerKey("ai", f"s{index}"), uid=f"u{index}")
    rig.look(READY, age=9999)
    flap(rig)
    assert rig.recorder.pending == QUEUE
    assert rig.dropped == 6
    rig.flush()
    assert rig.server.reasons()[0] == "HandshakeFailed"
    assert len(rig.server.events) == QUEUE


def test_a_busy_api_server_is_left_alone_for_a_while_and_nothing_is_lost(rig: Rig) -> None:
    rig.server.answers = [
        Transient("busy", code=429, retry_after=timedelta(seconds=7)),
        Transient("no answer"),
    ]
    rig.look(WAITING, made=CREATED)
    rig.look(READY)
    rig.flush()
    assert (rig.server.requests, rig.recorder.pending) == (["create"], 2)
    rig.flush(6)
    assert len(rig.server.requests) == 1
    rig.flush(1)
    rig.flush(2)
    assert sorted(rig.server.reasons()) == ["Applied", "MCPServerReady"]
    assert (rig.dropped, rig.warnings) == (0, [])


def test_an_answer_that_was_lost_makes_no_second_event(rig: Rig) -> None:
    rig.server.lost = True
    rig.look(WAITING, made=CREATED)
    rig.flush()
    assert len(rig.flush(5)) == 1
    assert rig.server.requests == ["create", "create"]


REFUSALS = {
    "namespace ends": (Terminating("it is being terminated", code=403), 0),
    "no right": (Permanent("events is forbidden", code=403, reason="Forbidden"), 1),
    "wrong": (Configuration("invalid", code=422, reason="Invalid"), 1),
}


@pytest.mark.parametrize(("error", "warned"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_is_dropped_counted_and_said_once(
    rig: Rig, error: KubeError, warned: int
) -> None:
    rig.server.answers = [error] * 2
    for second in range(2):
        rig.look(WAITING, made=CREATED, key=ServerKey("ai", f"s{second}"), uid=f"u{second}")
        rig.flush(400 * second)
    assert (rig.dropped, len(rig.warnings)) == (2, warned)
    rig.look(WAITING, made=CREATED, key=ServerKey("ai", "s3"), uid="u3")
    rig.flush(400)
    assert rig.server.reasons() == ["Applied"]


@pytest.mark.parametrize("error", [REFUSALS["namespace ends"][0], REFUSALS["no right"][0]])
def test_a_namespace_that_refused_is_not_asked_again_for_a_while(
    rig: Rig, error: KubeError
) -> None:
    rig.server.answers = [error]
    for index in range(5):
        rig.look(WAITING, made=CREATED, key=ServerKey("ai", f"s{index}"), uid=f"u{index}")
    rig.look(WAITING, made=CREATED, key=ServerKey("other", "web"), uid="u9")
    rig.flush()
    assert len(rig.server.requests) == 2
    assert rig.dropped == 5


def test_namespaces_that_refused_and_have_gone_are_not_remembered_for_ever(rig: Rig) -> None:
    rig.server.answers = [Terminating("is being terminated", code=403)] * 5
    for index in range(5):
        key = ServerKey(f"ns{index}", "web")
        rig.look(WAITING, made=CREATED, key=key, uid=f"u{index}")
        rig.flush(MUTED.total_seconds())
    assert list(rig.recorder._muted) == ["ns4"]


@pytest.fixture
def running(rig: Rig) -> Iterator[threading.Event]:
    """The recorder's own thread, on the real clock."""
    rig.recorder._clock = lambda: datetime.now(UTC)
    stop = threading.Event()
    thread = threading.Thread(target=rig.recorder.run, args=(stop,))
    thread.start()
    yield stop
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_its_thread_writes_at_a_slow_pace_and_the_rest_at_the_end(
    rig: Rig, running: threading.Event
) -> None:
    for index in range(100):
        rig.look(WAITING, made=CREATED, key=ServerKey("ai", f"s{index}"), uid=f"u{index}")
    threading.Event().wait(1.1)
    assert 2 <= len(rig.server.events) <= 12
    running.set()
    deadline = datetime.now(UTC) + timedelta(seconds=5)
    while len(rig.server.events) < 100:
        assert datetime.now(UTC) < deadline


@pytest.mark.usefixtures("running")
def test_a_bug_costs_one_event_and_not_the_thread(rig: Rig) -> None:
    rig.server.answers = [RuntimeError("a bug")]
    for index in range(2):
        rig.look(WAITING, made=CREATED, key=ServerKey("ai", f"s{index}"), uid=f"u{index}")
    deadline = datetime.now(UTC) + timedelta(seconds=5)
    while not rig.server.events:
        assert datetime.now(UTC) < deadline
    assert rig.dropped == 1


def test_a_count_that_a_server_cannot_afford_holds_up_no_end(rig: Rig) -> None:
    rig.look(READY, age=99)
    for index in range(BURST):
        text = f"no {index}"
        rig.look(failure=Failure(Category.CONFIGURATION, Reason.APPLY_FAILED, text, index + 1, NOW))
    rig.flush()
    rig.look(failure=Failure(Category.CONFIGURATION, Reason.APPLY_FAILED, "no 0", BURST + 1, NOW))
    assert [rig.recorder._write_next(last=True) for _ in range(2)] == [True, False]
    assert rig.dropped == 1
