"""Batches: who may take a change now, who waits, and what stops a rollout."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.model import Decision, Probe
from gitops_mcp.base.names import ServerKey
from gitops_mcp.base.source import Revision
from gitops_mcp.decide.rollout import DEFAULT, Rollout, RolloutState, Serial, standing

COMMIT = Revision("abcdef0123456789")
ONE_BY_ONE = Serial.parse("1")
NEXT = Revision("1234567890abcdef")


def servers(count: int, first: int = 0) -> list[ServerKey]:
    return [ServerKey("ai", f"s{number:02}") for number in range(first, first + count)]


def going(rollout: Rollout, keys: list[ServerKey]) -> list[ServerKey]:
    return [key for key in keys if rollout.waits(key) is None]


def left(rollout: Rollout) -> dict[str, Any]:
    """What a rollout leaves to the one that overtakes it."""
    return {"in_flight": rollout.not_ready - rollout.failed, "not_ready": rollout.not_ready}


# --- serial ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "total", "size"),
    [
        ("20%", 100, 20),
        ("20%", 12, 2),
        ("30%", 12, 3),
        ("1%", 12, 1),
        ("100%", 12, 12),
        ("5", 12, 5),
        ("50", 12, 50),
        ("off", 12, 12),
    ],
)
def test_a_batch_is_as_large_as_ansible_makes_it(text: str, total: int, size: int) -> None:
    assert Serial.parse(text).size(total) == size


@pytest.mark.parametrize("text", ["20%", "5", "off"])
def test_serial_prints_as_it_was_written(text: str) -> None:
    assert str(Serial.parse(text)) == text


def test_serial_is_a_fifth_where_nobody_says() -> None:
    assert Serial.parse("20%") == DEFAULT


@pytest.mark.parametrize(
    "text", ["", "0", "0%", "101%", "-1", "5.5", "all", "20 %", "\u0665", "1" * 9]
)
def test_a_serial_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="serial"):
        Serial.parse(text)


# --- how a look is judged -------------------------------------------------------------------

HANDSHAKE = Probe("handshake", (), timeout=timedelta(seconds=5))


@pytest.mark.parametrize(
    ("decision", "stands"),
    [
        (Decision("ok", ready=True, phase="Ready"), RolloutState.READY),
        (Decision("ok", ready=True, phase="Ready", inquiry=HANDSHAKE), RolloutState.ROLLING),
        (Decision("ok", ready=False, phase="Pending"), RolloutState.ROLLING),
        (Decision("ok", ready=False, phase="Failed"), RolloutState.FAILED),
        (Decision("failed", ready=False, phase="Pending"), RolloutState.ROLLING),
        (Decision("failed", ready=False), RolloutState.FAILED),
        (Decision("blocked", ready=False, phase="Failed"), RolloutState.FAILED),
        (Decision("skipped"), RolloutState.READY),
        (Decision("pruned"), RolloutState.READY),
        (Decision("ok", waiting="recreate"), RolloutState.ROLLING),
        (Decision("ok"), RolloutState.READY),
        (Decision("skipped", ready=True, phase="Ready", deferred=True), RolloutState.WAITING),
        (Decision("blocked", ready=False, phase="Failed", deferred=True), RolloutState.WAITING),
    ],
)
def test_standing(decision: Decision, stands: RolloutState) -> None:
    assert standing(decision) is stands


# --- batches --------------------------------------------------------------------------------


def test_fewer_than_ten_servers_go_at_once() -> None:
    rollout = Rollout(Serial.parse("1"), COMMIT, servers(9))
    assert going(rollout, servers(9)) == servers(9)
    assert rollout.stopped == ""


def test_off_lets_every_server_go_at_once() -> None:
    rollout = Rollout(Serial.parse("off"), COMMIT, servers(50))
    assert going(rollout, servers(50)) == servers(50)


def test_a_server_that_has_no_part_in_the_rollout_never_waits() -> None:
    rollout = Rollout(Serial.parse("1"), COMMIT, servers(12))
    assert rollout.waits(ServerKey("ai", "other")) is None


def test_batches_go_in_order_each_once_the_one_before_is_ready() -> None:
    keys = servers(12)
    rollout = Rollout(Serial.parse("5"), COMMIT, keys[::-1])
    gone = going(rollout, keys)
    batches = [gone]
    while gone:
        for key in gone:
            rollout.heard(key, RolloutState.ROLLING)
        for key in gone[:-1]:
            assert rollout.heard(key, RolloutState.READY) == []
        gone = rollout.heard(gone[-1], RolloutState.READY)
        batches.append(gone)
    assert batches == [keys[:5], keys[5:10], keys[10:], []]


def test_a_waiting_server_is_told_which_batch_it_waits_for() -> None:
    rollout = Rollout(Serial.parse("5"), COMMIT, servers(12))
    waits = rollout.waits(servers(12)[11])
    assert waits is not None
    assert waits.message == "waits for its batch (3 of 3) of commit abcdef012345"
    assert not waits.stopped


def test_a_look_that_began_before_its_batch_did_says_nothing_about_the_change() -> None:
    keys = servers(12)
    rollout = Rollout(Serial.parse("6"), COMMIT, keys)
    for key in keys[:6]:
        rollout.heard(key, RolloutState.READY)
    assert rollout.heard(keys[6], RolloutState.WAITING) == []  # decided while it still waited
    assert rollout.holds_up(keys[6]) is False  # nobody waits any more
    assert going(rollout, keys) == keys


def test_a_server_that_falls_ill_again_holds_the_next_batch_up() -> None:
    keys = servers(12)
    rollout = Rollout(Serial.parse("4"), COMMIT, keys)
    for key in keys[:3]:
        rollout.heard(key, RolloutState.READY)
    rollout.heard(keys[0], RolloutState.ROLLING)
    assert rollout.heard(keys[3], RolloutState.READY) == []
    assert rollout.heard(keys[0], RolloutState.READY) == keys[4:8]


# --- stopped --------------------------------------------------------------------------------


def failed_in_first_batch() -> tuple[Rollout, list[ServerKey]]:
    keys = servers(12)
    rollout = Rollout(Serial.parse("5"), COMMIT, keys)
    for key in keys[:4]:
        rollout.heard(key, RolloutState.READY)
    woken = rollout.heard(keys[4], RolloutState.FAILED, "ImagePullFailed: no such image")
    assert woken == keys[5:]  # they wait for something else than before
    return rollout, keys


def test_a_batch_that_fails_stops_there_and_says_why() -> None:
    rollout, keys = failed_in_first_batch()
    assert going(rollout, keys) == keys[:5]
    waits = rollout.waits(keys[5])
    assert waits is not None
    assert waits.stopped
    assert waits.message == rollout.stopped
    assert rollout.stopped == (
        "the rollout of commit abcdef012345 stopped: ai/s04 is not Ready: "
        "ImagePullFailed: no such image"
    )


def test_a_failure_that_heals_lets_the_rollout_go_on() -> None:
    rollout, keys = failed_in_first_batch()
    assert rollout.heard(keys[4], RolloutState.ROLLING) == keys[5:]
    assert rollout.stopped == ""
    assert rollout.heard(keys[4], RolloutState.READY) == keys[5:10]


def test_a_failure_in_the_last_batch_stops_nobody() -> None:
    keys = servers(12)
    rollout = Rollout(Serial.parse("12"), COMMIT, keys)
    assert rollout.heard(keys[0], RolloutState.FAILED, "x") == []
    assert rollout.stopped == ""


def test_the_next_commit_starts_anew() -> None:
    rollout, keys = failed_in_first_batch()
    revert = Rollout(
        ONE_BY_ONE, NEXT, keys[:5], **left(rollout)
    )  # the others never left that state
    assert revert.stopped == ""
    assert going(revert, keys) == keys


def test_a_commit_that_leaves_some_waiting_goes_on_in_batches_however_few_they_are() -> None:
    rollout, keys = failed_in_first_batch()
    other = Rollout(ONE_BY_ONE, NEXT, keys[5:], under_way=True, **left(rollout))
    assert going(other, keys) == keys[:6]


def test_what_is_not_ready_anyhow_goes_first_in_the_next_commit() -> None:
    keys = servers(20)
    rollout = Rollout(Serial.parse("4"), COMMIT, keys[8:])
    rollout.heard(keys[8], RolloutState.READY)
    following = Rollout(Serial.parse("4"), NEXT, keys, **left(rollout))
    assert going(following, keys) == [keys[0], *keys[9:12]]


def test_a_commit_that_overtakes_waits_for_what_is_in_flight() -> None:
    keys = servers(12)
    rollout = Rollout(Serial.parse("5"), COMMIT, keys)
    rollout.heard(keys[0], RolloutState.READY)
    # It touches something else: 7 are left, and 4 of the others are on their way.
    other = Rollout(Serial.parse("5"), NEXT, keys[5:], under_way=True, **left(rollout))
    assert going(other, keys[5:]) == []
    for key in keys[1:5]:
        woken = other.heard(key, RolloutState.READY)
    assert woken == keys[5:6]  # the rest of the batch that those four make
    assert other.heard(keys[5], RolloutState.READY) == keys[6:11]


# --- a restart ------------------------------------------------------------------------------


def test_after_a_restart_those_that_went_are_waited_for_and_count_for_the_threshold() -> None:
    keys = servers(12)
    rollout = Rollout(Serial.parse("5"), COMMIT, rolling=keys[5:], rolled=keys[:5])
    assert going(rollout, keys) == keys[:5]
    assert all(rollout.holds_up(key) for key in keys[:5])
    for key in keys[:5]:
        woken = rollout.heard(key, RolloutState.READY)
    assert woken == keys[5:10]


def test_after_a_restart_a_failed_batch_stays_stopped() -> None:
    keys = servers(12)
    rollout = Rollout(Serial.parse("5"), COMMIT, rolling=keys[5:], rolled=keys[:5])
    for key in keys[:4]:
        rollout.heard(key, RolloutState.READY)
    rollout.heard(keys[4], RolloutState.FAILED, "ImagePullFailed")
    assert going(rollout, keys) == keys[:5]
    assert "ai/s04 is not Ready" in rollout.stopped


def test_a_restart_in_the_middle_of_a_batch_never_has_more_than_a_batch_in_flight() -> None:
    keys = servers(12)
    rollout = Rollout(Serial.parse("5"), COMMIT, rolling=[*keys[3:5], *keys[5:]], rolled=keys[:3])
    assert going(rollout, keys) == keys[:3]
    for key in keys[:3]:
        woken = rollout.heard(key, RolloutState.READY)
    assert woken == keys[3:5]


def test_a_server_that_turns_out_to_have_the_change_waits_no_more() -> None:
    keys = servers(12)
    rollout = Rollout(Serial.parse("5"), COMMIT, keys)
    assert rollout.heard(keys[7], RolloutState.READY) == []
    assert rollout.waits(keys[7]) is None
    rollout.heard(keys[8], RolloutState.ROLLING)  # by whoever led before us
    for key in keys[:5]:
        assert rollout.heard(key, RolloutState.READY) == []
    assert rollout.heard(keys[8], RolloutState.READY) == [keys[5], keys[6], keys[9]]
