"""Agents that die, stop, sleep and lose the API server; what a real one answered is the proof."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import faults
import paths
import plane as rig
import pytest
from agents import until
from commandline import manifest
from gitfixtures import bare, commit

from gitops_mcp.base import objects
from gitops_mcp.base.names import API_VERSION, KIND, JsonObject, ObjectRef
from gitops_mcp.cluster import leadership
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.source import crd, serverschema

USERS = ("one", "two")
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@pytest.fixture(scope="module")
def plane(processes: None) -> Iterator[rig.Plane]:
    try:
        started = rig.Plane(users=USERS)
    except rig.Unavailable as reason:
        pytest.skip(str(reason))
    with started:
        for user in USERS:
            started.grant(user, [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])
        cluster = Cluster(str(started.kubeconfig()))
        cluster.apply(crd.custom_resource_definition(serverschema.schema()))
        cluster.close()
        until(lambda: served(started), "the CRD")
        yield started


def served(plane: rig.Plane) -> bool:
    return plane.request("GET", f"/apis/{API_VERSION}/mcpservers")[0] == 200


@dataclass
class Place:
    """A namespace for servers and leases, and agents that end with the test."""

    plane: rig.Plane
    name: str
    home: Path
    cluster: Cluster
    ends: contextlib.ExitStack
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def source(self, name: str) -> Path:
        repository = bare(self.home / f"{name}.git")
        commit(repository, {"README": ""})
        return repository

    def put(self, source: Path, image: str, *servers: str) -> None:
        commit(
            source,
            {f"{name}.yaml": manifest(name, self.name, image=image) for name in servers},
        )

    def agent(self, user: str, source: Path, *, kubeconfig: Path | None = None) -> Agent:
        file = kubeconfig or self.plane.kubeconfig(user, namespace=self.name)
        agent = Agent(user, source, file, self.name, self.home / f"{next(self.numbers)}.log")
        self.ends.callback(agent.kill)
        return agent

    def leader(self, source: Path | str) -> int:
        """The process that leads, as the Lease has it; 0: none."""
        name = source if isinstance(source, str) else source.stem
        lease = self.cluster.get(
            ObjectRef("coordination.k8s.io/v1", "Lease", self.name, leadership.lease_name(name))
        )
        holder = objects.text(lease, "spec", "holderIdentity")
        return int(holder.split("-")[-2]) if holder else 0

    def get(self, kind: str, name: str) -> JsonObject:
        version = API_VERSION if kind == KIND else "apps/v1"
        return self.cluster.get(ObjectRef(version, kind, self.name, name)) or {}

    def images(self) -> set[str]:
        listed, _ = self.cluster.list("apps/v1", "Deployment", self.name)
        specs = (body["spec"]["template"]["spec"] for body in listed)
        return {spec["containers"][0]["image"] for spec in specs}


class Agent:
    """A process of its own; ``user`` is who it is to the API server."""

    def __init__(
        self, user: str, source: Path, kubeconfig: Path, namespace: str, log: Path
    ) -> None:
        self.user = user
        self._log = log
        command = [sys.executable, "-m", "gitops_mcp", "agent", str(source), "--interval", "1s"]
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                [*command, "-n", namespace, "--probes", "off", "--source-id", source.stem],
                env=os.environ
                | {"KUBECONFIG": str(kubeconfig), "GITOPS_MCP_LISTEN": "127.0.0.1:0"},
                cwd=paths.ROOT,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        self.pid = self.process.pid

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.alive:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def place(plane: rig.Plane, tmp_path: Path) -> Iterator[Place]:
    name = plane.namespace()
    cluster = Cluster(str(plane.kubeconfig()))
    with contextlib.ExitStack() as ends:
        ends.callback(cluster.close)
        yield Place(plane, name, tmp_path, cluster, ends)


def stands_by(agent: Agent) -> bool:
    return (
        re.search(r"waiting for agent-\S+, which holds lease \S+-fleet\b", agent.said) is not None
    )


def test_who_was_killed_or_stopped_is_followed(place: Place) -> None:
    source = place.source("fleet")
    place.put(source, "example.com/web:1", "web")
    first = place.agent("one", source)
    until(lambda: place.leader(source) == first.pid, "a leader")
    second = place.agent("two", source)
    until(lambda: stands_by(second), "a stand-by")
    until(lambda: place.get("Deployment", "web"), "its work")
    first.send(signal.SIGKILL)
    until(lambda: place.leader(source) == second.pid, "the next leader")
    place.put(source, "example.com/web:1", "api")
    until(lambda: place.get("Deployment", "api"), "its work")

    third = place.agent("one", source)
    until(lambda: stands_by(third), "a stand-by")
    second.send(signal.SIGTERM)
    until(lambda: place.leader(source) != second.pid, "the release")
    until(lambda: place.leader(source) == third.pid, "the next leader")
    assert second.process.wait(200) == 0


def test_nothing_that_a_former_leader_sends_is_carried_out(place: Place) -> None:
    """It is stopped with its writes on their way, past its lease, and wakes when another one has
    done the work."""
    names = ("a", "b", "c", "d")
    source = place.source("fleet")
    place.put(source, "example.com/web:1", *names)
    proxy = place.ends.enter_context(
        faults.Proxy(place.plane.kubeconfig("one", namespace=place.name))
    )
    former = place.agent("one", source, kubeconfig=proxy.kubeconfig)
    until(lambda: place.leader(source) == former.pid, "a leader")
    heir = place.agent("two", source)
    until(lambda: stands_by(heir), "a stand-by")
    until(lambda: all(place.get("Deployment", name) for name in names), "its work")

    hanging: list[str] = []

    def hang(request: faults.Request) -> faults.Fault | None:
        if request.method == "PATCH" and "/deployments/" in request.path:
            hanging.append(request.path)
            return faults.HUNG
        return None

    place.plane.requests()
    proxy.rule = hang
    place.put(source, "example.com/web:2", *names)
    until(lambda: hanging, "writes on their way")
    former.send(signal.SIGSTOP)
    until(lambda: place.leader(source) == heir.pid, "the next leader")
    until(lambda: place.images() == {"example.com/web:2"}, "its work")

    proxy.rule = lambda _: None
    proxy.release()
    until(lambda: late(proxy) >= len(hanging), "the late writes to arrive")
    former.send(signal.SIGCONT)
    until(lambda: stands_by(former), "it to notice")
    place.put(source, "example.com/web:3", *names)
    until(lambda: place.images() == {"example.com/web:3"}, "the work of the one that leads")

    written = written_late(place, source)
    assert {code for _, code in written} == {409}, written
    assert "deployments" in {resource for resource, _ in written}

    heir.send(signal.SIGTERM)
    until(lambda: place.leader(source) == former.pid, "it to lead again")
    place.put(source, "example.com/web:4", *names)
    until(lambda: place.images() == {"example.com/web:4"}, "its work")
    assert former.alive


def written_late(place: Place, source: Path) -> list[tuple[str, int]]:
    """What ``one`` wrote once ``two`` had taken the lease, and what it was answered. Events are no
    part of it: they are added to, never changed, and tell what it did while it led. Nor is
    the lease of kubectl's servers, which ``two`` takes up to two seconds earlier or later."""
    requests = place.plane.requests()
    lease = ("two", "update", "leases", leadership.lease_name(source.stem), 200)
    taken = next(
        index
        for index, one in enumerate(requests)
        if (one.user, one.verb, one.resource, one.name, one.code) == lease
    )
    return [
        (one.resource, one.code)
        for one in requests[taken:]
        if one.user == "one"
        and one.verb in WRITES
        and one.resource != "events"
        and one.name != leadership.lease_name(leadership.CLUSTER_SOURCE)
    ]


def test_a_leader_that_gets_no_answers_is_followed(place: Place) -> None:
    source = place.source("fleet")
    place.put(source, "example.com/web:1", "web")
    proxy = place.ends.enter_context(
        faults.Proxy(place.plane.kubeconfig("one", namespace=place.name))
    )
    former = place.agent("one", source, kubeconfig=proxy.kubeconfig)
    until(lambda: place.get("Deployment", "web"), "a leader's work")
    heir = place.agent("two", source)
    until(lambda: stands_by(heir), "a stand-by")
    place.plane.requests()
    proxy.rule = lambda request: None if request.watch else faults.HUNG
    until(lambda: "was not renewed in time" in former.said, "it to notice")
    until(lambda: place.leader(source) == heir.pid, "the next leader")
    place.put(source, "example.com/web:2", "web")
    until(lambda: place.images() == {"example.com/web:2"}, "its work")
    proxy.rule = lambda _: None
    proxy.release()
    until(lambda: stands_by(former), "the former one to stand by")
    assert {code for _, code in written_late(place, source)} == {409}
    assert former.alive


def late(proxy: faults.Proxy) -> int:
    return sum(fault is faults.HUNG for _, fault, _ in proxy.seen)


def test_without_the_api_server_nobody_leads_and_then_one_does_again(place: Place) -> None:
    source = place.source("fleet")
    place.put(source, "example.com/web:1", "web")
    agents = [place.agent(user, source) for user in USERS]
    until(lambda: place.get("Deployment", "web"), "a leader's work")
    until(lambda: any(map(stands_by, agents)), "a stand-by")
    leads = next(agent for agent in agents if agent.pid == place.leader(source))
    place.plane.stop_apiserver()
    until(lambda: "was not renewed in time" in leads.said, "it to notice")
    time.sleep(5)  # longer than a lease
    place.plane.start_apiserver()
    place.put(source, "example.com/web:2", "web")
    until(lambda: place.images() == {"example.com/web:2"}, "a leader's work")
    assert place.leader(source) in {agent.pid for agent in agents}
    assert all(agent.alive for agent in agents)


def test_kubectls_servers_are_run_by_one_leader_and_then_by_another(place: Place) -> None:
    sources = [place.source(name) for name in USERS]
    agents = [place.agent(user, source) for user, source in zip(USERS, sources, strict=True)]
    until(lambda: [place.leader(source) for source in sources] == [a.pid for a in agents], "both")
    until(lambda: place.leader(leadership.CLUSTER_SOURCE), "one that stands for kubectl")
    stands, other = agents
    if place.leader(leadership.CLUSTER_SOURCE) == other.pid:
        stands, other = other, stands
    place.plane.requests()
    by_hand(place, "first")
    until(lambda: place.get("Deployment", "first"), "its work")
    seen = place.plane.requests(user=other.user)
    assert {one.resource for one in seen if one.verb in WRITES} <= {"leases"}
    stands.send(signal.SIGKILL)
    by_hand(place, "second")
    until(lambda: place.get("Deployment", "second"), "the work of the other one")
    assert place.leader(leadership.CLUSTER_SOURCE) == other.pid


def by_hand(place: Place, name: str) -> None:
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": place.name},
        "spec": {"image": "example.com/web:1", "transport": "stdio"},
    }
    place.cluster.apply(body, manager="kubectl")
