"""Objects as they may be: whole, bare, and misshapen by whoever may write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gitops_mcp.base import objects

BODY: dict[str, Any] = {
    "metadata": {
        "uid": "u1",
        "resourceVersion": "7",
        "generation": 3,
        "creationTimestamp": "2026-03-01T10:00:00Z",
        "deletionTimestamp": "2026-03-01T11:00:00Z",
        "labels": {"a": "b"},
        "annotations": {"c": "d"},
        "finalizers": ["example.com/f"],
        "managedFields": [{"manager": "kubectl"}],
        "ownerReferences": [{"uid": "o1"}, {"uid": "o2", "controller": True}],
    },
    "spec": {"replicas": 2},
    "status": {
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "Synced", "status": "False"}]
    },
}

READ: tuple[tuple[Callable[[Any], object], object, object], ...] = (
    (lambda obj: objects.number(obj, "spec", "replicas"), 2, 0),
    (objects.labels, {"a": "b"}, {}),
    (objects.annotations, {"c": "d"}, {}),
    (objects.uid, "u1", ""),
    (objects.generation, 3, 0),
    (objects.created, "2026-03-01T10:00:00Z", ""),
    (objects.is_deleting, True, False),
    (objects.finalizers, ["example.com/f"], []),
    (objects.managed_fields, [{"manager": "kubectl"}], []),
    (objects.controller_of, {"uid": "o2", "controller": True}, {}),
    (objects.preconditions, {"uid": "u1", "resource_version": "7"}, objects.preconditions({})),
    (lambda obj: sorted(objects.conditions(obj)), ["Ready", "Synced"], []),
    (lambda obj: objects.condition(obj, "Ready").get("status"), "True", None),
    (lambda obj: objects.text(obj, "metadata", "labels", "a"), "b", ""),
    (lambda obj: objects.replicas(objects.spec(obj)), 2, 1),
)
"""Each reader, what it reads of BODY, and of an object that lacks the part."""

LACKING: dict[str, Any] = {
    "no object": None,
    "empty": {},
    "null parts": {"metadata": None, "spec": None, "status": None},
    "texts for parts": {"metadata": "a", "spec": "b", "status": "c"},
    "lists for parts": {"metadata": [], "spec": [1], "status": [{"type": "Ready"}]},
    "null below": {
        "metadata": dict.fromkeys(BODY["metadata"]),
        "spec": {"replicas": None},
        "status": {"conditions": None},
    },
    "another type below": {
        "metadata": dict.fromkeys(BODY["metadata"], 1.5) | {"uid": None, "resourceVersion": None},
        "spec": {"replicas": "2"},
        "status": {"conditions": {"type": "Ready"}},
    },
    "odd items": {
        "metadata": {"managedFields": [None, "a"], "ownerReferences": [None, {"uid": "o1"}]},
        "status": {"conditions": [None, "Ready", {"status": "True"}, {"type": None}]},
    },
}


@pytest.mark.parametrize(("read", "found", "_lacking"), READ)
def test_each_part_is_read(read: Callable[[Any], object], found: object, _lacking: object) -> None:
    assert read(BODY) == found


@pytest.mark.parametrize("obj", LACKING.values(), ids=LACKING)
@pytest.mark.parametrize(("read", "_found", "lacking"), READ)
def test_what_is_missing_or_misshapen_reads_as_empty(
    obj: Any, read: Callable[[Any], object], _found: object, lacking: object
) -> None:
    assert read(obj) == lacking


@pytest.mark.parametrize(
    ("value", "path", "found"),
    [
        ({"a": {"b": 1}}, ("a", "b"), 1),
        ({"a": {"b": 1}}, (), {"a": {"b": 1}}),
        ({"a": None}, ("a", "b"), None),
        ({"a": [1]}, ("a", 0), None),
        ("a", ("a",), None),
    ],
)
def test_a_path_leads_through_maps_alone(
    value: object, path: tuple[str | int, ...], found: object
) -> None:
    assert objects.at(value, *path) == found


def test_a_part_is_the_objects_own() -> None:
    assert objects.part(BODY, "metadata", "labels") is objects.labels(BODY)
