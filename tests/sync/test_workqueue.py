"""The queue of servers: who is due, who is taken, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from gitops_mcp.base.limits import NEWS_AT_ONCE
from gitops_mcp.base.names import ServerKey
from gitops_mcp.sync.workqueue import Queue

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
    assert len(queue._timers._heap) < 200
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


def flood(queue: Queue, seconds: int, often: int) -> list[datetime]:
    """When a server is taken of which there is news so often a second, and for ten more seconds."""
    takes = []
    for number in range((seconds + 10) * often):
        now = NOW + number * SECOND / often
        if number < seconds * often:
            queue.hear(A, now)
        if queue.take(now) is not None:
            takes.append(now)
            queue.done(A)
    return takes


def test_a_flood_of_news_is_gathered_and_the_last_of_it_is_seen() -> None:
    takes = flood(Queue(), 20, 50)
    assert takes[0] == NOW
    assert len(takes) <= NEWS_AT_ONCE + 20
    assert takes[-1] >= NOW + 20 * SECOND - SECOND / 50
    assert takes[-1] <= NOW + 21 * SECOND


def test_news_is_answered_at_once_again_after_a_flood() -> None:
    queue = Queue()
    flood(queue, 20, 50)
    later = NOW + 60 * SECOND
    queue.hear(A, later)
    assert queue.take(later) == A


def test_a_flood_about_one_server_holds_up_neither_another_nor_what_is_asked_of_it() -> None:
    queue = Queue()
    for _ in range(NEWS_AT_ONCE + 5):
        queue.hear(A, NOW)
        taken(queue)
        queue.done(A)
    queue.hear(A, NOW)
    assert queue.take(NOW) is None
    assert queue.next_at() == NOW + SECOND
    queue.hear(B, NOW)
    assert taken(queue) == [B]
    queue.add(A, NOW)
    assert taken(queue) == [A]
    assert queue.next_at() is None  # what was heard before has been seen


def test_news_waits_no_longer_where_the_clock_was_set_back() -> None:
    queue = Queue()
    flood(queue, 20, 50)
    now = NOW - timedelta(days=1)
    queue.hear(A, now)
    assert taken(queue, now + 2 * SECOND) == [A]


def test_only_servers_of_which_there_was_news_lately_are_paced() -> None:
    queue = Queue()
    for number in range(1_000):
        queue.hear(ServerKey("ai", f"web-{number}"), NOW + number * SECOND)
    assert len(queue._paced) < 10
