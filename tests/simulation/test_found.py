"""What the simulation found, each told by itself."""

from __future__ import annotations

from datetime import timedelta

from gitops_mcp.base.model import Probe
from gitops_mcp.base.names import LABEL_MANAGED_BY, ServerKey
from simulation.cluster import CRS
from simulation.runs import Run
from simulation.sources import NAMESPACE, manifest
from simulation.stories import BEFORE, KEPT, STORIES, WEB

DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/kept"
KEY = ServerKey(NAMESPACE, "web")


def test_a_child_whose_label_was_taken_away_is_ours_again() -> None:
    def unlabel(run: Run) -> None:
        body = {"metadata": {"labels": {LABEL_MANAGED_BY: None}}}
        merge = "application/merge-patch+json"
        run.plane.ask("PATCH", DEPLOYMENT, body, {"fieldManager": "kubectl-label"}, merge)

    Run(1, files=KEPT, processes=1).tell(BEFORE, unlabel)


def test_hooks_are_called_by_nobody_who_has_stopped_to_lead() -> None:
    run = Run(1, files=WEB, hooks=True)
    run.world.run(BEFORE)
    asked: list[object] = []
    run.agents[0].controller._engine.ask = lambda *given: asked.append(given)  # type: ignore
    inquiry = Probe("cleanup", (), timedelta(seconds=1))
    run.lead(1)
    run.agents[0].controller.ask(KEY, inquiry)
    assert not asked
    run.lead(0)
    run.agents[0].controller.ask(KEY, inquiry)
    assert len(asked) == 1


def test_a_size_that_changes_amid_a_rollout_does_not_stop_it() -> None:
    spec = {"transport": "http", "drain": {"preStop": "2s", "timeout": "3s"}}

    def sized(number: int, replicas: int) -> dict[str, str]:
        image = f"example.com/server:{number}"
        return {"web.yaml": manifest("web", spec | {"image": image, "replicas": replicas})}

    def happens(run: Run) -> None:
        run.push(sized(2, 3))
        run.world.run(run.world.now + 8.0)
        run.push(sized(2, 2))

    Run(1, files=sized(1, 2), processes=1).tell(BEFORE, happens)


def test_hooks_are_called_once_though_two_looks_ask_for_them() -> None:
    run = Run(1, files=WEB, processes=1, hooks=True)
    with run._listening():
        run.world.run(BEFORE)
        STORIES["shutdown"].happens(run)
        run.settle()


def test_hooks_that_come_late_are_not_called_for_the_successor_of_a_server() -> None:
    """Git still holds the server: it is made anew as soon as the old one has gone."""
    run = Run(1, files=WEB, processes=1, hooks=True)
    with run._listening():
        run.world.run(BEFORE)
        old = _uid(run)
        STORIES["shutdown"].happens(run)
        run.settle()
        assert _uid(run) != old
        late = Probe("cleanup", (), timedelta(seconds=1), uid=old)
        run.agents[0].controller.ask(KEY, late)  # the laws say of whom hooks are called


def _uid(run: Run) -> str:
    found = run.plane.store.get(CRS, NAMESPACE, "web")
    assert found is not None
    return str(found["metadata"]["uid"])
