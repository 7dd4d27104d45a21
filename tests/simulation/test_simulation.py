"""The simulation itself: one seed is one run; mistakes are found, and shortly told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gitops_mcp.base.model import Action, Verb
from gitops_mcp.base.names import JsonObject, ServerKey
from gitops_mcp.decide import health
from gitops_mcp.sync import engine
from gitops_mcp.sync.execution import Execution
from gitops_mcp.sync.memory import Memory
from gitops_mcp.sync.workqueue import Queue
from simulation import agents, runs, trouble
from simulation.trouble import Trouble

WITHIN = 20
"""Seeds that a mistake may stay hidden for."""


def first_failure() -> runs.Failure:
    for seed in range(WITHIN):
        failed = runs.check(seed, shorten=False)
        if failed is not None:
            return failed
    pytest.fail(f"nothing was found within {WITHIN} seeds")


def test_a_delete_without_its_precondition_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless(Execution):
        def carry_out(self, key: ServerKey, memory: Memory, action: Action) -> None:
            if action.verb is Verb.DELETE:
                action = replace(action, uid=None, resource_version=None)
            super().carry_out(key, memory, action)

    monkeypatch.setattr(engine, "Execution", Careless)
    assert first_failure().law.startswith("a delete carries what it was decided on")


def test_a_status_from_an_old_generation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(_: JsonObject) -> bool:
        return True  # whatever the Deployment controller has looked at

    monkeypatch.setattr(health, "_seen", seen)
    assert first_failure().law.startswith("Ready is claimed of what is ready")


def test_a_lost_wake_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(Queue):
        def add(self, key: ServerKey, now: datetime) -> None:
            if key not in self._running:  # news that come while one looks are forgotten
                super().add(key, now)

    monkeypatch.setattr(agents, "Queue", Deaf)
    assert first_failure().law.startswith("no wake-up is lost")


def trace(seed: int) -> list[str]:
    run, _ = runs.play(seed, trouble.draw(seed))
    return run.trace


@pytest.mark.parametrize("seed", [4, 9])
def test_one_seed_is_one_run(seed: int) -> None:
    once = trace(seed)
    assert len(once) > 20
    assert trace(seed) == once


@pytest.mark.usefixtures("processes")
def test_one_seed_is_one_run_in_any_process() -> None:
    command = [sys.executable, "-m", "simulation", "--seed", "4", "--trace"]
    told = [
        subprocess.run(
            command,
            env=os.environ | {"PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for salt in ("1", "2")
    ]
    assert len(told[0].splitlines()) > 20
    assert told[0] == told[1]


def test_a_failure_is_told_by_the_fewest_troubles_that_show_it() -> None:
    def fails(some: Sequence[Trouble]) -> bool:
        return {3, 11} <= {one.seed for one in some}

    many = [Trouble(float(number), "delete", number) for number in range(30)]
    assert [one.seed for one in runs.shortest(many, fails)] == [3, 11]


def test_a_failing_seed_prints_its_number_and_its_trace() -> None:
    one = Trouble(1.5, "delete", 3)
    told: Any = str(runs.Failure(17, "a law: broken", (one,), ("line",)))
    assert told.splitlines() == [
        "seed 17: a law: broken",
        "troubles:",
        "    1.50 delete (3)",
        "trace:",
        "line",
    ]
