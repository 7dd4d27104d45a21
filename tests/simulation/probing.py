"""What the pods would answer: read from the cluster as it is, not as anybody sees it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from gitops_mcp.base.model import Probe, ProbeResult
from gitops_mcp.base.reasons import Reason
from simulation.cluster import PODS, Plane


def ask(plane: Plane, inquiry: Probe, clock: Callable[[], datetime]) -> ProbeResult | int | None:
    """The answer to an inquiry: who runs answers well, nobody holds a session for long."""
    if inquiry.kind == "sessions":
        return plane.world.rng.choice([None, 0, 1, 2])
    running = {
        pod["metadata"]["uid"]
        for pod in plane.store.list(PODS)
        if any(
            one["type"] == "ContainersReady" and one["status"] == "True"
            for one in pod["status"].get("conditions", ())
        )
    }
    asked = frozenset(uid for uid, _ in inquiry.targets)
    passed = asked & running
    if passed == asked:
        info = {"name": "simulated", "version": "1"}
        return ProbeResult(Reason.HANDSHAKE_SUCCEEDED, "simulated", clock(), asked, info, passed)
    return ProbeResult(Reason.CONNECTION_REFUSED, "nobody listens", clock(), asked, None, passed)
