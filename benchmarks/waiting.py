"""Many servers that wait at once: for their pods, and in their drain windows.

    python benchmarks/waiting.py [--servers 200] [--cluster plane]

One pass makes them and waits until all are Ready; the next, with nothing left in git, shuts all of
them down. Ends with 1 where a wait holds a worker: the drain windows of all the servers, shared by
so many workers, would take longer than the bar.
"""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import rig
from fleet import files
from passes import Cost, Passes

from gitops_mcp.cli.main import spare_the_collector
from gitops_mcp.decide.pruning import Allowance
from gitops_mcp.sync import fleet
from gitops_mcp.sync.syncoptions import SyncOptions

DRAIN = 3
"""Seconds."""
READY = SyncOptions(create_namespace=True, ready_within=timedelta(minutes=10))
PRUNE = SyncOptions(allow_prune=Allowance(None, "the benchmark"))


def measured(kind: str, count: int) -> tuple[Cost, Cost]:
    """Until all are Ready; until all are gone."""
    drain = f"  drain: {{timeout: {DRAIN}s, preStop: 0s}}"
    with rig.folder() as repository, rig.running(kind) as kubeconfig:
        servers = files(count, replicas=1, defaults=drain)
        rig.commit(repository, servers)
        with Passes(kubeconfig, repository) as passes:
            ready = passes.one(READY)
            for file in servers:
                (repository / file.path).unlink()
            rig.commit(repository, ())
            return ready, passes.one(PRUNE)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cluster", choices=rig.CHOICES, default="sandbox")
    parser.add_argument("--servers", type=int, default=200)
    given = parser.parse_args()
    spare_the_collector()
    ready, gone = measured(given.cluster, given.servers)
    bar = given.servers * DRAIN / fleet.WORKERS
    print(f"{given.servers} servers on a {given.cluster}, drain {DRAIN} s")
    print(f"{'':22}{'wall s':>8}{'CPU s':>8}{'writes':>8}{'bar s':>8}")
    print(f"{'made, until Ready':22}{ready.wall:8.1f}{ready.cpu:8.1f}{ready.writes:8}")
    print(f"{'shut down, until gone':22}{gone.wall:8.1f}{gone.cpu:8.1f}{gone.writes:8}{bar:8.1f}")
    return int(gone.wall > bar)


if __name__ == "__main__":
    sys.exit(main())
