"""The agent's periodic jobs, without a cluster: what a push meets, and the end of it all."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gitfixtures import GitServer, bare, commit

from gitops_mcp.agent import endpoints, pace, process
from gitops_mcp.agent.agent import Agent
from gitops_mcp.agent.metrics import Metrics
from gitops_mcp.agent.pace import Every, Pace, Periods
from gitops_mcp.base import limits
from gitops_mcp.base.errors import GitOpsError, Transient
from gitops_mcp.base.names import JsonObject
from gitops_mcp.git import gitrepo
from gitops_mcp.source import manifests
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync.syncoptions import SyncOptions

HOUR = timedelta(hours=1)


class Idle(Agent):
    """Nothing but its looks at git; ``last`` is called at the very end of each."""

    def __init__(self, repository: gitrepo.Repository | None = None) -> None:
        self.looks = 0
        self.last: Callable[[], None] = lambda: None
        found = SimpleNamespace(kind="unchanged", error=None)
        idle = SimpleNamespace(notes=lambda *_, **__: None, poll=lambda: found)
        super().__init__(
            SourceOptions(cluster="test"),
            cast("Any", repository or idle),
            cast("Any", SimpleNamespace(source_id="default")),
            cast("Any", SimpleNamespace(namespace="context")),
            SyncOptions(),
            cache=manifests.Cache(),
            periods=Periods(HOUR, HOUR),
            listen=":0",
            webhook_secret=lambda: b"secret",
            metrics=Metrics(),
        )
        for job in self._scheduler.get_jobs():
            if job.id != "poll":
                job.remove()

    def _guarded(self, job: Callable[[], object]) -> Callable[[], None]:
        guarded = super()._guarded(job)

        def run() -> None:
            guarded()
            self.looks += 1
            self.last()

        return run


@pytest.mark.usefixtures("processes")
def test_a_webhook_that_is_replayed_does_not_have_a_fetch_that_fails_repeated_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = bare(tmp_path / "fleet.git")
    commit(repository, {"web.yaml": "kind: Web"})
    monkeypatch.setattr(limits, "GIT_RETRY_SECONDS", (1.0, 300.0))
    delivery = {"X-Gitlab-Token": "secret", "X-Gitlab-Event": "Push Hook"}
    with (
        GitServer(repository.parent) as server,
        gitrepo.open_source(f"{server.url}/{repository.name}") as opened,
    ):
        opened.poll()
        commit(repository, {f"{n}.bin": os.urandom(9000) for n in range(200)})
        server.cut = 0.75
        agent, fetches, end = Idle(opened), 0, time.monotonic() + 1.0
        while time.monotonic() < end:
            server.seen.clear()
            assert agent._on_webhook(delivery, b"") == 202
            agent._poll()
            asked = sum(request.path.endswith("/git-upload-pack") for request in server.seen)
            fetches += asked > 1  # the first asks what there is
            time.sleep(0.02)
    assert 2 <= fetches <= 3  # after 0 s, after 0.25 s at least, and after 0.75 s at least


def test_a_push_at_the_very_end_of_a_look_at_git_is_not_lost() -> None:
    agent = Idle()
    agent._scheduler.start()
    pushed = threading.Event()

    def push() -> None:
        if not pushed.is_set():
            pushed.set()
            agent.poke()
            time.sleep(0.2)  # the scheduler finds this look still under way

    agent.last = push
    agent.poke()
    deadline = time.monotonic() + 60
    while agent.looks < 2:
        assert time.monotonic() < deadline, "the push was lost"
        time.sleep(0.01)
    agent._scheduler.shutdown()


def test_a_push_while_it_ends_is_no_bug() -> None:
    agent = Idle()
    agent._scheduler.start()
    agent._scheduler.shutdown()
    agent.poke()


def test_a_look_at_git_that_began_before_the_term_does_not_tell_what_the_last_leader_knew() -> None:
    agent = Idle()
    looked: list[str] = []
    stands: Any = agent
    stands._controller = SimpleNamespace(
        source=SimpleNamespace(snapshot=SimpleNamespace(revision="a" * 40)),
        synced="",
        transitions=SimpleNamespace(begin=lambda *_: None),
        lead=lambda: looked.append("lead"),
        look_at_all=lambda: looked.append("all"),
    )
    stands._leader = SimpleNamespace(revision="b" * 40, term=1, request="")
    stands._journal.recover = stands._recorder.begin = lambda *_: None
    found = SimpleNamespace(kind="unchanged", error=None)

    def poll() -> SimpleNamespace:
        if agent._begun == 0:
            agent._lead()
        return found

    stands._repository.poll = poll
    agent._poll()
    assert looked == []
    agent._poll()
    assert looked == ["lead", "all"]


def test_git_that_is_away_is_told_once_and_so_is_that_it_is_back() -> None:
    agent = Idle()
    said: list[str] = []
    stands: Any = agent
    stands._git._warn, stands._git._mended = said.append, lambda text, _: said.append(text)
    stands._controller = SimpleNamespace(source=None)
    away = SimpleNamespace(kind="failed", error=GitOpsError("no answer"))
    there = SimpleNamespace(kind="unchanged", error=None)
    stands._repository.poll = iter([there, away, away, there, there, away, there]).__next__
    for _ in range(7):
        agent._poll()
    assert said == ["no answer; what was read last stays in force", "git can be read again"] * 2


def test_its_leases_do_not_follow_the_kubeconfigs_context() -> None:
    """Two agents of one source whose contexts differ would both write."""
    idle = Idle()
    for each in (idle._leader, idle._kubectls):
        assert each._lease.ref.namespace == "default"


HEAPS = """
import ctypes, sys, threading
from gitops_mcp.agent.process import share_one_heap

if sys.argv[1] == "one":
    share_one_heap()
begin = threading.Barrier(4)

def work():
    begin.wait()
    kept.append([bytes(2000 + i) for i in range(500)])
    begin.wait()

kept = []
threads = [threading.Thread(target=work) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
out = libc.fdopen(1, b"w")
libc.malloc_info(0, out)
libc.fflush(None)
"""


@pytest.mark.usefixtures("processes")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of threads are glibc's")
def test_threads_share_one_heap() -> None:
    def heaps(how: str) -> int:
        line = [sys.executable, "-c", HEAPS, how]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.count(
            "<heap nr="
        )

    assert heaps("as ever") > 1
    assert heaps("one") == 1


def test_a_clock_that_is_set_back_stops_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is due is due an hour later than it was, as far as the clock says."""
    agent = Idle()
    agent._scheduler.start()
    agent._mind_the_clock()
    time.sleep(0.2)
    assert agent.looks == 0
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    agent._mind_the_clock()
    deadline = time.monotonic() + 60
    while not agent.looks:
        assert time.monotonic() < deadline, "the job waits for the former time"
        time.sleep(0.01)
    agent._mind_the_clock()  # the same time as before is not set back
    time.sleep(0.2)
    agent._scheduler.shutdown()
    assert agent.looks == 1


@pytest.mark.parametrize("days", [400, -400])
def test_a_clock_that_jumps_by_400_days_runs_each_job_once(
    days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease that is renewed every 2 s would have been renewed 17 million times."""
    jump = [timedelta(0)]

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + jump[0]

    monkeypatch.setattr("apscheduler.schedulers.base.datetime", Jumping)
    monkeypatch.setattr("gitops_mcp.base.times.datetime", Jumping)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump[0].total_seconds())
    idle = Idle()
    renewed: list[float] = []
    idle._scheduler.add_job(lambda: renewed.append(time.monotonic()), Every(0.5), id="lease")
    idle._scheduler.start()
    idle._mind_the_clock()
    began = time.monotonic()
    while len(renewed) < 2:
        time.sleep(0.01)
    jump[0] = timedelta(days=days)
    jumped, before = time.monotonic(), len(renewed)
    idle._mind_the_clock()
    while len(renewed) < before + 2:
        assert time.monotonic() - jumped < 60, "no job runs any more"
        time.sleep(0.01)
    idle._scheduler.shutdown()
    assert len(renewed) <= (time.monotonic() - began) / 0.5 + 3
    assert idle.looks == 1


@pytest.mark.parametrize("work_takes", [0.0, process.LAST_WORDS - 0.1, HOUR.total_seconds()])
def test_whatever_hangs_at_its_end_5_seconds_are_enough(
    work_takes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests, the push of the notes, Events and the leases' release: none is answered. The clock
    is a simulated one."""
    now, hanging, join = [0.0], threading.Event(), threading.Thread.join

    def pass_time(thread: threading.Thread, timeout: float | None = None) -> None:
        if timeout is None:
            join(thread)
        else:
            now[0] += timeout

    def busy(until: float) -> Any:
        return SimpleNamespace(
            is_alive=lambda: now[0] < until,
            join=lambda timeout: now.__setitem__(0, now[0] + max(min(timeout, until - now[0]), 0)),
        )

    ending = cast("Any", Idle())
    ending._scheduler.start()
    ending._journal = SimpleNamespace(flush=lambda **_: hanging.wait())
    leader = SimpleNamespace(holds=True, release=hanging.wait)
    ending._leader = ending._kubectls = leader
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(threading.Thread, "join", pass_time)
    ending._end(busy(work_takes), busy(HOUR.total_seconds()))
    hanging.set()
    assert now[0] + process.LOOK + 2 * endpoints.STOPPING + process.HANGING < 5


def test_nobody_is_ready_before_it_is_known_who_leads() -> None:
    """Whoever is about to lead has looked at no server: it would be taken for a stand-by."""
    idle = cast("Any", Idle())
    idle._watches = SimpleNamespace(complete=True)
    assert idle._ready() == "it is not known yet who leads"
    answers: list[JsonObject | None] = []

    def get(*_: object, **__: object) -> JsonObject | None:
        if not answers:
            raise Transient("no answer in time")
        return answers.pop()

    idle._leader._lease._api = SimpleNamespace(get=get)
    idle._leader.step()
    assert idle._ready() == "it is not known yet who leads"
    answers.append({"spec": {"holderIdentity": "agent-other", "leaseDurationSeconds": 10}})
    idle._leader.step()
    assert idle._ready() == ""  # a stand-by is as ready as its view


def test_an_agent_that_could_not_read_git_for_long_is_not_ready() -> None:
    idle = cast("Any", Idle())
    idle._periods = Periods(timedelta(minutes=1), HOUR)
    idle._watches = SimpleNamespace(complete=True)
    idle._leader = SimpleNamespace(asked=True, holds=True, request="")
    idle._controller = SimpleNamespace(trouble="", synced="abc", source=None)
    away = SimpleNamespace(kind="failed", error=GitOpsError("no answer"))
    there = SimpleNamespace(kind="unchanged", error=None)
    idle._repository.poll = iter([away, away, there]).__next__
    idle._poll()
    assert idle._ready() == ""
    idle._git._read_at -= pace.UNREAD
    assert idle._ready() == "git could not be read for 5 min"
    idle._periods = Periods(HOUR, HOUR)  # three looks have not been yet
    assert idle._ready() == ""
    idle._git._read_at -= 3 * 3600
    idle._poll()
    assert idle._ready() == "git could not be read for 185 min"
    idle._behind = 1  # nothing more is asked here
    idle._poll()
    assert idle._ready() == ""


def test_nothing_is_written_in_a_new_term_before_it_is_known_how_far_the_last_leader_came() -> None:
    idle = cast("Any", Idle())
    may_write: list[bool] = []
    leads = idle._controller._leads.source

    def recover(_: object) -> None:
        idle._check()  # as one who comes to lead kubectl's servers asks for at the same moment
        may_write.append(leads())

    idle._journal = SimpleNamespace(recover=recover, stand_by=list)
    idle._leader._lease._api = SimpleNamespace(get=lambda *_, **__: None, create=_same)
    for _ in range(2):
        idle._leader.step()  # which asks the journal, among others, when the term begins
        assert idle._leader.holds
        assert not leads()
        idle._check()
        assert leads()
        idle._leader._lease._until = -1.0  # it is not renewed in time
        idle._leader._lease._live = None
    assert may_write == [False, False]


def _same(body: JsonObject, **_: object) -> JsonObject:
    return body


def test_what_is_asked_for_again_and_again_begins_in_its_time_and_once_more_at_the_end() -> None:
    now = [100.0]
    pace = Pace(1.0, lambda: now[0])
    assert pace.ask() == 0
    assert pace.ask() is None
    pace.begin()
    now[0] += 0.25
    assert pace.ask() == 0.75
    assert pace.ask() is None
    now[0] += 0.75
    pace.begin()
    assert not pace.asked
    now[0] += 60
    assert pace.ask() == 0


def test_an_unexpected_error_while_git_is_read_leaves_the_last_commit_in_force(
    caplog: pytest.LogCaptureFixture,
) -> None:
    idle = cast("Any", Idle())
    errors: list[BaseException] = [MemoryError(), MemoryError(), ValueError("x")]

    def poll() -> object:
        if errors:
            raise errors.pop(0)
        return SimpleNamespace(kind="unchanged", error=None)

    idle._git._repository = SimpleNamespace(poll=poll)
    idle._controller.source = idle._source = SimpleNamespace(
        snapshot=SimpleNamespace(revision="abc"), source_id="default"
    )
    mended: list[str] = []
    idle._git._mended = lambda text, _: mended.append(text)
    for _ in range(4):
        idle._guarded(idle._poll)()
        assert idle._crash is None
    told = [record for record in caplog.records if record.exc_info]
    assert [record.exc_info[0] for record in told if record.exc_info] == [MemoryError, ValueError]
    assert mended == ["git can be read again"]
