"""How soon a verb is there: the CPU seconds of whole processes, beside those of an empty Python.

    python benchmarks/verbs.py [--runs 7]

Prints a table and ends with 1 where a bar is broken. The bars are multiples of an empty Python that
ran in turn with the verbs, so they can be compared between machines; the best run counts, since a
busy machine only ever adds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

EMPTY = ("-c", "pass")
BARS: dict[tuple[str, ...], float] = {
    ("-m", "gitops_mcp", "--version"): 6,
    ("-m", "gitops_mcp", "validate", "repo-example"): 25,
}
"""The arguments of Python, and how many empty Pythons they may cost."""

BYTECODE = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""What is installed keeps its bytecode."""


def cpu(arguments: tuple[str, ...]) -> float:
    """The CPU seconds of one process, in user and system mode."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=BYTECODE, stdout=subprocess.DEVNULL, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7, help="how often each one runs")
    runs = parser.parse_args().runs
    best = {each: float("inf") for each in (EMPTY, *BARS)}
    for _ in range(runs):
        for each in best:
            best[each] = min(best[each], cpu(each))
    print(f"{'python':<40} {'CPU s':>7} {'ratio':>6} {'bar':>4}")
    for each, seconds in best.items():
        bar = BARS.get(each)
        ratio = seconds / best[EMPTY]
        print(f"{' '.join(each):<40} {seconds:>7.3f} {ratio:>6.1f} {bar or '':>4}")
    return int(any(best[each] / best[EMPTY] > bar for each, bar in BARS.items()))


if __name__ == "__main__":
    raise SystemExit(main())
