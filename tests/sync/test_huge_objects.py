"""Objects as large as an API server takes them: what a tenant can make costs the others little.

Bounds are what the view keeps of one object; benchmarks/budgets.py times one reconcile.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import orjson
import pytest
from hostile import HUGE, LARGEST, many_conditions
from stage import KEY, Stage, cr

from gitops_mcp.base.names import JsonObject
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.cluster.view import View


@pytest.mark.parametrize(
    "make",
    HUGE,
    ids=lambda make: make.__name__,
)
def test_a_huge_object_takes_no_more_room_than_itself(
    make: Callable[[], list[JsonObject]],
) -> None:
    bodies = make()
    size = max(len(orjson.dumps(body)) for body in bodies)
    assert 200_000 < size < LARGEST
    view = View()
    tracemalloc.start()
    for body in bodies:
        view.put(LiveObject(body))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < size + 100_000

    stage = Stage()
    for body in bodies:
        stage.stands(body)
    stage.engine.work(KEY)


def test_the_first_object_of_a_kind_makes_all_others_no_larger_however_huge_it_is() -> None:
    """A tenant whose namespace comes first in a list has no say in what a fleet takes."""

    def room(*first: JsonObject) -> int:
        view = View()
        for body in first:
            view.put(LiveObject(body))
        tracemalloc.start()
        for number in range(300):
            body = cr(name=f"web-{number}", uid=f"u{number}")
            view.put(body)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return kept

    assert room(*many_conditions()) < room() + 30_000
