"""The queue of servers: who is due, who is taken, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from gitops_mcp.model import ServerKey
from gitops_mcp.workqueue import Queue

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
A, B, C = (ServerKey("ai", name) for name in "abc")
OTHER = ServerKey("ops", "a")


def taken(queue: Queue, now: datetime = NOW) -> list[ServerKey]:
    found = []
    while (key := queue.take(now)) is not None:
        found.append(key)
    return found


def test_a_name_that_comes_twice_is_taken_once() -> None:
    queue = Queue()
    for key in (A, B, A):
        queue.add(key, NOW)
    assert queue.depth == 2
    assert taken(queue) == [A, B]
    assert (queue.depth, queue.running) == (0, 2)


def test_what_happens_while_a_server_is_worked_on_is_looked_at_after_that() -> None:
    queue = Queue()
    queue.add(A, NOW)
    assert queue.take(NOW) == A
    queue.add(A, NOW)
    assert queue.take(NOW) is None  # never twice at once
    queue.done(A)
    assert queue.take(NOW) == A
    queue.done(A)
    assert queue.take(NOW) is None


def test_a_timer_makes_its_server_due_and_the_last_word_counts() -> None:
    queue = Queue()
    queue.schedule(A, NOW + SECOND)
    queue.schedule(B, NOW + 2 * SECOND)
    queue.schedule(A, NOW + 3 * SECOND)
    assert queue.next_at() == NOW + 2 * SECOND
    assert taken(queue, NOW + 2 * SECOND) == [B]
    queue.schedule(A, None)
    assert queue.next_at() is None
    assert taken(queue, NOW + 9 * SECOND) == []


def test_timers_that_are_set_anew_again_and_again_take_no_room() -> None:
    queue = Queue()
    for number in range(10_000):
        queue.schedule(A, NOW + number * SECOND)
    assert len(queue._heap) < 200
    assert queue.next_at() == NOW + 9_999 * SECOND


def test_slow_namespaces_leave_a_worker_to_another_one() -> None:
    queue = Queue(shared=16)
    shares = {}
    for namespace in ("slow", "slower", "third"):
        keys = {ServerKey(namespace, f"web-{number}") for number in range(20)}
        for key in keys:
            queue.add(key, NOW)
        shares[namespace] = got = taken(queue)
        assert set(got) <= keys
    assert [len(share) for share in shares.values()] == [12, 3, 1]
    queue.done(shares["third"][0])  # what is left to it goes on to be its own
    assert [key.namespace for key in taken(queue)] == ["third"]
    for key in (*shares["slow"], *shares["slower"]):
        queue.done(key)
    assert len(taken(queue)) >= 14  # and next to nothing lies idle


def test_a_namespace_that_is_alone_among_few_workers_has_one() -> None:
    queue = Queue(shared=1)
    for key in (A, B):
        queue.add(key, NOW)
    assert taken(queue) == [A]


def test_the_namespaces_take_turns() -> None:
    queue = Queue()
    for key in (A, B, C, OTHER):
        queue.add(key, NOW)
    assert taken(queue) == [A, OTHER, B, C]


def test_the_oldest_says_how_long_the_queue_is_behind() -> None:
    queue = Queue()
    assert queue.oldest(NOW) == timedelta(0)
    queue.add(A, NOW)
    queue.add(OTHER, NOW + SECOND)
    queue.add(A, NOW + SECOND)
    assert queue.oldest(NOW + 5 * SECOND) == 5 * SECOND
    queue.take(NOW)
    assert queue.oldest(NOW + 5 * SECOND) == 4 * SECOND
