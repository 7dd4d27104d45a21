"""The agent as a process of its own, as a pod would run it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def until(holds: Callable[[], object], what: str, within: float = 60.0) -> None:
    """Wait until something holds; the test fails where it does not in time."""
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.1)


@contextlib.contextmanager
def agent(
    kubeconfig: Path, repository: Path, *arguments: str, url: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """An agent of a repository (at ``url``, where one is given), a pass each second, that reaches
    no pod. It ends with SIGTERM, well, unless the test kills it; what it said stands beside the
    repository in ``agent.log``."""
    log = repository.parent / "agent.log"
    command = [
        *(sys.executable, "-m", "gitops_mcp", "agent", url or str(repository)),
        *("--interval", "1s", "--probes", "off", *arguments),
    ]
    with log.open("ab") as said:
        process = subprocess.Popen(
            command,
            env=os.environ | {"KUBECONFIG": str(kubeconfig)},
            cwd=Path(__file__).parents[1],
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
            if process.poll() == -signal.SIGKILL:
                return
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            # Nothing but a signal ends it with 0, so neither did it end by itself.
            assert process.wait(200) == 0, log.read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
