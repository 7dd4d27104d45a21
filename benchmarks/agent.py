"""The living agent on real control planes: a push, a drift, idleness, a fleet made from nothing.

    python benchmarks/agent.py [--servers 1000] [--idle 5] [--only latency]     (after `make plane`)

``gitops-mcp agent`` runs as a process of its own, on a bare repository, its periodic looks an hour
apart: all that happens is owed to a webhook or to a watch. Applied or healed is a Deployment when a
watch shows it so.

*latency*: fleets of three sizes without pods (replicas 0) stand side by side, each with its own
plane and agent, and take a push in turn; from the POST to ``/webhook`` on. Then images are changed
by another manager's forced apply in the middle one; from the request of that on. Then kubectl
applies all that ``gitops-mcp render`` prints for it, where nothing is to change.

*fleet*: servers with one pod each, made by one push, until all are Ready; the floor is the same
objects on another plane as bare PATCHes by as many threads, with a status before and one when the
pods run. After that the agent is left alone.

"Own" seconds are wall seconds less the share of the cores that other work took: the same on an idle
machine. Bars are held against those. Requests are those of the API server's audit log, where a
watch that is renewed stands twice: an end and a beginning. Prints rows of Markdown and ends with 1
where a bar is broken. Linux only, as the planes are.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import math
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import agents
import gitfixtures
import rig
from control_plane import TICKS, VARS, Clocks, Side, command, kubectl, make_namespaces
from fleet import files
from plane import Plane, Request, Unavailable

from gitops_mcp.agent.agent import WORKERS
from gitops_mcp.base.names import API_VERSION, FIELD_MANAGER, KIND, JsonObject, ServerKey
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.cluster.view import key_of
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync import reading

PUSH_BAR, DRIFT_BAR = 0.5, 1.0
"""Seconds, of which 95 % may take no more."""
KUBECTL_BAR = 1 / 10
"""A push over kubectl's apply of the whole folder."""
SIZE_BAR = 1.3
"""A push among many servers over one among few, medians."""
IDLE_BAR = 1.0
"""Percent of a core."""
RENEWED = frozenset({"leases"})
"""What an agent asks of the API server while nothing happens, besides its watches' renewal."""
PAUSE = 0.7
"""Seconds between two pushes: no part of a period, so that they meet all of the agent's jobs."""
QUIET = 5.0
"""Seconds without a request but renewals after which an agent has done its part."""
PATIENCE = 3600.0
"""Seconds after which something counts as what never happens."""
SECRET = b"it is a secret"
HOUR = ("--interval", "1h", "--full-check", "1h")
BENCH = "bench"
"""The user agent of this process, whose requests are not the agent's."""


# --- what is seen ---------------------------------------------------------------------------


class Seen:
    """What a watch shows of every object of a kind: one fact each, and since when."""

    def __init__(
        self,
        cluster: Cluster,
        api_version: str,
        kind: str,
        fact: Callable[[JsonObject], str],
        heard: Callable[[ServerKey, str], object] = lambda *_: None,
    ) -> None:
        self._cluster, self._kind = cluster, (api_version, kind)
        self._fact, self._heard = fact, heard
        self._facts: dict[ServerKey, tuple[str, float]] = {}
        self._counts: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        api_version, kind = self._kind
        for news in self._cluster.list_and_watch(api_version, kind, None, stop=self._stop):
            now = time.monotonic()
            items: Iterable[JsonObject] = [news[1][1]] if news[0] == "EVENT" else news[1][0]
            for item in items:
                self._put({"kind": kind, **item}, now)

    def _put(self, item: JsonObject, now: float) -> None:
        key, fact = key_of(item), self._fact(item)
        with self._changed:
            before = self._facts.get(key, ("", 0.0))[0]
            if before == fact:
                return
            self._facts[key] = fact, now
            self._counts[before] -= 1
            self._counts[fact] += 1
            self._changed.notify_all()
        self._heard(key, fact)

    def stop(self) -> None:
        """Follow no longer."""
        self._stop.set()

    def fact(self, key: ServerKey) -> str:
        """What is so now."""
        return self._facts[key][0]

    def until(self, key: ServerKey, fact: str, since: float) -> float:
        """When it was so of one object, for the first time after that time."""

        def holds() -> bool:
            known = self._facts.get(key)
            return known is not None and known[0] == fact and known[1] > since

        with self._changed:
            if not self._changed.wait_for(holds, PATIENCE):
                raise TimeoutError(f"{key}: never {fact}")
            return self._facts[key][1]

    def all(self, fact: str, count: int) -> None:
        """Wait until it is so of so many."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._counts[fact] >= count, PATIENCE):
                raise TimeoutError(f"{self._counts}, not {count} {fact}")


def image_of(deployment: JsonObject) -> str:
    """The image of the first container."""
    return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])


def is_available(deployment: JsonObject) -> str:
    """A word where a pod is up."""
    return "available" if (deployment.get("status") or {}).get("availableReplicas") else ""


def phase_of(server: JsonObject) -> str:
    """The phase of an MCPServer."""
    return str((server.get("status") or {}).get("phase", ""))


# --- the agent ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Living:
    """An agent at work, its repository and its plane."""

    plane: Plane
    repository: Path
    url: str
    cluster: Cluster
    process: subprocess.Popen[bytes]

    def push(self, changed: Mapping[str, bytes | None]) -> None:
        """A new commit, of which the agent is not told."""
        gitfixtures.commit(self.repository, changed)

    def tell(self) -> None:
        """Post what a forge would post after a push."""
        signed = hmac.new(SECRET, b"{}", hashlib.sha256).hexdigest()
        headers = {"X-Hub-Signature-256": f"sha256={signed}", "X-GitHub-Event": "push"}
        request = urllib.request.Request(f"{self.url}/webhook", data=b"{}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 202, answer.status

    def until_ready(self) -> None:
        """Until every server was looked at."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.repository.parent / "agent.log").read_text()
            with (
                contextlib.suppress(OSError),  # not yet
                urllib.request.urlopen(f"{self.url}/readyz", timeout=30) as answer,
            ):
                assert answer.status == 200
                return
            time.sleep(0.2)
        raise TimeoutError("the agent is never ready")

    def until_quiet(self) -> None:
        """Until it asks for nothing but its renewals."""
        self.requests()
        while True:
            time.sleep(QUIET)
            if not beyond_renewals(self.requests()):
                return

    def requests(self) -> Counter[tuple[str, str]]:
        """The agent's requests since the last call, by verb and resource."""
        return asked(self.plane.requests())

    @property
    def cpu(self) -> float:
        """CPU seconds of the agent's process, and of the git processes that it ran."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / TICKS


def asked(requests: Iterable[Request]) -> Counter[tuple[str, str]]:
    """The agent's requests among these, by verb and resource."""
    return Counter((one.verb, one.resource) for one in requests if one.agent == FIELD_MANAGER)


def beyond_renewals(requests: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """Those that renew neither a Lease nor a watch."""
    return Counter(
        {
            (verb, resource): count
            for (verb, resource), count in requests.items()
            if resource not in RENEWED and verb != "watch"
        }
    )


@contextlib.contextmanager
def living(first: Mapping[str, bytes | None], namespaces: Iterable[str]) -> Iterator[Living]:
    """A new plane, and on it an agent that has begun with these files."""
    with rig.folder() as folder, rig.control_plane() as plane:
        make_namespaces(plane, namespaces)
        repository = gitfixtures.bare(folder / "fleet.git")
        gitfixtures.commit(repository, first)
        (folder / "secret").write_bytes(SECRET)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        where = ("--listen", address, "--webhook-secret-file", str(folder / "secret"))
        cluster = Cluster(str(plane.kubeconfig()), user_agent=BENCH)
        with (
            contextlib.closing(cluster),
            agents.agent(plane.kubeconfig(), repository, *HOUR, *where) as process,
        ):
            yield Living(plane, repository, f"http://{address}", cluster, process)


def sources(count: int, *, version: int = 1, replicas: int = 0) -> dict[str, bytes | None]:
    """The files of a fleet by path."""
    return {file.path: file.data for file in files(count, version=version, replicas=replicas)}


def namespaces_of(source: Iterable[str]) -> set[str]:
    """The namespaces of a fleet's servers."""
    return {path.partition("/")[0] for path in source} - {VARS}


# --- how soon -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Time:
    """Seconds that something took: of the wall, and less what other work took of the machine."""

    wall: float
    own: float


@dataclass(frozen=True)
class Times:
    """Several of them."""

    each: Sequence[Time]

    def median(self, clock: str = "own") -> float:
        """Half of them took no longer."""
        return float(statistics.median(getattr(one, clock) for one in self.each))

    def p95(self, clock: str = "own") -> float:
        """95 % of them took no longer."""
        ranked = sorted(getattr(one, clock) for one in self.each)
        return float(ranked[math.ceil(0.95 * len(ranked)) - 1])


def timed(work: Callable[[], object], until: Callable[[float], float]) -> Time:
    """From the beginning of ``work`` to the time that ``until``, told of it, returns."""
    start, began = Clocks.read(), time.monotonic()
    work()
    wall = until(began) - began
    end = Clocks.read()
    return Time(wall, max(wall - (end.wall - end.own - start.wall + start.own), 0.0))


@dataclass
class Stand:
    """A fleet without pods, with its agent."""

    agent: Living
    seen: Seen
    count: int
    next: Mapping[str, bytes | None]
    """Every file in its next version."""

    def key(self, number: int) -> ServerKey:
        """A server by its number."""
        return ServerKey(f"team-{number % 40}", f"tools-{number}")

    def change(self, number: int) -> Time:
        """Push the next version of one server, and see it applied."""
        key = self.key(number)
        path = f"{key.namespace}/{key.name}.yaml"
        wanted = self.seen.fact(key).removesuffix(".1") + ".2"
        self.agent.push({path: self.next[path]})
        return timed(self.agent.tell, lambda began: self.seen.until(key, wanted, began))

    def drift(self, number: int) -> Time:
        """Change an image by hand, and see it as in git again."""
        key = self.key(number)
        wanted = self.seen.fact(key)
        container = {"name": "mcp-server", "image": "registry.example.com/by-hand:1"}
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": key.name, "namespace": key.namespace},
            "spec": {"template": {"spec": {"containers": [container]}}},
        }

        def by_hand() -> None:
            self.agent.cluster.apply(body, manager="by-hand", force=True)

        return timed(by_hand, lambda began: self.seen.until(key, wanted, began))


@dataclass(frozen=True)
class Latency:
    """How soon things are as git says, by the size of the fleet."""

    push: Mapping[int, Times]
    drift: Times
    kubectl: Time


def latency(small: int, middle: int, large: int, times: int) -> Latency:
    """Pushes to three fleets in turn; drifts in the middle one; kubectl's apply of it."""
    with contextlib.ExitStack() as stack:
        stands = []
        for count in sorted({small, middle, large}):
            source = sources(count)
            agent = stack.enter_context(living(source, namespaces_of(source)))
            seen = Seen(agent.cluster, "apps/v1", "Deployment", image_of)
            stack.callback(seen.stop)
            stands.append(Stand(agent, seen, count, sources(count, version=2)))
        for stand in stands:
            stand.agent.until_ready()
            stand.agent.until_quiet()
            say(f"{stand.count} servers stand")
        numbers = {
            stand.count: [turn * stand.count // times for turn in range(times)] for stand in stands
        }
        push: dict[int, list[Time]] = {stand.count: [] for stand in stands}
        for turn in range(times):
            for stand in stands:
                push[stand.count].append(stand.change(numbers[stand.count][turn]))
                time.sleep(PAUSE)
        stand = next(stand for stand in stands if stand.count == middle)
        drifts = []
        for number in numbers[middle]:
            drifts.append(stand.drift(number))
            time.sleep(PAUSE)
        return Latency(
            {count: Times(each) for count, each in push.items()},
            Times(drifts),
            _apply_all(stand.agent, tuple(stand.agent.plane for stand in stands)),
        )


def _apply_all(agent: Living, planes: tuple[Plane, ...]) -> Time:
    """``kubectl apply`` of the whole folder; not the first, which enters it as another manager."""
    side = Side(agent.plane, planes)
    rendered = agent.repository.parent / "rendered.yaml"
    line = [sys.executable, "-m", "gitops_mcp", "render", "--ref", "HEAD", str(agent.repository)]
    rendered.write_bytes(command(line))
    kubectl("apply", side, rendered)
    cost = side.measured(lambda: kubectl("apply", side, rendered))
    return Time(cost.wall, cost.own)


# --- a fleet from nothing, and idleness -----------------------------------------------------


@dataclass(frozen=True)
class Made:
    """What it took until a fleet was Ready."""

    time: Time
    requests: Counter[tuple[str, str]]


@dataclass(frozen=True)
class Idle:
    """What an agent did while nothing happened."""

    minutes: float
    cpu: float
    requests: Counter[tuple[str, str]]

    @property
    def percent(self) -> float:
        """Of a core."""
        return self.cpu / (self.minutes * 60) * 100


def fleet(count: int, minutes: float) -> tuple[Made, Made, Idle]:
    """A fleet with pods, made by the agent and made bare, and the agent beside it when all is
    done."""
    whole = sources(count, replicas=1)
    shared = {path: data for path, data in whole.items() if path.startswith(VARS)}
    with living(shared, namespaces_of(whole)) as agent:
        agent.until_ready()
        agent.until_quiet()
        seen = Seen(agent.cluster, API_VERSION, KIND, phase_of)
        agent.push(whole)
        ours = timed(agent.tell, lambda _: _now_that(seen, "Ready", count))
        made = Made(ours, agent.requests())
        seen.stop()
        say(f"{count} servers are Ready")
        agent.until_quiet()
        floor = bare(agent, count, namespaces_of(whole))
        say("the floor is taken")
        agent.until_quiet()
        before = agent.cpu
        time.sleep(minutes * 60)
        return made, floor, Idle(minutes, agent.cpu - before, agent.requests())


def _now_that(seen: Seen, fact: str, count: int) -> float:
    seen.all(fact, count)
    return time.monotonic()


def bare(agent: Living, count: int, namespaces: Iterable[str]) -> Made:
    """The agent's fleet once more on a plane of its own: each object one PATCH, a status before its
    Deployment is available, and one after."""
    options = SourceOptions(str(agent.repository), ref="HEAD")
    with reading.open_repository(options) as repository:
        repository.poll()
        objects = reading.read(options, repository).rendered()
    crs, _ = agent.cluster.list(API_VERSION, KIND, None)
    statuses = {key_of({"kind": KIND, **cr}): cr["status"] for cr in crs}
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(rig.control_plane())
        make_namespaces(plane, namespaces)
        cluster = Cluster(str(plane.kubeconfig()))
        stack.callback(cluster.close)
        watching = Cluster(str(plane.kubeconfig()), user_agent=BENCH)
        stack.callback(watching.close)
        pool = stack.enter_context(ThreadPoolExecutor(WORKERS))
        ready: list[ServerKey] = []

        def put_status(key: ServerKey, phase: str) -> None:
            metadata = {"name": key.name, "namespace": key.namespace}
            body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata}
            status = statuses[key] | {"phase": phase}
            cluster.apply(body | {"status": status}, subresource="status")

        def create(key: ServerKey) -> None:
            first, *children = objects[key]
            uid = cluster.apply(first)["metadata"]["uid"]
            put_status(key, "Pending")
            owner = {"apiVersion": API_VERSION, "kind": KIND, "name": key.name, "uid": uid}
            for child in children:
                metadata = child["metadata"] | {"ownerReferences": [owner | {"controller": True}]}
                cluster.apply(child | {"metadata": metadata})

        def finish(key: ServerKey) -> None:
            put_status(key, "Ready")
            ready.append(key)

        def heard(key: ServerKey, fact: str) -> None:
            if fact:
                pool.submit(finish, key)

        seen = Seen(watching, "apps/v1", "Deployment", is_available, heard)
        stack.callback(seen.stop)
        phases = Seen(watching, API_VERSION, KIND, phase_of)
        stack.callback(phases.stop)
        Side(plane, (plane, agent.plane)).measured(lambda: None)  # at rest
        plane.requests()
        made = timed(
            lambda: [future.result() for future in [pool.submit(create, key) for key in objects]],
            lambda _: _now_that(phases, "Ready", count),
        )
        assert len(ready) == count, len(ready)
        return Made(made, asked(plane.requests()))


# --- the tables -----------------------------------------------------------------------------


def latency_table(found: Latency, small: int, middle: int, large: int) -> list[str]:
    """Prints the rows; returns the bars that do not hold, in words."""
    few, many = found.push[small], found.push[large]
    print("| | servers | p50, s | p95, s | own p50, s | own p95, s | bar |")
    print("|---|---|---|---|---|---|---|")
    for count, times in sorted(found.push.items()):
        bar = f"p95 ≤ {PUSH_BAR} s" if count == middle else ""
        if count == large:
            bar = f"p50 ≤ {SIZE_BAR} of few: **{many.median() / few.median():.2f}**"
        _row("push → applied", count, times, bar)
    _row("drift → healed", middle, found.drift, f"p95 ≤ {DRIFT_BAR:.0f} s")
    ratio = found.push[middle].p95() / found.kubectl.own
    _row(
        "`kubectl apply --server-side` of the folder",
        middle,
        Times([found.kubectl]),
        f"push ≤ 1/10 of it: **1/{1 / ratio:.0f}**",
    )
    broken = []
    if found.push[middle].p95() > PUSH_BAR:
        broken.append(f"a push takes more than {PUSH_BAR} s")
    if ratio > KUBECTL_BAR:
        broken.append("a push takes more than a tenth of kubectl's apply")
    if many.median() > SIZE_BAR * few.median():
        broken.append(f"a push among {large} takes more than {SIZE_BAR} times one among {small}")
    if found.drift.p95() > DRIFT_BAR:
        broken.append(f"a drift lasts longer than {DRIFT_BAR} s")
    return broken


def _row(name: str, count: int, times: Times, bar: str) -> None:
    cells = [
        f"{value(clock):.3f}" for clock in ("wall", "own") for value in (times.median, times.p95)
    ]
    if len(times.each) == 1:
        cells[1] = cells[3] = ""
    print(f"| {name} | {count:,} | {' | '.join(cells)} | {bar} |")


def fleet_table(count: int, made: Made, floor: Made, idle: Idle) -> list[str]:
    """Prints the rows; returns the bars that do not hold, in words."""
    print(f"| {count:,} servers, one pod each | wall s | own s | of floor | requests |")
    print("|---|---|---|---|---|")
    for name, one in (
        ("**one push, until all are Ready**", made),
        ("the same objects, bare (the floor)", floor),
    ):
        ratio = one.time.own / floor.time.own
        text = _listed(one.requests)
        print(f"| {name} | {one.time.wall:.1f} | {one.time.own:.1f} | {ratio:.2f} | {text} |")
    print()
    print(f"| idle, {count:,} Ready servers | | bar |")
    print("|---|---|---|")
    print(f"| CPU, % of a core | **{idle.percent:.2f}** | {IDLE_BAR:.0f} |")
    print(f"| requests in {idle.minutes:g} min | {_listed(idle.requests)} | Leases, watches |")
    broken = []
    if idle.percent >= IDLE_BAR:
        broken.append(f"an idle agent takes {IDLE_BAR:.0f} % of a core or more")
    if more := beyond_renewals(idle.requests):
        broken.append(f"an idle agent asks for more than it has to renew: {_listed(more)}")
    return broken


def _listed(requests: Counter[tuple[str, str]]) -> str:
    return ", ".join(
        f"{count:,} {verb} {resource}" for (verb, resource), count in requests.most_common()
    )


def say(text: str) -> None:
    """How far it is."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--servers", type=int, default=1000)
    parser.add_argument("--small", type=int, default=50)
    parser.add_argument("--large", type=int, default=5000)
    parser.add_argument("--times", type=int, default=20, help="pushes, and drifts")
    parser.add_argument("--idle", type=float, default=5, help="minutes")
    parser.add_argument("--only", choices=("latency", "fleet"), help="one of the two parts")
    given = parser.parse_args()
    sizes = given.small, given.servers, given.large
    broken: list[str] = []
    load = os.getloadavg()[1]
    try:
        if given.only != "fleet":
            found = latency(*sizes, given.times)
            broken += latency_table(found, *sizes)
            print()
        if given.only != "latency":
            broken += fleet_table(given.servers, *fleet(given.servers, given.idle))
    except Unavailable as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    print(
        f"\nload of the machine: {load:.1f} at the beginning, {os.getloadavg()[1]:.1f} at the end"
    )
    for bar in broken:
        print(f"broken: {bar}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
