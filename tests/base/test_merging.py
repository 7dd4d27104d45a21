"""Maps laid over maps."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from gitops_mcp.base import merging


@pytest.mark.parametrize(
    ("base", "over", "merged", "patched"),
    [
        ({}, {}, {}, {}),
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}, {"a": 1, "b": 2}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}}, *[{"a": {"x": 3, "y": 2}}] * 2),
        ({"a": {"x": {"y": 1}}}, {"a": {"x": {"z": 2}}}, *[{"a": {"x": {"y": 1, "z": 2}}}] * 2),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"x": 1}}, {"a": {}}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({"a": {"x": 1}}, {"a": 5}, {"a": 5}, {"a": 5}),
        ({"a": 5}, {"a": {"x": 1}}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({"a": 1, "b": 2}, {"a": None}, {"a": None, "b": 2}, {"b": 2}),
        ({}, {"a": None}, {"a": None}, {}),
        ({"a": 5}, {"a": {"x": None}}, {"a": {"x": None}}, {"a": {}}),
        ({"a": {"x": 1}}, {"a": {"x": None}}, {"a": {"x": None}}, {"a": {}}),
        ({}, {"a": [{"x": None}, None]}, {"a": [{"x": None}, None]}, {"a": [{}, None]}),
    ],
)
def test_what_lies_over_wins(
    base: dict[str, Any], over: dict[str, Any], merged: Any, patched: Any
) -> None:
    before = copy.deepcopy((base, over))
    assert merging.merged(base, over) == merged
    assert merging.patched(base, over) == patched
    assert (base, over) == before
