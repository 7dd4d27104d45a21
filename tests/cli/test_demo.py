"""The demo tells its story, holds it against the cluster, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.usefixtures("processes")


@contextmanager
def demo(folder: Path, **programs: str) -> Iterator[subprocess.Popen[str]]:
    """A demo on a machine with git alone, and with ``programs`` as scripts. Its files go to
    ``folder/tmp``; its home cannot be written, nor even made. Whoever is left is ended."""
    (folder / "tmp").mkdir()
    binaries = folder / "bin"
    binaries.mkdir()
    git = shutil.which("git")
    assert git is not None
    (binaries / "git").symlink_to(git)
    for name, script in programs.items():
        (binaries / name).write_text(f"#!/bin/sh\n{script}\n")
        (binaries / name).chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "gitops_mcp", "demo"],
        cwd=folder,
        env={
            name: value for name, value in os.environ.items() if not name.startswith("GIT_")
        }  # no identity either
        | {
            "HOME": f"{os.devnull}/home",
            "PATH": str(binaries),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder / "tmp"),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        with process:
            yield process
    finally:
        # What it ended is gone once init has reaped it.
        for _ in range(300):
            if not (left := survivors(process.pid)):
                break
            time.sleep(0.1)
        if left:
            os.killpg(process.pid, signal.SIGKILL)
    assert not left, "a process outlived the demo"
    assert list((folder / "tmp").iterdir()) == []


def survivors(group: int) -> bool:
    """Is anybody left of a process group?"""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def until(process: subprocess.Popen[str], text: str) -> None:
    """Read a demo's output as far as a line that holds ``text``."""
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), f"it never said {text!r}"


@pytest.fixture(scope="module")
def told(processes: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    with demo(tmp_path_factory.mktemp("demo")) as process:
        said, errors = process.communicate(timeout=180)
    assert errors == ""
    assert process.returncode == 0
    return said


FACTS = {
    "a push becomes Ready servers": "All twelve are Ready,",
    "diff shows the drift": "-        image: docker.io/somebody/gitlab-mcp:latest\n"
    "+        image: iwakitakuma/gitlab-mcp:2.0.19\n",
    "a sync heals it alone": "ok=11 changed=1 pruned=0 failed=0 blocked=0 skipped=0",
    "nothing is left to heal": "no changes (12 servers)",
    "a mistake has its place": "servers/ai-tools/gitlab.yaml:8:9: error:",
    "a misspelt key is understood": 'did you mean "replicas"?',
    "the agent contains it": "file=servers/ai-tools/gitlab.yaml line=8 column=9 path=/spec/port",
    "it was repaired": "All twelve are Ready again.",
    "the removed server is pruned": "deleted service/gofetch; deleted mcpserver/gofetch; pruned",
    "the note tells of it": '"event":"pruned","server":"ai-tools/gofetch"',
    "without kubectl its request is sent": "no kubectl here: its request is sent instead",
    "all of it was checked": "Every step held, in ",
}


@pytest.mark.parametrize("fact", FACTS)
def test_the_demo_shows_it(told: str, fact: str) -> None:
    assert FACTS[fact] in told


def test_a_shutdown_is_seen_step_by_step(told: str) -> None:
    steps = ("Terminating ", "Withdrawn ", "Draining ", "Stopping ", "Stopped ", "Deleted ")
    places = [told.index(f" s  {step}") for step in steps]
    assert places == sorted(places)


def told_again(line: str) -> str:
    """A line without what differs from run to run: commits, times, widths of columns."""
    return re.sub(r"\b[0-9a-f]{12}\b|[0-9]+", "0", " ".join(line.split()))


def test_the_readme_shows_what_the_demo_says(told: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- demo -->\n```console\n(.*?)```", readme, re.S)
    assert shown is not None
    said = [told_again(line) for line in told.splitlines() if line]
    at = 0
    for line in shown[1].splitlines():
        if line == "…":
            continue
        found = (n for n in range(at, len(said)) if said[n].startswith(told_again(line)))
        at = next(found, -1) + 1
        assert at, f"the demo does not say, in this order: {line}"


def test_output_that_is_no_terminals_has_no_colours(told: str) -> None:
    assert "\x1b" not in told


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_demo_cleans_up(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with demo(tmp_path) as process:
        until(process, "agent |")
        process.send_signal(number)
        process.communicate(timeout=200)
    assert process.returncode == code


def test_a_claim_that_does_not_hold_fails_the_demo(tmp_path: Path) -> None:
    with demo(tmp_path, kubectl="echo done") as process:
        said, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "no changes (12 servers)" in said
    assert errors.startswith("error: this should hold, and does not: ")
    assert "Every step held" not in said
