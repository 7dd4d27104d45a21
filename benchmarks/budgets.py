"""What hostile input costs: files, texts, answers and objects as bad as they come.

    python benchmarks/budgets.py

Prints the slowest of each group beside ordinary input of the same length, as a ratio of CPU seconds
within this run, and ends with 1 where a ratio is over its bar. What grows with the square of the
length is hundreds of times as slow.
"""

from __future__ import annotations

import copy
import gzip
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hostile import HUGE, JSON_SHAPES, SHAPES, full
from stage import KEY, Stage

from gitops_mcp.base import answers
from gitops_mcp.base.masking import mask, masked, scrub
from gitops_mcp.base.names import JsonObject
from gitops_mcp.base.source import SourceFile
from gitops_mcp.git import complaints
from gitops_mcp.source.manifests import load

Run = Callable[[], object]


@dataclass(frozen=True)
class Group:
    """Inputs of one kind; ``bar`` is the largest ratio to the ordinary one. Of the two
    ordinary ones the first imports and compiles what is needed, and the second is measured: some
    results are cached."""

    name: str
    bar: float
    ordinary: tuple[Run, Run]
    hostile: Mapping[str, Run]


def cost(run: Run) -> float:
    """CPU seconds."""
    began = time.process_time()
    run()
    return time.process_time() - began


def files() -> Group:
    def read(path: str, text: str) -> None:
        load([SourceFile(path, "0" * 40, text.encode())], cluster="default")

    hostile = {name: partial(read, "a.yaml", text) for name, text in SHAPES.items()}
    hostile |= {
        f"group_vars: {name}": partial(read, "group_vars/all.yaml", text)
        for name, text in SHAPES.items()
    }
    hostile |= {
        f"JSON: {name}": partial(read, "a.json", text) for name, text in JSON_SHAPES.items()
    }
    return Group("a file of 256 KiB", 10, (hostile["manifests"],) * 2, hostile)


def texts() -> Group:
    def seen(text: str) -> None:
        scrub(text)
        mask({"config": {"SETTING": text[:16_000]}, "args": [text[:16_000]] * 2})

    parts = ("token", "a@", "--token ", "-", "a=", "--a=", "a b ", "a:", '["')
    hostile = {part: partial(seen, full(part, 40_000)) for part in parts}
    words = [full(f"pods are {word}: it says no\n", 40_000) for word in ("forbidden", "refused")]
    return Group(
        "a text to mask, 40 kB", 10, (partial(seen, words[0]), partial(seen, words[1])), hostile
    )


def settings() -> Group:
    def spec(part: str) -> Run:
        values = {f"V{number}": part * (16_000 // len(part)) + str(number) for number in range(40)}
        return partial(masked, {"spec": {"config": values}})

    return Group(
        "40 settings to mask",
        10,
        (spec("a word of it "), spec("a word to it ")),
        {"long names": spec("a.b.")},
    )


def git_errors() -> Group:
    def told(part: str) -> Run:
        text = full(part, 480_000)
        return partial(complaints.complaint, f"{text}\nfatal: that is why\n", "SOURCE")

    parts = ("x", "Load key ", "transport '", "\x1b[2J", "@ ")
    return Group(
        "480 kB that git says",
        10,
        (told("remote: so it is\n"), told("remote: it is so\n")),
        {p: told(p) for p in parts},
    )


def bodies() -> Group:
    def read(*pieces: bytes, **headers: str) -> None:
        answers.read(iter(pieces), headers, 1, succeeded=True)

    plain, bomb = b"[" * (1 << 20), gzip.compress(b"[" * 30_000_000)
    json_, events = {"content-type": "application/json"}, {"content-type": "text/event-stream"}
    return Group(
        "an answer of 1 MiB",
        300,
        (partial(read, plain, **json_),) * 2,
        {
            "a bomb of gzip": partial(read, bomb, **json_, **{"content-encoding": "gzip"}),
            "a line in pieces": partial(read, b"data: ", *[b"x"] * 300_000, **events),
        },
    )


def objects() -> list[Group]:
    """One reconcile of a server with such an object, beside ten copies of that object."""

    def reconcile(made: list[JsonObject]) -> None:
        stage = Stage()
        for body in made:
            stage.stands(body)
        stage.engine.work(KEY)

    def copies(made: list[JsonObject]) -> None:
        for _ in range(10):
            copy.deepcopy(made)

    groups = []
    for make in HUGE:
        made = make()
        name = f"an object of {len(json.dumps(made)) // 1000} kB"
        work = {make.__name__: partial(reconcile, made)}
        groups.append(Group(name, 150, (partial(copies, made),) * 2, work))
    return groups


def main() -> int:
    """The command."""
    broken = 0
    print(f"{'group':24} {'bar':>5} {'ratio':>6}  slowest")
    for group in (files(), texts(), settings(), git_errors(), bodies(), *objects()):
        _, floor = map(cost, group.ordinary)
        seconds, slowest = max((cost(run), name) for name, run in group.hostile.items())
        ratio = seconds / max(floor, 0.001)
        broken += ratio > group.bar
        print(f"{group.name:24} {group.bar:5.0f} {ratio:6.1f}  {slowest!r}, {seconds:.3f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
