"""An agent prunes nothing that nobody released, and nothing of another repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gitfixtures
from agents import until
from test_agent import Place, manifest, place

from gitops_mcp.model import KIND

__all__ = ["place"]


def test_a_block_stands_through_an_unrelated_commit_and_a_restart(place: Place) -> None:
    names = [f"s{number}" for number in range(5)]
    place.push(**{name: manifest(name, replicas=0) for name in names})

    def phase(name: str) -> str:
        return str((place.get(KIND, name).get("status") or {}).get("phase", ""))

    def held() -> bool:
        conditions = (place.get(KIND, "s0").get("status") or {}).get("conditions") or ()
        return any(one["reason"] == "PruneBlocked" for one in conditions)

    with place.agent():
        until(lambda: all(place.ready(name) for name in names), "the first commit")
        renamed: dict[str, str | None] = {f"s{number}.yaml": None for number in range(3)}
        renamed |= {f"n{number}.yaml": manifest(f"n{number}", replicas=0) for number in range(3)}
        gitfixtures.commit(place.repository, renamed, "Rename three")
        place.wake()
        until(lambda: held() and place.ready("n2"), "the block")
        gitfixtures.commit(place.repository, {"README.md": "Talk"}, "Talk")
        place.push(n0=manifest("n0", "2.0", replicas=0))
        place.wake()
        until(lambda: place.image("n0").endswith(":2.0"), "an unrelated commit")
    with place.agent():
        until(place.is_ready, "the agent after a restart")
        place.push(n0=manifest("n0", "3.0", replicas=0))
        place.wake()
        until(lambda: place.image("n0").endswith(":3.0"), "a commit after that")
        assert {phase(f"s{number}") for number in range(3)} == {"Ready"}
        gitfixtures.commit(place.repository, {"README.md": "Go"}, "Go\n\nAllow-Prune: 3")
        place.wake()
        until(lambda: not place.get(KIND, "s0") and not place.get(KIND, "s2"), "the release")


def test_another_repository_that_chose_this_id_does_not_get_an_agent(
    place: Place, tmp_path: Path
) -> None:
    place.push(web=manifest("web"))
    with place.agent("--source-id", "team-a"):
        until(lambda: place.ready("web") and place.is_ready(), "the first commit")
    other = gitfixtures.bare(tmp_path / "other.git")
    files = {"own.yaml": manifest("own"), "gitops-mcp.yaml": "sourceId: team-a\n"}
    gitfixtures.commit(other, files, "Take it\n\nAllow-Prune: 1", parent="")
    ended = subprocess.run(
        [sys.executable, "-m", "gitops_mcp", "agent", str(other), "--probes", "off"],
        env=os.environ | {"KUBECONFIG": str(place.kubeconfig)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "source id 'team-a' belongs to another repository in this cluster" in ended.stderr
    assert place.get(KIND, "web")["status"]["phase"] == "Ready"
    assert not place.get(KIND, "own")
