"""Leadership from term to term, on a clock that the test sets; the Lease is in a sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gitops_mcp import sandbox
from gitops_mcp.base import times
from gitops_mcp.base.errors import Transient, UsageError
from gitops_mcp.base.names import JsonObject, ObjectRef
from gitops_mcp.cluster import leadership, sourceleases
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.cluster.leadership import Leadership, area_of, lease_name
from gitops_mcp.cluster.lease import Lease
from gitops_mcp.cluster.sourceleases import LEASE_TROUBLE, STEP, covers
from gitops_mcp.source.settings import checked_source_id


@pytest.fixture(scope="module")
def cluster(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with sandbox.start(speed=20) as started:
        folder: Path = tmp_path_factory.mktemp("sandbox")
        cluster = Cluster(str(started.write_kubeconfig(folder / "config")))
        yield cluster
        cluster.close()


class Api:
    """The sandbox as one process sees it: it may be away, and its answers take ``slow`` seconds."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.away = False
        self.slow = 0.0
        self.asked: list[str] = []

    def _ask(self, verb: str, call: Callable[..., Any], what: object) -> Any:
        self.asked.append(verb)
        if self.away:
            raise Transient(f"{verb} lease: no answer in time")
        self._world.now += self.slow
        answer = call(what)
        self._world.now += self.slow
        return answer

    def get(self, ref: ObjectRef, *, timeout: float | None = None) -> JsonObject | None:
        assert timeout
        answer: JsonObject | None = self._ask("get", self._world.cluster.get, ref)
        return answer

    def create(self, body: JsonObject, *, timeout: float | None = None) -> JsonObject:
        assert timeout
        answer: JsonObject = self._ask("create", self._world.cluster.create, body)
        return answer

    def update(self, body: JsonObject, *, timeout: float | None = None) -> JsonObject:
        assert timeout
        answer: JsonObject = self._ask("update", self._world.cluster.update, body)
        return answer


class World:
    """One clock, one cluster, and as many agents as a test makes."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.now = 100.0
        self.agents: list[Agent] = []

    def agent(self, name: str, *, narrowed: str = "", **options: Any) -> Agent:
        if narrowed:
            options["above"] = self.lease(Api(self), name, self.name)
        lease = f"{self.name}--{narrowed}" if narrowed else self.name
        self.agents.append(agent := Agent(self, name, lease, **options))
        return agent

    def lease(self, api: Api, identity: str, name: str) -> Lease:
        return Lease(api, "default", name, identity, clock=lambda: self.now)

    def live(self) -> JsonObject:
        live = self.cluster.get(ObjectRef("coordination.k8s.io/v1", "Lease", "default", self.name))
        assert live is not None
        return live

    def steps(self, seconds: float, *agents: Agent) -> None:
        """Let time pass; who is not named among ``agents`` does not get to run."""
        end = self.now + seconds
        while self.now < end:
            self.now += STEP
            for agent in agents or self.agents:
                agent.leadership.step()
            assert len([one for one in self.agents if one.leadership.holds]) <= 1


class Agent:
    def __init__(self, world: World, identity: str, name: str, **options: Any) -> None:
        self.api = Api(world)
        self.told: list[str] = []
        self.said: list[str] = []
        self.leadership = Leadership(
            world.lease(self.api, identity, name),
            gained=lambda: self.told.append("gained"),
            lost=lambda: self.told.append("lost"),
            say=self.said.append,
            **options,
        )

    def holds(self) -> bool:
        return self.leadership.holds


@pytest.fixture
def world(cluster: Cluster, request: pytest.FixtureRequest) -> World:
    return World(cluster, request.node.name.replace("_", "-")[:60].rstrip("-"))


def test_one_leads_and_the_other_stands_by_until_it_is_released(world: World) -> None:
    one, two = world.agent("agent-1"), world.agent("agent-2")
    world.steps(30)
    assert (one.holds(), two.holds()) == (True, False)
    assert (one.told, two.told) == (["gained"], [])
    assert two.said == [f"waiting for agent-1, which holds lease default/{world.name}"]
    one.leadership.release()
    assert not one.holds()
    world.steps(STEP, two)
    assert two.holds()
    assert two.told == ["gained"]


def test_a_leader_that_has_nothing_to_do_only_renews(world: World) -> None:
    one = world.agent("agent-1")
    world.steps(2)
    one.api.asked.clear()
    world.steps(60)
    assert set(one.api.asked) == {"update"}
    assert len(one.api.asked) == 30


def test_who_was_killed_is_followed_within_15_seconds(world: World) -> None:
    world.agent("agent-1")
    two = world.agent("agent-2")
    world.steps(30)
    killed = world.now
    while not two.holds():
        world.steps(STEP, two)
    assert world.now - killed <= 12


def test_writing_stops_at_the_deadline_whatever_the_api_server_does(world: World) -> None:
    one, two = world.agent("agent-1"), world.agent("agent-2")
    world.steps(3)
    one.api.away = True
    sent = world.now
    world.steps(5)
    assert one.holds()
    world.now = sent + 6
    assert not one.holds()
    assert one.told == ["gained"]
    one.leadership.step()
    assert one.told == ["gained", "lost"]
    assert len(one.said) == 2  # what is wrong is said once, however often it is tried
    world.steps(10)
    assert two.holds()
    one.api.away = False
    world.steps(5)
    assert not one.holds()
    assert one.said[-1] == f"waiting for agent-2, which holds lease default/{world.name}"


def test_who_wakes_from_a_long_sleep_is_a_stand_by_and_may_lead_again(world: World) -> None:
    one, two = world.agent("agent-1"), world.agent("agent-2")
    world.steps(4)
    world.steps(20, two)
    assert (one.holds(), two.holds()) == (False, True)
    world.steps(4)
    assert (one.told, two.told) == (["gained", "lost"], ["gained"])
    two.leadership.release()
    world.steps(2)
    assert one.told == ["gained", "lost", "gained"]


def test_a_gap_is_told_even_where_nobody_took_the_lease(world: World) -> None:
    one = world.agent("agent-1")
    world.steps(4)
    world.now += 8
    assert not one.holds()
    one.leadership.step()
    assert one.holds()
    assert one.told == ["gained", "lost", "gained"]
    assert world.live()["spec"]["leaseTransitions"] == 0


def test_a_gap_within_a_slow_renewal_is_told(world: World) -> None:
    one = world.agent("agent-1")
    world.steps(2)
    one.api.slow = 4.0
    world.now += 3
    one.leadership.step()  # sent 3 s after the last one, answered 11 s after it
    assert one.told == ["gained", "lost"]
    one.api.slow = 0.0
    world.steps(STEP)
    assert one.told == ["gained", "lost", "gained"]


def test_a_renewal_counts_from_when_it_was_sent(world: World) -> None:
    one = world.agent("agent-1")
    one.api.slow = 1.0
    one.leadership.step()
    answered = world.now
    world.now = answered + 3.9
    assert one.holds()
    world.now = answered + 4
    assert not one.holds()


def test_a_take_over_is_done_once(world: World) -> None:
    one = world.agent("agent-1", take_over=True)
    world.steps(4)
    two = world.agent("agent-2", take_over=True)
    two.leadership.step()
    assert two.holds()
    assert world.live()["spec"]["holderIdentity"] == "agent-2"
    world.now += 3
    one.leadership.step()
    world.steps(20)
    assert (one.told, two.told) == (["gained", "lost"], ["gained"])
    assert one.said == [
        f"lease default/{world.name} was lost to agent-2",
        f"waiting for agent-2, which holds lease default/{world.name}",
    ]


def test_a_lease_that_was_taken_and_given_up_is_not_called_one_that_was_not_renewed(
    world: World,
) -> None:
    one = world.agent("agent-1")
    world.steps(4)
    sync = world.lease(Api(world), "sync-1", world.name)
    assert sync.acquire(take_over=True)
    sync.release()
    world.steps(4)
    assert one.told == ["gained", "lost", "gained"]
    assert one.said == [
        f"lease default/{world.name} was taken by another process, which has given it up since"
    ]


def test_what_is_in_the_way_of_one_holder_is_not_said_of_the_next(world: World) -> None:
    one, two = world.agent("agent-1"), world.agent("agent-2")
    world.steps(2)
    one.leadership.troubled("the record cannot be read")
    two.leadership.troubled("says a stand-by")
    world.steps(2)
    annotations = world.live()["metadata"]["annotations"]
    assert annotations[LEASE_TROUBLE] == "the record cannot be read"
    one.leadership.release()
    world.steps(4, two)
    assert two.holds()
    assert LEASE_TROUBLE not in (world.live()["metadata"].get("annotations") or {})


def test_what_was_lost_stays_lost_where_that_is_wanted(world: World) -> None:
    one = world.agent("sync-1", again=False)
    world.steps(4)
    world.now += 8
    world.steps(4)
    assert not one.holds()
    assert one.told == ["gained", "lost"]
    one.leadership.release()
    assert not world.live()["spec"]["holderIdentity"]


def test_a_revision_rides_on_the_next_renewal_and_is_left_to_the_next_holder(world: World) -> None:
    one, two = world.agent("agent-1"), world.agent("agent-2")
    world.steps(2)
    one.api.asked.clear()
    one.leadership.revision = "abc"
    world.steps(2)
    assert one.api.asked == ["update"]
    assert two.leadership.revision == "abc"
    one.leadership.revision = "def"
    one.leadership.release()
    world.steps(STEP, two)
    assert two.leadership.revision == "def"
    assert world.live()["metadata"]["annotations"] == {"mcp.example.com/revision": "def"}


def test_what_was_enforced_in_a_former_term_never_comes_back(world: World) -> None:
    one = world.agent("agent-1")
    world.steps(2)
    one.leadership.revision = "old"
    world.steps(3)
    two = world.agent("agent-2")
    world.now += 8  # the first one sleeps, and the other sees that
    world.steps(12, two)
    two.leadership.revision = "new"
    world.steps(3, two)
    one.leadership.step()
    one.leadership.revision = "old"  # a look that ended late
    two.leadership.release()
    world.steps(2, one)
    assert one.holds()
    assert one.leadership.revision == "new"
    assert world.live()["metadata"]["annotations"] == {"mcp.example.com/revision": "new"}


def test_a_release_that_is_not_answered_is_said_and_ends_it(world: World) -> None:
    one = world.agent("agent-1")
    world.steps(2)
    one.api.away = True
    one.leadership.release()
    assert one.said == [
        f"lease default/{world.name} could not be released: update lease: no answer in time"
    ]
    one.api.away = False
    one.leadership.step()
    assert not one.holds()


def test_who_is_narrowed_keeps_nobody_from_the_rest_and_steps_back_for_who_is_not(
    world: World,
) -> None:
    part = world.agent("agent-part", narrowed="ai")
    world.steps(4)
    assert part.holds()
    whole = world.agent("agent-whole")
    whole.leadership.step()
    assert whole.holds()
    world.now += 1.1
    for _ in range(2):  # the next renewal, at the latest
        world.now += STEP
        whole.leadership.step()
        part.leadership.step()
    assert (whole.holds(), part.holds()) == (True, False)
    assert part.told == ["gained", "lost"]
    assert part.said == [f"waiting for agent-whole, which holds lease default/{world.name}"]
    world.steps(30)
    assert (whole.told, part.told) == (["gained"], ["gained", "lost"])
    whole.leadership.release()
    world.steps(STEP, part)
    assert part.holds()


def test_who_is_narrowed_follows_one_that_was_killed(world: World) -> None:
    whole = world.agent("agent-whole")
    part = world.agent("agent-part", narrowed="ai")
    world.steps(4)
    assert (whole.holds(), part.holds()) == (True, False)
    killed = world.now
    while not part.holds():
        world.steps(STEP, part)
    assert 6 < world.now - killed <= 12


def test_agents_of_two_parts_lead_side_by_side(world: World) -> None:
    parts = [world.agent(f"agent-{name}", narrowed=name) for name in ("ai", "web")]
    for _ in range(10):
        world.now += STEP
        for part in parts:
            part.leadership.step()
    assert all(part.holds() for part in parts)
    again = world.agent("agent-again", narrowed="ai")
    again.leadership.step()
    assert not again.holds()


@pytest.mark.parametrize(
    ("area", "there", "elsewhere"),
    [
        (area_of(None), True, True),
        (area_of("ai"), True, False),
        (area_of("ai", "web*"), True, False),
        (area_of(None, "web*"), True, True),
    ],
)
def test_the_name_of_a_lease_tells_where_its_holder_runs_servers(
    area: str, there: bool, elsewhere: bool
) -> None:
    name = lease_name("cluster", area)
    assert covers(name, "cluster", "ai") is there
    assert covers(name, "cluster", "web") is elsewhere
    assert not covers(name, "cluster-ai", "ai")
    assert all(re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", label) for label in name.split("."))


def test_parts_have_leases_of_their_own_that_no_source_can_have() -> None:
    limits = ("", "web*", "web*,!web-1")
    names = {lease_name("cluster", area_of(ns, limit)) for ns in (None, "ai") for limit in limits}
    assert len(names) == 6
    for name in names - {"gitops-mcp-cluster"}:
        with pytest.raises(UsageError):
            checked_source_id(name.removeprefix("gitops-mcp-"))


@pytest.mark.parametrize(
    ("seconds", "waits"), [(0, "git"), (-29, "git"), (-60, None), (3600, None)]
)
def test_a_sign_of_waiting_counts_for_a_while_and_none_from_the_future(
    seconds: int, waits: str | None
) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    said = json.dumps({"at": times.rfc3339(now + timedelta(seconds=seconds)), "message": "git"})
    lease = {"metadata": {"annotations": {sourceleases.LEASE_WAITS: said}}}
    assert leadership.waiting_in([lease], now=now) == waits
