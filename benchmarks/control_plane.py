"""The line on a real control plane, beside the bare requests of its objects and beside kubectl.

    python benchmarks/control_plane.py [--servers 1000]        (after `make plane`)

Three new planes at once: on one works gitops-mcp, on one the floor (the same objects as bare
server-side PATCHes, by as many threads), on one kubectl with what ``gitops-mcp render`` printed.
Each step is taken by one after the other, so that all see the same machine. "Own" seconds are wall
seconds less the share of the cores that went to anything but this process and its planes: the same
on an idle machine. Requests are those of the API server's audit log. Servers have no pods (replicas
0). Prints a table and ends with 1 where a bar is broken: creation at most 1.15 times the same
requests bare; where there is nothing to do one LIST a kind, in pages of 500, and no PATCH; one
change, no PATCH but its own. Linux only, as the planes are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import rig
from fleet import files
from passes import CHANGE_WRITES, Passes, settle
from plane import Plane, Request, Unavailable

from gitops_mcp.base.names import KIND, JsonObject, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.cli.main import spare_the_collector
from gitops_mcp.cluster.kinds import PLURALS
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.cluster.reads import PAGE
from gitops_mcp.cluster.view import WATCHED, key_of
from gitops_mcp.sync import fleet

CREATE_BAR = 1.15
"""Creation over the same requests, bare."""
CHANGED = 10
VARS = "group_vars"
TICKS = os.sysconf("SC_CLK_TCK")
QUIET = 2.0
"""Seconds without a write of the controllers after which they have done their part."""


@dataclass(frozen=True)
class Cost:
    """What one step cost one of the three."""

    wall: float
    own: float
    """Wall seconds, less what other work took of the machine."""
    cpu: float
    """Of the client's own process."""
    requests: list[Request]

    @property
    def verbs(self) -> Counter[str]:
        """How many requests of each verb, dry runs apart."""
        return Counter(
            f"dry-run {one.verb}" if "dryRun=All" in one.uri else one.verb for one in self.requests
        )


@dataclass(frozen=True)
class Side:
    """One of the planes, and the only client that works on it."""

    plane: Plane
    planes: tuple[Plane, ...]

    @property
    def kubeconfig(self) -> str:
        return str(self.plane.kubeconfig())

    def measured(self, work: Callable[[], object]) -> Cost:
        """One step, begun when all of the planes are at rest: they share a machine."""
        _quiet(self.planes)
        start = Clocks.read()
        work()
        end = Clocks.read()
        return Cost(
            end.wall - start.wall,
            end.own - start.own,
            end.client - start.client,
            self.plane.requests(user="admin"),
        )


def _quiet(planes: Iterable[Plane]) -> None:
    """Wait until the controllers of all have done their part."""
    while True:
        for each in planes:
            each.requests()
        time.sleep(QUIET)
        done = [one for each in planes for one in each.requests(user="controller")]
        if not any(one.writes and one.namespace.startswith("team-") for one in done):
            return


@dataclass(frozen=True)
class Clocks:
    """What time it is, in seconds: of the wall, of the client's CPU, and without other work."""

    wall: float
    own: float
    client: float

    @classmethod
    def read(cls) -> Clocks:
        """Now. The client is this process, and those that it has waited for."""
        wall = time.monotonic()
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        client = time.process_time() + ended.ru_utime + ended.ru_stime
        others = _machine() - client - _running_children()
        return cls(wall, wall - others / (os.cpu_count() or 1), client)


def _machine() -> float:
    """CPU seconds of all work since the start of the machine, and of its host's other guests."""
    _, user, nice, system, _idle, _wait, irq, softirq, steal, *_ = (
        Path("/proc/stat").read_text().partition("\n")[0].split()
    )
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / TICKS


def _running_children() -> float:
    """CPU seconds of this process's children, such as the planes' programs, and of theirs."""
    ticks = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS


# --- the three ------------------------------------------------------------------------------


def command(arguments: Sequence[str], *, exits: int = 0, **variables: str) -> bytes:
    """What a process prints, that must end with this code."""
    environment = os.environ | variables
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True)
    if done.returncode != exits:
        raise RuntimeError(f"{arguments[:4]} ended with {done.returncode}: {done.stderr[-2000:]!r}")
    return done.stdout


def verb(name: str, kubeconfig: str, repository: Path, *more: str, exits: int = 0) -> bytes:
    """One verb of our command line, on the repository's HEAD, as a new process."""
    line = [sys.executable, "-m", "gitops_mcp", name, "--ref", "HEAD", *more]
    return command([*line, "--kubeconfig", kubeconfig, str(repository)], exits=exits)


def kubectl(name: str, side: Side, file: Path, *, exits: int = 0) -> bytes:
    """``kubectl apply`` or ``diff`` of a file, the server-side way."""
    line = [str(side.plane.bin / "kubectl"), name, "--server-side", "-f", str(file)]
    variables = {"KUBECONFIG": side.kubeconfig, "KUBECACHEDIR": str(file.parent)}
    return command(line, exits=exits, **variables)


Apply = tuple[JsonObject, JsonObject]
"""The body of one apply, and its options."""


class Recorder(Cluster):
    """A connection that remembers its applies."""

    def __init__(self, kubeconfig: str) -> None:
        super().__init__(kubeconfig)
        self.sent: list[Apply] = []

    def apply(self, body: JsonObject, **options: Any) -> LiveObject:
        """As ever."""
        self.sent.append((body, options))
        return super().apply(body, **options)


class Bare:
    """The floor: a fleet's objects as bare PATCHes, by as many threads as a pass has."""

    def __init__(self, kubeconfig: str) -> None:
        self._cluster = Cluster(kubeconfig)
        self._bodies: list[JsonObject] = []

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *error: object) -> None:
        self._cluster.close()

    @property
    def kinds(self) -> Counter[str]:
        """How many objects there are, by their kind's plural."""
        return Counter(PLURALS[body["apiVersion"], body["kind"]] for body in self._bodies)

    def create(self, sent: Iterable[Apply]) -> None:
        """The very applies that made the fleet elsewhere, a server's in their order."""
        servers: dict[ServerKey, list[Apply]] = {}
        for body, options in sent:
            servers.setdefault(key_of(body), []).append((body, options))
        with ThreadPoolExecutor(fleet.WORKERS) as pool:
            list(pool.map(self._create, servers.values()))

    def _create(self, applies: list[Apply]) -> None:
        uids: dict[str, str] = {}
        for body, options in applies:
            metadata = body["metadata"]
            if owners := metadata.get("ownerReferences"):  # have another uid on this plane
                metadata = metadata | {"ownerReferences": [owners[0] | {"uid": uids[KIND]}]}
            known = body | {"metadata": metadata}
            uid = uids[body["kind"]] if options.get("uid") else None
            answer = self._cluster.apply(known, **options | {"uid": uid, "resource_version": None})
            uids[body["kind"]] = answer["metadata"]["uid"]
            if not options.get("subresource"):
                self._bodies.append(known)

    def send(self, *, changed: int = 0, dry_run: bool = False) -> None:
        """One PATCH an object; those of the first ``changed`` servers have another image."""
        bodies = [_changed(body, changed) for body in self._bodies]
        with ThreadPoolExecutor(fleet.WORKERS) as pool:
            list(pool.map(lambda body: self._cluster.apply(body, dry_run=dry_run), bodies))


def _changed(body: JsonObject, count: int) -> JsonObject:
    """The object with another image, if it is one of the first ``count`` servers'."""
    number = int(body["metadata"]["name"].rpartition("-")[2])
    if number >= count or body["kind"] == "Service":
        return body
    copy: JsonObject = json.loads(json.dumps(body))
    bears = copy["spec"]
    if body["kind"] == "Deployment":
        bears = bears["template"]["spec"]["containers"][0]
    bears["image"] += "-next"
    return copy


# --- the steps ------------------------------------------------------------------------------

Steps = dict[str, dict[str, Cost]]
"""By step and by who took it; FLOOR is who it is compared with."""
FLOOR = "bare PATCHes (the floor)"
PASS, SYNC, DIFF = "a pass of the agent", "gitops-mcp sync", "gitops-mcp diff"
APPLY, KUBECTL_DIFF = "kubectl apply", "kubectl diff"
CREATE, NOTHING, ONE = "create all", "nothing to do", "one change"
DIFF_NOTHING, DIFF_TEN = "diff, nothing", f"diff, {CHANGED} changed"


def measure(count: int) -> tuple[Steps, Counter[str]]:
    """Every step by everyone, and how many objects there are, by their kind's plural."""
    with contextlib.ExitStack() as stack:
        repository, folder = (stack.enter_context(rig.folder()) for _ in range(2))
        planes = tuple(stack.enter_context(rig.control_plane()) for _ in range(3))
        ours, floor, kubectls = (Side(each, planes) for each in planes)
        fleets = [files(count, changed=changed, replicas=0) for changed in (0, 1, 2, 2 + CHANGED)]
        for each in planes:
            make_namespaces(each, {file.path.partition("/")[0] for file in fleets[0]} - {VARS})

        # What kubectl gets is rendered beforehand, and no part of its times.
        rendered = [folder / f"{number}.yaml" for number in range(len(fleets))]
        for file, source in zip(reversed(rendered), reversed(fleets), strict=True):
            rig.commit(repository, source)
            file.write_bytes(_render(repository))

        def by_kubectl(name: str, number: int, exits: int = 0) -> Cost:
            return kubectls.measured(lambda: kubectl(name, kubectls, rendered[number], exits=exits))

        def by_verb(name: str, *more: str, exits: int = 0) -> Cost:
            return ours.measured(
                lambda: verb(name, ours.kubeconfig, repository, *more, exits=exits)
            )

        passes = stack.enter_context(Passes(planes[0].kubeconfig(), repository))
        recorder = passes.cluster = Recorder(ours.kubeconfig)
        bare = stack.enter_context(Bare(floor.kubeconfig))
        steps: Steps = {
            CREATE: {
                PASS: ours.measured(passes.one),
                FLOOR: floor.measured(lambda: bare.create(recorder.sent)),
                APPLY: by_kubectl("apply", 0),
            }
        }
        settle(passes)
        steps[NOTHING] = {
            PASS: ours.measured(passes.one),
            SYNC: by_verb("sync"),
            FLOOR: floor.measured(bare.send),
            APPLY: by_kubectl("apply", 0),
        }
        steps[DIFF_NOTHING] = {
            DIFF: by_verb("diff"),
            FLOOR: floor.measured(lambda: bare.send(dry_run=True)),
            KUBECTL_DIFF: by_kubectl("diff", 0),
        }
        rig.commit(repository, fleets[1])
        steps[ONE] = {PASS: ours.measured(passes.one)}
        settle(passes)
        rig.commit(repository, fleets[2])
        steps[ONE] |= {
            SYNC: by_verb("sync"),
            FLOOR: floor.measured(lambda: bare.send(changed=2)),
            APPLY: by_kubectl("apply", 1),
        }
        settle(passes)
        rig.commit(repository, fleets[3])
        summary = json.loads(verb("diff", ours.kubeconfig, repository, "-o", "json", exits=1))
        assert summary["summary"]["update"] == CHANGED, summary["summary"]
        steps[DIFF_TEN] = {
            DIFF: by_verb("diff", exits=1),
            FLOOR: floor.measured(lambda: bare.send(changed=2 + CHANGED, dry_run=True)),
            KUBECTL_DIFF: by_kubectl("diff", 3, exits=1),
        }
        return steps, bare.kinds


def _render(repository: Path) -> bytes:
    return command([sys.executable, "-m", "gitops_mcp", "render", "--ref", "HEAD", str(repository)])


def make_namespaces(plane: Plane, names: Iterable[str]) -> None:
    """Namespaces of these names, which are not there yet."""
    for name in names:
        status, answer = plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        assert status == 201, answer


# --- the bars -------------------------------------------------------------------------------


def broken(steps: Steps, objects: Counter[str]) -> list[str]:
    """The bars that do not hold, in words. ``objects``: how many there are by plural."""
    found = []
    create = steps[CREATE]
    if create[PASS].verbs["patch"] != create[FLOOR].verbs["patch"]:
        found.append("the floor of creation is not the same requests")
    if create[PASS].own > CREATE_BAR * create[FLOOR].own:
        found.append(f"creation takes more than {CREATE_BAR} times the same requests bare")
    pages = {
        plural: max(1, math.ceil(objects[plural] / PAGE))
        for plural in (PLURALS[watched.api_version, watched.kind] for watched in WATCHED)
    }
    for step, who in (
        (NOTHING, PASS),
        (NOTHING, SYNC),
        (DIFF_NOTHING, DIFF),
        (ONE, PASS),
        (ONE, SYNC),
    ):
        requests = steps[step][who].requests
        lists = [one for one in requests if one.verb == "list"]
        listed = Counter(one.resource for one in lists)
        if listed != {resource: pages.get(resource, 1) for resource in pages | listed}:
            found.append(f"{step}, {who}: not one LIST a kind, in pages of {PAGE}")
        if any(f"limit={PAGE}" not in one.uri for one in lists):
            found.append(f"{step}, {who}: a LIST without its limit")
        allowed = CHANGE_WRITES if step == ONE else 0
        if sum(one.verb == "patch" for one in requests) > allowed:
            found.append(f"{step}, {who}: more than {allowed} PATCHes")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--servers", type=int, default=1000)
    count = parser.parse_args().servers
    spare_the_collector()
    try:
        steps, objects = measure(count)
    except Unavailable as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    shown = ", ".join(f"{number} {plural}" for plural, number in objects.items())
    print(f"{count} servers, replicas 0, on real control planes: {shown}")
    print(f"{'':18}{'':26}{'wall s':>8}{'own s':>8}{'x floor':>9}{'CPU s':>8}  requests")
    for step, costs in steps.items():
        for who, cost in costs.items():
            ratio = cost.own / costs[FLOOR].own
            text = ", ".join(f"{number} {verb}" for verb, number in cost.verbs.most_common())
            times = f"{cost.wall:8.2f}{cost.own:8.2f}{ratio:9.2f}{cost.cpu:8.2f}"
            print(f"{step:18}{who:26}{times}  {text}")
    bars = broken(steps, objects)
    for bar in bars:
        print(f"broken: {bar}")
    return int(bool(bars))


if __name__ == "__main__":
    sys.exit(main())
