"""Objects as large as an API server takes them: what a tenant can make costs the others little.

Bounds are CPU time of one look, and what the view keeps of one object.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable

import orjson
import pytest
from stage import KEY, Stage, children, cr

from gitops_mcp.base.names import JsonObject
from gitops_mcp.cluster.view import View

SECONDS = 5.0
"""CPU time of one look at a server with such an object, its requests and all decisions included."""
LARGEST = 1_500_000
"""Bytes of an object that etcd takes."""

_random = random.Random(9)


def noise(length: int) -> str:
    """Nothing that packs well."""
    return "".join(_random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=length))


def conditions(count: int) -> list[JsonObject]:
    return [
        {"type": f"Type{number}", "status": "True", "reason": "X", "message": noise(60)}
        for number in range(count)
    ]


def many_conditions() -> list[JsonObject]:
    return [{**cr(), "status": {"conditions": conditions(10_000)}}]


def large_annotations() -> list[JsonObject]:
    return [cr(annotations={f"example.com/{number}": noise(1000) for number in range(250)})]


def many_managers() -> list[JsonObject]:
    body = cr()
    tree: JsonObject = {"f:metadata": {"f:annotations": {f"f:x/{each}": {} for each in range(100)}}}
    entry = {"manager": "m", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": tree}
    entries = body["metadata"]["managedFields"]
    body["metadata"]["managedFields"] = [*entries, *({**entry} for _ in range(500))]
    return [body]


def pod() -> list[JsonObject]:
    labels = {"app.kubernetes.io/instance": "web"}
    metadata = {"name": "web-1", "namespace": "ai", "uid": "p", "resourceVersion": "9"}
    status = {"podIP": "10.0.0.1", "conditions": conditions(10_000)}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {**metadata, "labels": labels}}
    return [cr(), {**made, "status": status}]


def deployment() -> list[JsonObject]:
    body = children(cr())[0]
    env = [{"name": f"E{number}", "value": noise(60)} for number in range(10_000)]
    body["spec"]["template"]["spec"]["containers"][0]["env"] = env
    return [cr(), body]


def service() -> list[JsonObject]:
    body = children(cr())[1]
    ports = [{"name": f"p{n}", "port": n, "protocol": "TCP"} for n in range(1, 10_000)]
    body["spec"]["ports"] = ports
    return [cr(), body]


@pytest.mark.parametrize(
    "make",
    [many_conditions, large_annotations, many_managers, pod, deployment, service],
    ids=lambda make: make.__name__,
)
def test_a_huge_object_takes_little_time_and_no_more_room_than_itself(
    make: Callable[[], list[JsonObject]],
) -> None:
    bodies = make()
    size = max(len(orjson.dumps(body)) for body in bodies)
    assert 200_000 < size < LARGEST
    view = View()
    tracemalloc.start()
    for body in bodies:
        view.put(body)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < size + 100_000

    stage = Stage()
    for body in bodies:
        stage.stands(body)
    began = time.process_time()
    stage.engine.work(KEY)
    assert time.process_time() - began < SECONDS


def test_the_first_object_of_a_kind_makes_all_others_no_larger_however_huge_it_is() -> None:
    """A tenant whose namespace comes first in a list has no say in what a fleet takes."""

    def room(*first: JsonObject) -> int:
        view = View()
        for body in first:
            view.put(body)
        tracemalloc.start()
        for number in range(300):
            body = cr(name=f"web-{number}", uid=f"u{number}")
            view.put(body)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return kept

    assert room(*many_conditions()) < room() + 30_000
