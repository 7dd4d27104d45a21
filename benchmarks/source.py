"""A source that is followed, from git to servers: among few of them and many.

    python benchmarks/source.py [--small 50] [--large 5000]

An idle look, one changed manifest from the push to the servers, and what is kept in memory; by a
repository's path and over HTTP (``git http-backend``, in this process). CPU is of everything, the
git server included; a median. Prints a table and ends with 1 where a bar is broken.
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fleet import files
from gitfixtures import GitServer, bare, commit, git

from gitops_mcp.source import manifests
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync import reading

CHANGE_BAR = 1.2
"""CPU of one change among many over that among few."""
MEMORY_BAR = 35.0
"""MB for 5,000 servers, in proportion for others."""
REPEATS = 15
PADDING = f"# {'why it is so, in the words of its team ' * 9}\n"
"""Makes a manifest of a kilobyte."""


class Fleet:
    """A repository of so many manifests."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self.path = bare(folder / f"fleet-{count}.git")
        texts = {file.path: (file.data or b"").decode() + PADDING for file in files(count)}
        commit(self.path, dict(texts))
        git(self.path, "gc", "--quiet")
        self._one = next(path for path in texts if path.endswith("/tools-8.yaml"))
        self._text = texts[self._one]
        self._port = 1000

    def change(self) -> None:
        """Push another port of one server."""
        self._port += 1
        commit(self.path, {self._one: f"{self._text}  port: {self._port}\n"})


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU, and of the clock."""

    def cpu() -> float:
        both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, both))

    before, began = cpu(), time.monotonic()
    work()
    return cpu() - before, time.monotonic() - began


class Follower:
    """Follows a fleet as the agent does."""

    def __init__(self, fleet: Fleet, location: str) -> None:
        self.count = fleet.count
        self.idle: list[float] = []
        self.change: list[float] = []
        self.wall: list[float] = []
        self._fleet = fleet
        self._options = SourceOptions(location, branch="main")
        self._repository = reading.open_repository(self._options)
        self._cache = manifests.Cache()
        self._source = reading.read(self._options, self._repository, cache=self._cache)

    def close(self) -> None:
        self._repository.close()

    def look(self) -> None:
        """Once in vain, and once for a change."""
        self.idle.append(measured(self._repository.poll)[0])
        self._fleet.change()
        cpu, wall = measured(self._adopt)
        self.change.append(cpu)
        self.wall.append(wall)

    def _adopt(self) -> None:
        former = self._source
        assert self._repository.poll().kind == "moved"
        self._source = reading.read(
            self._options, self._repository, cache=self._cache, former=former
        )
        assert len(manifests.changed(former.loaded, self._source.loaded)) == 1

    def row(self, floor: Follower) -> tuple[str, float]:
        """What it came to, and how many times that of ``floor``."""
        ratio = statistics.median(
            mine / theirs for mine, theirs in zip(self.change, floor.change, strict=True)
        )
        times = "".join(
            f"{statistics.median(each) * 1e3:7.1f} ms"
            for each in (self.idle, self.change, self.wall)
        )
        return f"{self.count:8}{times}{ratio:9.2f}", ratio


def kept(fleet: Fleet) -> float:
    """MB of a source that was read, all that the next look needs included."""
    options = SourceOptions(str(fleet.path))
    gc.collect()
    tracemalloc.start()
    with reading.open_repository(options) as repository:
        cache = manifests.Cache()
        source = reading.read(options, repository, cache=cache)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        assert source.loaded.servers
    tracemalloc.stop()
    return size / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--small", type=int, default=50)
    parser.add_argument("--large", type=int, default=5000)
    sizes = parser.parse_args()
    broken = False
    with tempfile.TemporaryDirectory(prefix="gitops-mcp-bench-") as made:
        folder = Path(made)
        fleets = [Fleet(folder, count) for count in (sizes.small, sizes.large)]
        print(f"{'':8}{'servers':>8}{'idle':>10}{'change':>10}{'wall':>10}{'x small':>9}{'bar':>6}")
        with GitServer(folder) as server:
            for name, where in (("path", str(folder)), ("HTTP", server.url)):
                few, many = (Follower(each, f"{where}/{each.path.name}") for each in fleets)
                for _ in range(REPEATS):  # in turn: what else the machine does meets both
                    few.look()
                    many.look()
                for follower in (few, many):
                    row, ratio = follower.row(few)
                    print(f"{name:8}{row}{CHANGE_BAR if follower is many else '':>6}")
                    broken = broken or ratio > CHANGE_BAR
                    follower.close()
        memory = kept(fleets[1])
        allowed = MEMORY_BAR * sizes.large / 5000
        print(f"kept in memory: {memory:.1f} MB for {sizes.large} servers (bar {allowed:.0f})")
    return int(broken or memory > allowed)


if __name__ == "__main__":
    sys.exit(main())
