"""A new agent beside a fleet that is already as git says: how soon it is ready, and at what cost.

    python benchmarks/start.py [--servers 5000]        (after `make plane`)

On a real control plane a first ``gitops-mcp agent`` makes the fleet, each server with one pod, and
ends when nobody writes any more; then a second one is started. Both are processes of their own.
Ready is since when ``/readyz`` has said so without a break for ten seconds, asked every 20 ms: a
stand-by is ready, too, until it leads. What happens within those ten seconds counts.
Requests are those of the API server's audit log, memory is the process's peak as the kernel counts
it. Prints a table and ends with 1 where a bar is broken: no PATCH, one LIST a kind in pages of 500,
and at most 200 MiB. Linux only, as the planes are.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import rig
from fleet import files
from plane import Plane, Unavailable

from gitops_mcp.cluster.kinds import PLURALS
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.cluster.reads import PAGE
from gitops_mcp.cluster.view import WATCHED

MEMORY_BAR = 200
"""MiB at the most, with 5,000 servers."""
READY_WITHIN = 3600.0
"""Seconds after which the agent counts as one that never gets ready."""
QUIET = 10.0
"""Seconds that an agent is watched once it is ready: what it still has to do, it does in them."""
AGENT = "gitops-mcp"


@dataclass(frozen=True)
class Started:
    """What a start cost, in seconds, MiB, and requests by verb and resource."""

    ready: float
    cpu: float
    peak: int
    requests: Counter[tuple[str, str]]


def started(plane: Plane, repository: Path, *, at_rest: bool = False) -> Started:
    """Start an agent, wait until it is ready, ``at_rest`` also until nobody writes to the fleet any
    more, and end it."""
    port = _free_port()
    line = [sys.executable, "-m", "gitops_mcp", "agent", "--probes", "off", "--create-namespace"]
    where = ["--kubeconfig", str(plane.kubeconfig()), "--listen", f"127.0.0.1:{port}"]
    before = _children_cpu()
    plane.requests()
    began = time.monotonic()
    with subprocess.Popen(
        [*line, *where, str(repository)], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as agent:
        try:
            ready = None
            while ready is None or time.monotonic() - began < ready + QUIET:
                if agent.poll() is not None or time.monotonic() - began > READY_WITHIN:
                    raise RuntimeError(f"the agent is not ready; its exit code: {agent.poll()}")
                if not _is_ready(port):
                    ready = None
                elif ready is None:
                    ready = time.monotonic() - began
                time.sleep(0.02)
            requests = plane.requests()
            while at_rest and any(
                one.writes and one.namespace.startswith("team-") for one in requests
            ):
                time.sleep(QUIET)
                requests = plane.requests()
            peak = _peak(agent.pid)
        finally:
            agent.send_signal(signal.SIGTERM)
    asked = Counter((one.verb, one.resource) for one in requests if one.agent == AGENT)
    return Started(ready, _children_cpu() - before, peak, asked)


def _children_cpu() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def _is_ready(port: int) -> bool:
    with (
        contextlib.suppress(OSError),  # it does not listen yet, or says no
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer,
    ):
        return bool(answer.status == 200)
    return False


def _peak(pid: int) -> int:
    """The process's highest memory use so far, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) // 1024


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def measure(count: int) -> tuple[Started, Counter[str]]:
    """A start beside ``count`` servers, and how many objects there are, by their kind's plural."""
    with rig.folder() as repository, rig.control_plane() as plane:
        rig.commit(repository, files(count, replicas=1))
        started(plane, repository, at_rest=True)
        cluster = Cluster(str(plane.kubeconfig()))
        objects = _objects(cluster)
        cluster.close()
        return started(plane, repository), objects


def _objects(cluster: Cluster) -> Counter[str]:
    found: Counter[str] = Counter()
    for api_version, kind, selector in WATCHED:
        names, _ = cluster.list(
            api_version, kind, None, label_selector=selector, narrowed=lambda _: None
        )
        found[PLURALS[api_version, kind]] = len(names)
    return found


def broken(cost: Started, objects: Counter[str]) -> list[str]:
    """The bars that do not hold, in words."""
    found = []
    if patches := sum(n for (verb, _), n in cost.requests.items() if verb == "patch"):
        found.append(f"{patches} PATCHes, where nothing is to do")
    for plural, count in objects.items():
        pages = max(1, math.ceil(count / PAGE))
        if cost.requests["list", plural] != pages:
            found.append(f"{cost.requests['list', plural]} LISTs of {plural}, not {pages}")
    if cost.peak > MEMORY_BAR:
        found.append(f"more than {MEMORY_BAR} MiB")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--servers", type=int, default=5000)
    given = parser.parse_args()
    try:
        cost, objects = measure(given.servers)
    except Unavailable as reason:
        print(reason)
        return 1
    verbs: Counter[str] = Counter()
    for (verb, _), number in cost.requests.items():
        verbs[verb] += number
    print(f"{given.servers} servers already in sync: {objects.total()} objects in view")
    print(f"{'ready s':>8}{'CPU s':>8}{'peak MiB':>10}  requests")
    text = ", ".join(f"{number} {verb}" for verb, number in sorted(verbs.items()))
    print(f"{cost.ready:8.2f}{cost.cpu:8.2f}{cost.peak:10}  {text}")
    failed = broken(cost, objects)
    for words in failed:
        print(f"a bar is broken: {words}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
