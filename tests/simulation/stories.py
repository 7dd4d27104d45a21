"""The standard stories of one server, each told undisturbed and with a death at each request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from simulation import trouble
from simulation.laws import Broken
from simulation.runs import Run
from simulation.sources import NAMESPACE, manifest
from simulation.trouble import Fault

BEFORE = 14.0
"""Seconds until what git held at first is Ready."""
SPEC = {
    "image": "example.com/server:1",
    "transport": "http",
    "replicas": 1,
    "drain": {"preStop": "2s", "timeout": "3s"},
}
WEB = {"web.yaml": manifest("web", SPEC)}
KEPT = {"kept.yaml": manifest("kept", {"image": "example.com/server:1", "transport": "stdio"})}


def _update(run: Run) -> None:
    changed = SPEC | {"image": "example.com/server:2", "port": 9000}
    run.push({"web.yaml": manifest("web", changed)})


def _create(run: Run) -> None:
    run.push(WEB)


def _prune(run: Run) -> None:
    run.push(KEPT)


def _recreate(run: Run) -> None:
    trouble.replace_deployment(run, "web")


def _shut_down(run: Run) -> None:
    path = f"/apis/mcp.example.com/v1alpha1/namespaces/{NAMESPACE}/mcpservers/web"
    run.plane.ask("DELETE", path)


@dataclass(frozen=True)
class Story:
    """What git holds at first, and what happens then."""

    files: Mapping[str, str]
    happens: Callable[[Run], None]
    hooks: bool = False


STORIES: Mapping[str, Story] = {
    "create": Story({}, _create),
    "update": Story(WEB, _update),
    "prune": Story({**WEB, **KEPT}, _prune),
    "recreate of an immutable field": Story(WEB, _recreate),
    "shutdown": Story(WEB, _shut_down, hooks=True),
}


def tell(story: Story, faults: Mapping[int, Fault] | None = None) -> tuple[Run, int, int]:
    """The run, and the numbers of its first and last request that the story is about. Raises
    Broken."""
    run = Run(1, faults=faults, files=story.files, processes=1, hooks=story.hooks)
    return run, *run.tell(BEFORE, story.happens)


def deaths(story: Story) -> Iterator[tuple[int, Fault]]:
    """Each request of the story, and a death before it acts; after it acted, too, if it writes."""
    run, first, last = tell(story)
    for number in range(first, last):
        yield number, Fault(dies=True)
        if run.wrote[number]:
            yield number, Fault(dies=True, acts=True)


def survives(story: Story, number: int, fault: Fault) -> str:
    """What is wrong in the end; "" where nothing is."""
    try:
        tell(story, {number: fault})
    except Broken as broken:
        return f"request {number}, {fault}: {broken}"
    return ""
