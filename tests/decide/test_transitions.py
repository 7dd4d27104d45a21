"""What is different from one reconcile to the next: each row is the last one, this one, and it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from looks import NOW, WEB, change, failing, look

from gitops_mcp.base.errors import Category
from gitops_mcp.base.model import Change, Failure, FieldChange, ReconcileResult, Result
from gitops_mcp.base.names import JsonObject, ServerKey
from gitops_mcp.base.reasons import Reason
from gitops_mcp.decide.transitions import Kind, Last, Transition, Transitions, transition

EARLIER = NOW - timedelta(minutes=5)
STARTED = {"startedAt": "2026-11-24T11:59:40Z"}
CRASHING = failing("CrashLooping")
PULLING = failing("ImagePullFailed")


def step(name: str) -> JsonObject:
    return {"shutdown": {"step": name}}


def failed(attempts: int) -> Failure:
    return Failure(Category.CONFIGURATION, Reason.APPLY_FAILED, "no", attempts, NOW)


def between(last: ReconcileResult | None, this: ReconcileResult) -> Transition:
    """The transition between two reconciles, of which the first has no predecessor."""
    known = transition(None, last, EARLIER).next if last is not None else None
    return transition(known, this, EARLIER)


GONE = look(uid="")
CREATED = look("changed", change("MCPServer", "create"))


@pytest.mark.parametrize(
    ("last", "this", "kinds"),
    [
        # results and messages
        (None, look(), ""),
        (look(ready=True), look(ready=True), ""),
        (None, look("failed", message="no"), "TROUBLED"),
        (look("failed", message="no"), look("failed", message="no"), ""),
        (look("failed", message="no"), look("failed", message="never"), "TROUBLED"),
        (
            look("failed", message="no"),
            look("blocked", message="no", reason=Reason.NOT_OWNED),
            "TROUBLED REFUSED",
        ),
        (look("failed", message="no"), look(), "RECOVERED"),
        (look("blocked"), look("skipped", message="wait"), "RECOVERED REMARKED"),
        (look(message="wait"), look("skipped", message="wait"), ""),
        (look(message="wait"), look(message="drain"), "REMARKED"),
        (look(message="wait"), look(), ""),
        # readiness
        (None, look(ready=True), ""),
        (look(ready=False), look(ready=True), "READY"),
        (look(ready=True), look(ready=False), "LAPSED"),
        (look(ready=True), look(ready=None), ""),
        (look(ready=None), look(ready=False), ""),
        # what waiting does not cure
        (look(ready=True), look(ready=False, status=CRASHING), "LAPSED FAILING"),
        (look(ready=False, status=CRASHING), look(ready=False, status=CRASHING), ""),
        (look(ready=False, status=CRASHING), look(ready=False, status=PULLING), "FAILING"),
        (
            look(ready=False, status=CRASHING),
            look(ready=False, status=CRASHING, commit="c2"),
            "FAILING",
        ),
        (look(ready=False, status=CRASHING), look(ready=True, status=CRASHING), "READY"),
        # requests that fail, and what is refused
        (None, look("failed", failure=failed(1)), "TROUBLED ATTEMPTED"),
        (look("failed", failure=failed(1)), look("failed", failure=failed(1)), ""),
        (look("failed", failure=failed(1)), look("failed", failure=failed(2)), "ATTEMPTED"),
        (look("failed", failure=failed(2)), look(), "RECOVERED"),
        (None, look("blocked", message="NotOwned: x", reason=Reason.NOT_OWNED), "TROUBLED REFUSED"),
        (
            look("blocked", message="NotOwned: x", reason=Reason.NOT_OWNED),
            look("blocked", message="NotOwned: y", reason=Reason.NOT_OWNED),
            "TROUBLED",
        ),
        (look(), look(message="Contested: a", reason=Reason.CONTESTED), "REMARKED REFUSED"),
        (
            look(),
            look(uid="", message="Contested: a", reason=Reason.CONTESTED),
            "REMARKED REPLACED GONE",
        ),
        # the steps of a shutdown
        (look(), look(status=step("Draining")), "SHUTTING_DOWN TERMINATING"),
        (None, look(status=step("Draining")), "SHUTTING_DOWN"),
        (look(status=step("Withdrawing")), look(status=step("Draining")), "SHUTTING_DOWN"),
        (look(status=step("Draining")), look(status=step("Stopping")), "SHUTTING_DOWN DRAINED"),
        (look(), look(status=step("Stopping")), "SHUTTING_DOWN TERMINATING DRAINED"),
        (look(status=step("Stopping")), look(), "SHUTTING_DOWN STOPPED"),
        (look(status=step("Stopping")), look(uid="u2"), "STOPPED REPLACED"),
        (look(), look(uid="u2"), "REPLACED"),
        # its end
        (None, GONE, "GONE"),
        (look(), GONE, "REPLACED GONE"),
        (look(), look("skipped", uid=""), "REPLACED"),
        (look(), look("pruned", uid="", shutdown=STARTED), "STOPPED REPLACED ENDED GONE"),
        (None, look("pruned", uid="", shutdown=STARTED), "ENDED GONE"),
        (None, look(shutdown=STARTED), ""),
        (look(), look(uid="u2", shutdown=STARTED), "STOPPED REPLACED ENDED"),
        (
            look("failed", uid="", shutdown=STARTED),
            look("failed", uid="u2", shutdown=STARTED),
            "",
        ),
    ],
)
def test_each_pair_of_reconciles_has_its_kinds(
    last: ReconcileResult | None, this: ReconcileResult, kinds: str
) -> None:
    found = {kind.name for kind in between(last, this).kinds}
    assert found == set(kinds.split())


def test_every_kind_stands_in_the_table() -> None:
    (mark,) = test_each_pair_of_reconciles_has_its_kinds.pytestmark  # type: ignore[attr-defined]
    assert {kind for *_, kinds in mark.args[1] for kind in kinds.split()} == set(Kind.__members__)


REPLICAS = replace(change(), fields=(FieldChange("/spec/replicas", 1, 3),))
MORE = replace(REPLICAS, fields=(*REPLICAS.fields, FieldChange("/spec/x", 1, 2)))


@pytest.mark.parametrize(
    ("drift", "scaled", "followed", "healed"),
    [
        (False, False, [], []),
        (True, False, [], [REPLICAS, MORE]),
        (True, True, [REPLICAS], [MORE]),
    ],
)
def test_a_change_of_what_was_applied_before_is_followed_or_healed(
    drift: bool, scaled: bool, followed: list[Change], healed: list[Change]
) -> None:
    blocked = change("Service", "blocked")
    found = between(None, look("changed", REPLICAS, MORE, blocked, drift=drift, scaled=scaled))
    assert list(found.made) == [REPLICAS, MORE]
    assert (list(found.followed), list(found.healed)) == (followed, healed)


def ready(value: str, reason: str, at: datetime) -> JsonObject:
    time = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    one = {"type": "Ready", "status": value, "reason": reason, "lastTransitionTime": time}
    return {"conditions": [one]}


LONG_AGO, NOT_YET = EARLIER - timedelta(days=1), ready("False", "DeploymentNotReady", EARLIER)


@pytest.mark.parametrize(
    ("last", "this", "turned"),
    [
        (look(status=NOT_YET), look(status=ready("True", "X", LONG_AGO)), ["False"]),
        (look(status=NOT_YET), look(status=NOT_YET), []),
        (look(status=NOT_YET), look(status=ready("False", "X", LONG_AGO)), ["False"]),
        # of a server that was there before us
        (None, look(status=ready("True", "X", LONG_AGO)), []),
        (None, look(status=ready("True", "X", EARLIER)), [""]),
        (None, replace(CREATED, status=ready("True", "X", LONG_AGO)), [""]),
        # of another one of its name
        (look(status=NOT_YET), look(uid="u2", status=ready("False", "X", LONG_AGO)), []),
    ],
)
def test_a_condition_that_turned_is_news_unless_it_is_older_than_we_are(
    last: ReconcileResult | None, this: ReconcileResult, turned: list[str]
) -> None:
    assert [before for before, _ in between(last, this).turned] == turned


# --- what is remembered ---------------------------------------------------------------------------


def test_what_is_gone_is_forgotten() -> None:
    kept = Last("blocked", "NotOwned: x", uid="u1", conditions={}, refused=Reason.NOT_OWNED)
    blocked = look("blocked", message="NotOwned: x", reason=Reason.NOT_OWNED)
    assert between(None, blocked).next == kept
    assert between(look(), GONE).next is None
    assert between(look(), look("pruned", uid="")).next is None


def kinds(transitions: Transitions, *args: Any, **rest: Any) -> set[str]:
    return {kind.name for kind in transitions.to(look(*args, **rest)).kinds}


def test_a_new_leader_reports_no_steps_of_the_last_one_and_still_knows_what_was_wrong() -> None:
    transitions = Transitions(clock=lambda: NOW)
    transitions.to(look("failed", message="no", failure=failed(1), status=step("Draining")))
    transitions.begin()
    of: dict[str, Any] = {"failure": failed(1), "status": step("Stopping")}
    assert kinds(transitions, "failed", message="no", **of) == {"ATTEMPTED", "SHUTTING_DOWN"}
    assert kinds(transitions) == {"RECOVERED", "SHUTTING_DOWN", "STOPPED"}


def test_results_are_those_of_the_servers_that_we_reconciled_since_we_lead() -> None:
    transitions = Transitions(clock=lambda: NOW)
    results: tuple[Result, ...] = ("ok", "failed", "blocked")
    for result in results:
        transitions.to(look(result, key=ServerKey("ai", result)))
    transitions.to(look("pruned", uid="", key=ServerKey("ai", "blocked")))
    assert transitions.results() == {"ok": 1, "failed": 1}
    transitions.stand_by()
    assert transitions.results() == {}
    transitions.to(look())
    assert transitions.results() == {"ok": 1}


def test_an_end_that_was_reported_is_not_reported_again() -> None:
    transitions = Transitions(clock=lambda: NOW)
    assert kinds(transitions) == set()
    assert "ENDED" in kinds(transitions, "failed", uid="", shutdown=STARTED)
    assert "ENDED" not in kinds(transitions, "failed", uid="", shutdown=STARTED)


def test_what_turns_after_the_clock_was_set_back_is_news() -> None:
    now = [NOW]
    transitions = Transitions(clock=lambda: now[0])
    now[0] = EARLIER
    transitions.set_back()
    assert len(transitions.to(look(key=WEB, status=ready("True", "X", EARLIER))).turned) == 1
