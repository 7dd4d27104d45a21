"""Passes over a cluster: with nothing to do, and with one change, among few servers and many.

    python benchmarks/passes.py [--small 50] [--large 5000] [--cluster plane]

"First" is what a new process pays (``gitops-mcp sync``), "again" what a long-lived one does (the
agent). Prints a table and ends with 1 where a bar is broken. CPU is this process's; the cluster
runs in another, on the same machine. Servers have no pods unless ``--replicas`` says so.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import rig
from fleet import files

from gitops_mcp.base.model import Report
from gitops_mcp.cli.main import spare_the_collector
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.cluster.reads import PAGE
from gitops_mcp.cluster.view import WATCHED
from gitops_mcp.source import manifests
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync import pipeline, reading, syncoptions

CHANGE_BAR = 1.25
"""CPU of a pass with one change over one with none, at any size: noise included."""
CHANGE_WRITES = 5
"""One changed server: its MCPServer, its Deployment, and the status before and after."""
REPEATS = 3
CREATE = syncoptions.SyncOptions(create_namespace=True)


@dataclass(frozen=True)
class Cost:
    """What one pass cost."""

    wall: float
    cpu: float
    requests: Counter[str]

    @property
    def writes(self) -> int:
        return self.requests.total() - self.requests["list"] - self.requests["get"]


class Passes:
    """Passes of one source over one cluster, in this process."""

    def __init__(self, kubeconfig: Path, repository: Path) -> None:
        self._requests: Counter[str] = Counter()
        self.cluster = Cluster(str(kubeconfig), observe=self._observe)
        self._options = SourceOptions(str(repository), ref="HEAD")
        self._repository = reading.open_repository(self._options)
        self._cache = manifests.Cache()

    def __enter__(self) -> Passes:
        self._repository.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._repository.__exit__(*error)
        self.cluster.close()

    def _observe(self, operation: str, _kind: str, _status: int) -> None:
        verb = operation.split()[0]
        if verb not in ("ask", "watch"):
            self._requests[verb] += 1

    def one(self, wishes: syncoptions.SyncOptions = CREATE) -> Cost:
        """One pass; all its servers must end well."""
        self._requests.clear()
        wall, cpu = time.monotonic(), time.process_time()
        self._repository.poll()
        source = reading.read(self._options, self._repository, cache=self._cache)
        report = pipeline.Pass(source, self.cluster, self._options, wishes).run()
        cost = Cost(time.monotonic() - wall, time.process_time() - cpu, Counter(self._requests))
        check(report)
        return cost


def check(report: Report) -> None:
    """A benchmark of failures would be none."""
    bad = [
        outcome for outcome in report.outcomes if outcome.result not in ("ok", "changed", "pruned")
    ]
    assert not bad, bad[:3]


def median(costs: list[Cost]) -> Cost:
    """The middle in time, with the requests of the last."""
    return Cost(
        statistics.median(cost.wall for cost in costs),
        statistics.median(cost.cpu for cost in costs),
        costs[-1].requests,
    )


# --- at rest, and one change ----------------------------------------------------------------


def at_rest(kind: str, count: int, replicas: int) -> tuple[Cost, Cost, Cost]:
    """A fleet that is made by ``sync``, then passes: the first, more of them, one change each."""
    with rig.folder() as repository, rig.running(kind) as kubeconfig:
        rig.commit(repository, files(count, replicas=replicas))
        sync = [sys.executable, "-m", "gitops_mcp", "sync", "--ref", "HEAD", "--create-namespace"]
        where = ["--kubeconfig", str(kubeconfig), "--quiet", str(repository)]
        subprocess.run([*sync, *where], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        with Passes(kubeconfig, repository) as passes:
            settle(passes)
        with Passes(kubeconfig, repository) as passes:
            first = passes.one()
            again = median([passes.one() for _ in range(REPEATS)])
            changes = []
            for number in range(1, REPEATS + 1):
                rig.commit(repository, files(count, changed=number, replicas=replicas))
                changes.append(passes.one())
                settle(passes)
        return first, again, median(changes)


def settle(passes: Passes) -> None:
    """Until the cluster has done its part, and the last status is written."""
    for _ in range(60):
        if passes.one().writes == 0:
            return
        time.sleep(1)
    raise AssertionError("a fleet that does not come to rest")


# --- the table ------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cluster", choices=rig.CHOICES, default="sandbox")
    parser.add_argument("--small", type=int, default=50)
    parser.add_argument("--large", type=int, default=5000)
    parser.add_argument("--replicas", type=int, default=0, help="pods of each server")
    given = parser.parse_args()
    spare_the_collector()
    broken = False

    print(f"on a {given.cluster}, {given.replicas} pod(s) a server")
    print(f"{'servers':>7}  {'pass':12}{'wall s':>8}{'CPU s':>8}{'x again':>9}  requests")
    for count in (given.small, given.large):
        first, again, one = at_rest(given.cluster, count, given.replicas)
        for name, cost in (("first", first), ("again", again), ("one change", one)):
            text = ", ".join(f"{number} {verb}" for verb, number in sorted(cost.requests.items()))
            ratio = cost.cpu / again.cpu
            print(f"{count:7}  {name:12}{cost.wall:8.3f}{cost.cpu:8.3f}{ratio:9.2f}  {text}")
        pages = len(WATCHED) * math.ceil(count * max(given.replicas, 1) / PAGE)
        broken |= first.writes + again.writes > 0 or again.requests["list"] > pages
        broken |= one.writes > CHANGE_WRITES
        broken |= count == given.large and one.cpu > CHANGE_BAR * again.cpu
    print(f"peak memory of this process: {peak()} MiB")

    if broken:
        print("a bar is broken")
    return int(broken)


def peak() -> int:
    """The process's highest memory use so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    sys.exit(main())
