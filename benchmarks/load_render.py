"""Load and render a fleet: cold, again, and after a change; beside the parsing of its YAML alone.

    python benchmarks/load_render.py [--servers 5000]

Prints a table and ends with 1 where a bar is broken: 3 s for 5,000 servers from nothing (imports
of what is used included), 0.1 s for one changed manifest. The bars are held against CPU seconds: it
runs in one thread and waits for nothing, so that is its time on an idle machine. Ratios are to the
floor, so they can be compared between machines.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import yaml
from fleet import files

from gitops_mcp.base import resources
from gitops_mcp.base.source import Loaded, SourceFile
from gitops_mcp.source import manifests, serverschema
from gitops_mcp.source.rendering import Renderer

COLD_BAR = 3.0
CHANGE_BAR = 0.1


class Pipeline:
    """The first two steps of the line, with the caches that a long-lived process keeps."""

    def __init__(self) -> None:
        self._cache = manifests.Cache()
        self._last = Loaded({})
        self._renderer: Renderer | None = None

    def run(self, source: tuple[SourceFile, ...]) -> int:
        """Load everything and render what differs from the last time; the number of objects."""
        loaded = manifests.load(source, cluster="default", namespace="default", cache=self._cache)
        assert not loaded.problems, loaded.problems[:3]
        if self._renderer is None:
            self._renderer = Renderer(
                resources.folder("templates"), source="b", variables=loaded.variables
            )
        objects = 0
        for key in manifests.changed(self._last, loaded):
            cr = serverschema.defaulted(self._renderer.custom_resource(loaded.servers[key]))
            objects += 1 + len(self._renderer.children(cr))
        self._last = loaded
        return objects


def parse(source: tuple[SourceFile, ...]) -> int:
    """The floor: nothing but what the YAML parser needs for these bytes."""
    return sum(1 for file in source for _ in yaml.parse(file.data or b"", Loader=yaml.CSafeLoader))


class Timed:
    """One run: CPU and wall seconds, and the number of objects that it made."""

    def __init__(self, work: Callable[[], int]) -> None:
        cpu, wall = time.process_time(), time.monotonic()
        self.objects = work()
        self.cpu, self.wall = time.process_time() - cpu, time.monotonic() - wall


def resident() -> int:
    """The process's highest memory use so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--servers", type=int, default=5000)
    count = parser.parse_args().servers

    source, one_changed, fifty_changed = (files(count, changed=changed) for changed in (0, 1, 50))
    floor = Timed(lambda: parse(source))
    before = resident()
    pipeline = Pipeline()
    cold = Timed(lambda: pipeline.run(source))
    after = resident()
    again = Timed(lambda: pipeline.run(source))
    one = Timed(lambda: pipeline.run(one_changed))
    fifty = Timed(lambda: pipeline.run(fifty_changed))

    print(f"{count} servers, {cold.objects} objects; {after - before} MiB for all of it")
    print(f"{'':28}{'CPU s':>9}{'wall s':>9}{'x floor':>9}{'bar':>7}")
    for what, run, bar in (
        ("YAML parsing alone (floor)", floor, None),
        ("cold", cold, COLD_BAR),
        ("nothing changed", again, CHANGE_BAR),
        ("one manifest changed", one, CHANGE_BAR),
        ("fifty manifests changed", fifty, None),
    ):
        ratio = run.cpu / floor.cpu
        print(f"{what:28}{run.cpu:9.3f}{run.wall:9.3f}{ratio:9.2f}{bar or '':>7}")
    return int(cold.cpu > COLD_BAR or max(again.cpu, one.cpu) > CHANGE_BAR)


if __name__ == "__main__":
    sys.exit(main())
