"""One pass over servers that wait, fail and end: who is looked at when, and when it is over."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from stage import DELETED, KEY, NOW, RENDERER, WEB, Stage, children, cr

from gitops_mcp.base import times
from gitops_mcp.base.errors import Immutable
from gitops_mcp.base.model import Decision, Probe
from gitops_mcp.base.names import ObjectRef, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.source import McpServer
from gitops_mcp.source import serverschema
from gitops_mcp.sync.engine import Engine
from gitops_mcp.sync.fleet import Fleet, Look, Patience, Workers

SOON = timedelta(milliseconds=20)


def pod() -> LiveObject:
    labels = {"app.kubernetes.io/instance": "web"}
    metadata = {"name": "web-1", "namespace": "ai", "uid": "p", "resourceVersion": "9"}
    return LiveObject(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {**metadata, "labels": labels}}
    )


class Counted:
    """An engine whose looks are counted."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.looks = 0

    def work(self, key: ServerKey) -> Decision:
        self.looks += 1
        return self._engine.work(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def in_background(fleet: Fleet, patience: Patience) -> Callable[[], None]:
    """Runs a pass; the function that is returned gives it up, and waits for its end."""

    def run() -> None:
        fleet.run([KEY], patience)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def end() -> None:
        with fleet._workers.changed:
            fleet._open.clear()
            fleet._workers.changed.notify()
        thread.join(10)
        assert not thread.is_alive()

    return end


def test_a_shutdown_that_outlasts_the_wait_for_ready_is_not_looked_at_in_a_loop() -> None:
    stage = Stage(clock=times.utc_now)
    began = times.utc_now().strftime("%Y-%m-%dT%H:%M:%SZ")
    body = cr(**DELETED | {"deletionTimestamp": began})
    stage.stands({**body, "spec": {**body["spec"], "drain": {"timeout": "60s"}}})
    for child in (*children(body), pod()):
        stage.stands(child)
    engine = Counted(stage.engine)
    fleet = Fleet(engine, clock=times.utc_now)  # type: ignore[arg-type]
    end = in_background(fleet, Patience(ready_by=times.utc_now() + timedelta(seconds=0.2)))
    time.sleep(1.5)
    end()
    assert 1 <= engine.looks < 10


def test_a_recreate_is_not_over_before_it_has_come_to_its_end() -> None:
    stdio = McpServer(KEY, {"image": "x", "transport": "stdio"}, {}, {}, "web.yaml", 1, "e" * 64)
    stage = Stage(git=stdio)
    body = stage.stands(cr(server=stdio))
    (deployment,) = RENDERER.children(serverschema.defaulted(body))
    metadata = {**deployment["metadata"], "uid": "d", "resourceVersion": "3", "generation": 1}
    spec = {**deployment["spec"], "strategy": {"type": "RollingUpdate"}}
    stage.stands({**deployment, "metadata": metadata, "spec": spec})
    stage.stands(pod())

    def refuse(verb: str, ref: ObjectRef) -> None:
        if verb == "apply" and ref.kind == "Deployment":
            raise Immutable("apply deployment/web: spec.selector: field is immutable")

    stage.server.refuse = refuse
    decision = stage.engine.work(KEY)
    assert decision.waiting.startswith("shutdown")
    memory = stage.engine.memory(KEY)
    assert Patience().outstanding(decision, memory, stage.now, stage.now) == decision.waiting


def test_what_runs_when_a_pass_is_broken_off_begins_no_further_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interrupt comes while the MCPServer is being made: its children are not."""
    stage = Stage(git=WEB, clock=times.utc_now)
    reached, go_on = threading.Event(), threading.Event()

    def refuse(verb: str, _: ObjectRef) -> None:
        if verb == "apply":
            reached.set()
            go_on.wait(5)

    def interrupt() -> float:
        """In the middle of the wait for what is under way."""
        if not reached.is_set():
            return 0.01
        threading.Timer(0.2, go_on.set).start()
        raise KeyboardInterrupt

    stage.server.refuse = refuse
    fleet = Fleet(stage.engine, clock=times.utc_now)
    monkeypatch.setattr(fleet._workers, "_pause", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fleet.run([KEY], Patience())
    assert [one for one in stage.server.asked if one.startswith("apply")] == ["apply MCPServer"]


@pytest.mark.parametrize("error", [KeyError("step"), MemoryError(), OverflowError("9999")])
def test_an_unexpected_error_of_one_server_is_that_servers_alone(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[ServerKey] = []
    stage = Stage(git=WEB, clock=times.utc_now, bug=lambda key, _: told.append(key))
    other = ServerKey("ai", "other")
    work = stage.engine.work

    def broken(key: ServerKey) -> Decision:
        if key == other:
            raise error
        return work(key)

    monkeypatch.setattr(stage.engine, "work", broken)
    fleet = Fleet(stage.engine, clock=times.utc_now)
    fleet.run([KEY, other], Patience())
    assert told == [other]
    assert stage.engine.outcome(KEY).result == "changed"
    failed = stage.engine.outcome(other)
    assert failed.result == "failed"
    assert f"unexpected {type(error).__name__} in fleet.py:" in failed.message


def test_an_inquiry_that_ends_with_an_unexpected_error_ends_no_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(git=WEB, clock=times.utc_now)
    looks = 0

    def work(_: ServerKey) -> Decision:
        nonlocal looks
        looks += 1
        return Decision(inquiry=Probe("cleanup", (), timedelta(seconds=1)))

    def ask(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(stage.engine, "work", work)
    monkeypatch.setattr(stage.engine, "ask", ask)
    Fleet(stage.engine, clock=times.utc_now).run([KEY], Patience())
    assert looks == 1
    assert stage.engine.outcome(KEY).result == "failed"


def test_a_bug_of_one_worker_is_told_while_the_others_still_hang() -> None:
    bug, hanging, told = SystemError("a bug"), threading.Event(), threading.Event()
    heard: list[BaseException] = []
    slow, bad = ServerKey("ai", "slow"), ServerKey("ai", "bad")

    def look(key: ServerKey) -> Look:
        if key == bad:
            raise bug
        hanging.wait(30)
        return Look()

    def broken_off(error: BaseException) -> None:
        heard.append(error)
        told.set()

    workers = Workers(look, lambda *_: None, clock=lambda: NOW, broken_off=broken_off)
    workers.wake(slow, bad)

    def run() -> None:
        with pytest.raises(SystemError):
            workers.run(lambda: False)

    running = threading.Thread(target=run)
    running.start()
    assert told.wait(10)
    assert running.is_alive()
    hanging.set()
    running.join(10)
    assert heard == [bug]


def test_how_long_the_queue_is_is_not_asked_while_it_changes() -> None:
    """Whoever scrapes the metrics does so from a thread of its own."""
    workers = Workers(lambda _: Look(), lambda *_: None, clock=lambda: NOW)
    workers.wake(KEY)
    told: list[tuple[int, timedelta]] = []
    asking = threading.Thread(target=lambda: told.append(workers.waiting()))
    with workers.changed:
        asking.start()
        asking.join(0.1)
        assert told == []
    asking.join(5)
    assert told == [(1, timedelta(0))]


# --- inquiries --------------------------------------------------------------------------------


class Asking:
    """Workers whose looks hand out what a test says, and whose askers hang at silent servers."""

    def __init__(self, *inquiries: tuple[ServerKey, Probe]) -> None:
        self.answered: queue.Queue[ServerKey] = queue.Queue()
        self.let_go = threading.Event()
        self._inquiries = dict(inquiries)
        self._over = False
        self.workers = Workers(self._look, self._ask, clock=times.utc_now)
        self.thread = threading.Thread(target=self.workers.run, args=(lambda: self._over,))

    def _look(self, key: ServerKey) -> Look:
        return Look(inquiry=self._inquiries.pop(key, None))

    def _ask(self, key: ServerKey, _: Probe) -> None:
        if key.name.startswith("silent"):
            self.let_go.wait(30)
        self.answered.put(key)

    def __enter__(self) -> Asking:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self._over = True
        with self.workers.changed:
            self.workers.changed.notify()
        self.thread.join(10)


HANDSHAKE = Probe("handshake", (), timedelta(seconds=30))
CLEANUP = Probe("cleanup", (), timedelta(seconds=30))


def silent(namespace: str, count: int) -> list[ServerKey]:
    return [ServerKey(namespace, f"silent-{number}") for number in range(count)]


def test_silent_servers_of_one_namespace_leave_askers_to_all_others() -> None:
    tenants = silent("tenant", 200)
    asked = [(key, HANDSHAKE) for key in (*tenants, KEY)]
    with Asking(*asked) as asking:
        asking.workers.wake(*tenants)
        time.sleep(0.3)
        asking.workers.wake(KEY)
        assert asking.answered.get(timeout=5) == KEY


def test_no_silent_server_takes_a_thread_of_the_cleanup_hooks() -> None:
    tenants = [key for each in range(16) for key in silent(f"tenant-{each}", 10)]
    asked = [(key, HANDSHAKE) for key in tenants]
    with Asking(*asked, (KEY, CLEANUP)) as asking:
        asking.workers.wake(*tenants)
        time.sleep(0.3)
        asking.workers.wake(KEY)
        assert asking.answered.get(timeout=5) == KEY


def test_who_is_asked_already_is_not_asked_again_at_once() -> None:
    (key,) = silent("ai", 1)
    with Asking((key, HANDSHAKE)) as asking:
        asking.workers.wake(key)
        time.sleep(0.2)
        asking._inquiries[key] = HANDSHAKE  # nothing has been answered yet: it is due as before
        asking.workers.wake(key)
        time.sleep(0.2)
        asking.let_go.set()
        assert asking.answered.get(timeout=5) == key
        with pytest.raises(queue.Empty):
            asking.answered.get(timeout=0.3)
