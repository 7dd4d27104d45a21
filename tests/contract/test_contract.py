"""Every request of `cases/`, answered by the sandbox as a real API server answered it.

`python tests/contract/record.py` asks a real plane anew and writes its answers down.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from contract.transcript import ANSWERS, CASES, Cluster, load, play

from gitops_mcp.cluster import refusals

FILES = sorted(CASES.glob("*.yaml"))
PLAYED = [
    pytest.param(path, case, id=f"{path.stem}-{case['case']}")
    for path in FILES
    for case in load(path)
]


@pytest.mark.parametrize(("path", "case"), PLAYED)
def test_answers_as_a_real_api_server_does(
    cluster: Cluster, path: Path, case: dict[str, Any]
) -> None:
    if case.get("only", cluster.name) != cluster.name:
        pytest.skip("docs/sandbox.md says that it does without")
    assert play(cluster, case) == recorded(path)[case["case"]]


MEANINGS = [
    pytest.param(path, case["case"], number, step["means"], id=f"{case['case']}-{number}")
    for path in FILES
    for case in load(path)
    for number, step in enumerate(case["steps"])
    if "means" in step
]


@pytest.mark.parametrize(("path", "case", "number", "meaning"), MEANINGS)
def test_a_refusal_is_taken_for_what_it_is(
    path: Path, case: str, number: int, meaning: str
) -> None:
    """By the client of the agent: how soon, and whether at all, it is worth trying again."""
    answer = recorded(path)[case][number]
    body = answer["body"] if isinstance(answer["body"], str) else json.dumps(answer["body"])
    headers = {"Retry-After": answer["retry_after"]} if "retry_after" in answer else {}
    error = refusals.translate(answer["code"], headers, body.encode(), operation="apply", ref=None)
    seconds = error.retry_after and error.retry_after.total_seconds()
    assert f"{type(error).__name__} {seconds or ''}".rstrip() == meaning


@functools.cache
def recorded(path: Path) -> dict[str, Any]:
    """The answers to a file of cases, by the case's name."""
    answers: dict[str, Any] = yaml.load((ANSWERS / path.name).read_text(), yaml.CSafeLoader)
    return answers
