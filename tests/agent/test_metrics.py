"""What the agent counts: once each, in series that do not grow with the fleet."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from looks import NOW, change, look
from prometheus_client.parser import text_string_to_metric_families

from gitops_mcp.agent import metrics
from gitops_mcp.agent.metrics import Gauges, Metrics
from gitops_mcp.agent.webhook import Verdict
from gitops_mcp.base.model import Change, ChangeAction, FieldChange, ReconcileResult
from gitops_mcp.base.names import ObjectRef, ServerKey
from gitops_mcp.base.source import Problem
from gitops_mcp.decide import shutdown
from gitops_mcp.decide.transitions import Transitions


def value(counted: Metrics, name: str, **labels: str) -> float | None:
    """A sample, as Prometheus would read it."""
    for family in text_string_to_metric_families(counted.text().decode()):
        for sample in family.samples:
            if sample.name == f"gitops_mcp_{name}" and sample.labels == labels:
                return float(sample.value)
    return None


class Counted(Metrics):
    """Metrics that are fed as the controller feeds them."""

    def __init__(self) -> None:
        super().__init__()
        self.transitions = Transitions(clock=lambda: NOW)
        self.read(Gauges(results=self.transitions.results))

    def look(self, worked: ReconcileResult) -> None:
        self.worked(self.transitions.to(worked))


def after(*looks: ReconcileResult) -> Counted:
    counted = Counted()
    for each in looks:
        counted.look(each)
    return counted


# --- names and bounds -----------------------------------------------------------------------------


def test_every_name_is_ours_or_a_processs_and_every_metric_says_what_it_is() -> None:
    families = list(text_string_to_metric_families(Metrics().text().decode()))
    assert len(families) > 20
    for family in families:
        assert family.name.startswith(("gitops_mcp_", "process_")), family.name
        assert family.documentation.endswith(".")
        assert family.type != "unknown"
        assert not family.name.endswith("_created")


def test_the_series_do_not_grow_with_the_fleet_nor_with_what_strangers_send() -> None:
    counted = Counted()
    for i in range(300):
        key = ServerKey("ai", f"web-{i}")
        odd = Change("update", key, ObjectRef("v1", f"Kind{i}", "ai", "web"))
        counted.look(look("failed", odd, key=key, commit=f"c{i}", revision=f"c{i}"))
        told = {"startedAt": "2026-11-24T11:59:00Z", "endedBy": f"End{i}"}
        counted.look(look("pruned", key=key, uid="", shutdown=told))
        counted.requested(f"verb{i} x", f"Kind{i}", 600 + i)
        counted.polled(f"result{i}", 0.1)
        counted.webhook(f"verdict{i}")
        counted.adopted(f"c{i}")
    text = counted.text().decode()
    assert "web-" not in text
    assert "Kind1" not in text
    assert text.count("\n") < 350
    assert text.count("gitops_mcp_revision_info{") == 1


def test_two_agents_of_one_process_share_nothing() -> None:
    one, other = Metrics(), Metrics()
    one.noted("pushed", 3)
    assert value(one, "notes_pushed_total") == 3
    assert value(other, "notes_pushed_total") == 0


def test_what_counts_from_zero_is_there_before_it_happens() -> None:
    counted = Metrics()
    for kind in ("MCPServer", "Deployment", "Service"):
        assert value(counted, "drift_healed_total", kind=kind) == 0
    assert value(counted, "prunes_total") == 0
    assert value(counted, "git_poll_duration_seconds_count", result="failed") == 0
    assert value(counted, "shutdown_duration_seconds_count", ended_by="Deadline") == 0
    assert value(counted, "webhook_requests_total", verdict="refused") == 0


def test_the_ends_of_a_shutdown_are_those_that_its_states_write() -> None:
    source = shutdown.__loader__.get_source("gitops_mcp.decide.shutdown")  # type: ignore[union-attr]
    assert source is not None
    assert all(f'"{end}"' in source for end in metrics.ENDS)


def test_the_verdicts_are_those_of_the_webhook() -> None:
    assert set(metrics.VERDICTS) == {verdict.name.lower() for verdict in Verdict}


# --- looks ----------------------------------------------------------------------------------------


def test_a_look_is_timed_by_its_result() -> None:
    counted = after(look("ok"), look("failed"), replace(look("failed"), seconds=3.0))
    assert value(counted, "reconcile_duration_seconds_count", result="ok") == 1
    assert value(counted, "reconcile_duration_seconds_count", result="failed") == 2
    assert value(counted, "reconcile_duration_seconds_sum", result="failed") == 3.1


def test_changes_are_counted_by_what_was_done_to_what() -> None:
    made, kept = change("Service", "create"), change("Deployment", "blocked")
    counted = after(look("blocked", made, kept))
    assert value(counted, "changes_total", action="create", kind="Service") == 1
    assert value(counted, "changes_total", action="blocked", kind="Deployment") is None


def test_servers_are_counted_by_their_last_result_until_they_are_gone() -> None:
    other = ServerKey("ai", "search")
    counted = after(look("failed"), look("ok", key=other))
    assert value(counted, "servers_by_result", result="failed") == 1
    counted.look(look("ok"))
    assert value(counted, "servers_by_result", result="failed") == 0
    assert value(counted, "servers_by_result", result="ok") == 2
    counted.look(look("pruned", uid=""))
    counted.look(look("ok", uid="", key=other))
    assert value(counted, "servers_by_result", result="ok") == 0


def test_who_stands_by_says_nothing_of_how_servers_were_when_it_led() -> None:
    counted = after(look("failed"))
    counted.transitions.stand_by()
    assert value(counted, "servers_by_result", result="failed") == 0
    counted.look(look("ok"))
    assert value(counted, "servers_by_result", result="ok") == 1


@pytest.mark.parametrize(
    ("action", "drift", "healed"),
    [
        ("update", True, 1),
        ("create", True, 1),
        ("replace", True, 1),
        ("delete", True, 0),
        ("blocked", True, 0),
        ("update", False, 0),
    ],
)
def test_healed_drift_is_what_was_made_right_that_had_been(
    action: ChangeAction, drift: bool, healed: int
) -> None:
    seen = replace(look("changed", change(action=action)), drift=drift)
    assert value(after(seen), "drift_healed_total", kind="Deployment") == healed


def test_a_scaled_server_that_is_followed_is_no_healed_drift() -> None:
    one = replace(change(), fields=(FieldChange("/spec/replicas", 1, 3),))
    seen = replace(look("changed", one), drift=True, scaled=True)
    assert value(after(seen), "drift_healed_total", kind="Deployment") == 0
    assert value(after(seen), "changes_total", action="update", kind="Deployment") == 1
    unscaled = replace(seen, scaled=False)
    assert value(after(unscaled), "drift_healed_total", kind="Deployment") == 1


def test_a_prune_is_counted_once() -> None:
    assert value(after(look(), look("pruned", uid="")), "prunes_total") == 1


STARTED = {"startedAt": "2026-11-24T11:59:40Z"}
DRAINED = STARTED | {"endedBy": "SessionsClosed"}


def test_a_shutdown_is_timed_once_its_server_is_gone() -> None:
    counted = after(look(), look("ok", shutdown=STARTED), look("ok", shutdown=DRAINED))
    assert value(counted, "shutdown_duration_seconds_count", ended_by="SessionsClosed") == 0
    counted.look(look("pruned", uid="", shutdown=DRAINED, at=NOW + timedelta(seconds=1)))
    assert value(counted, "shutdown_duration_seconds_count", ended_by="SessionsClosed") == 1
    assert value(counted, "shutdown_duration_seconds_sum", ended_by="SessionsClosed") == 21


def test_a_shutdown_that_ends_in_a_new_server_is_timed_once() -> None:
    counted = after(look(), *3 * [look("changed", change(), uid="u2", shutdown=DRAINED)])
    counted.look(look("ok", uid="u2", shutdown=DRAINED))
    assert value(counted, "shutdown_duration_seconds_count", ended_by="SessionsClosed") == 1


def test_a_clock_that_is_behind_makes_no_negative_duration() -> None:
    counted = after(look("pruned", uid="", shutdown=DRAINED, at=NOW - timedelta(minutes=1)))
    assert value(counted, "shutdown_duration_seconds_sum", ended_by="SessionsClosed") == 0


# --- requests, git, notes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "kind", "code", "labels"),
    [
        ("apply", "Deployment", 200, ("patch", "Deployment", "200")),
        ("apply status of", "MCPServer", 409, ("patch", "MCPServer/status", "409")),
        ("patch", "MCPServer", 200, ("patch", "MCPServer", "200")),
        ("watch", "Pod", 0, ("watch", "Pod", "0")),
        ("update", "Lease", 200, ("update", "Lease", "200")),
        ("ask for the version", "", 200, ("other", "other", "200")),
    ],
)
def test_requests_are_counted_by_verb_kind_and_code(
    operation: str, kind: str, code: int, labels: tuple[str, str, str]
) -> None:
    counted = Metrics()
    counted.requested(operation, kind, code)
    named = dict(zip(("verb", "kind", "code"), labels, strict=True))
    assert value(counted, "api_requests_total", **named) == 1


def test_polls_are_timed_and_only_an_answer_counts_as_success() -> None:
    counted = Metrics()
    counted.polled("failed", 30.0)
    assert value(counted, "git_last_success_timestamp_seconds") == 0
    counted.polled("unchanged", 0.01)
    since = value(counted, "git_last_success_timestamp_seconds") or 0
    assert abs(since - datetime.now(UTC).timestamp()) < 60
    assert value(counted, "git_poll_duration_seconds_count", result="failed") == 1


def test_the_commit_that_is_enforced_and_its_mistakes_replace_the_last_ones() -> None:
    counted = Metrics()
    counted.adopted("c1", [Problem("a.yaml", 1, 1, None, "", "wrong")])
    assert value(counted, "source_problems", severity="error") == 1
    counted.adopted("c2")
    assert value(counted, "revision_info", revision="c1") is None
    assert value(counted, "revision_info", revision="c2") == 1
    assert value(counted, "source_problems", severity="error") == 0


def test_notes_events_and_webhooks_are_counted() -> None:
    counted = Metrics()
    counted.noted("pushed", 5)
    counted.noted("failed")
    counted.noted("dropped", 2)
    counted.noted("what we do not know of")  # to count is never a reason to stop
    counted.event_dropped()
    counted.webhook(Verdict.TOO_LARGE.name)
    assert value(counted, "notes_pushed_total") == 5
    assert value(counted, "notes_push_failures_total") == 1
    assert value(counted, "notes_dropped_total") == 2
    assert value(counted, "events_dropped_total") == 1
    assert value(counted, "webhook_requests_total", verdict="too_large") == 1


# --- how things stand -----------------------------------------------------------------------------


def test_how_things_stand_is_asked_at_each_scrape() -> None:
    counted, depths = Metrics(), iter([3, 0])
    counted.read(
        Gauges(
            queue_depth=lambda: next(depths),
            queue_oldest=lambda: 1.5,
            view_age=lambda: 0.25,
            phases=lambda: {"Ready": 7, "Failed": 1},
            leads=lambda: {"default": True, "cluster": False},
        )
    )
    assert [value(counted, "queue_depth") for _ in range(2)] == [3, 0]
    depths = iter([0] * 9)
    assert value(counted, "queue_oldest_age_seconds") == 1.5
    assert value(counted, "view_age_seconds") == 0.25
    assert value(counted, "servers", phase="Ready") == 7
    assert value(counted, "servers", phase="Terminating") == 0
    assert value(counted, "leader", source="default") == 1
    assert value(counted, "leader", source="cluster") == 0


def test_a_view_that_was_never_filled_is_infinitely_old() -> None:
    assert value(Metrics(), "view_age_seconds") == float("inf")
