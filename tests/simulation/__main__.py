"""``python -m simulation --seeds 1000``, or ``--seed 17`` for one of them and its trace."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from simulation import runs, trouble


def main() -> int:
    """Play seeds; 1 where a law was broken."""
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one only, with its trace")
    parser.add_argument("--jobs", type=int, default=None, help="processes at the same time")
    parser.add_argument("--long", action="store_true", help="do not look for a shorter trace")
    parser.add_argument("--trace", action="store_true", help="print the whole trace of --seed")
    asked = parser.parse_args()
    if asked.trace:
        run, _ = runs.play(asked.seed, trouble.draw(asked.seed))
        print("\n".join(run.trace))
        return 0
    if asked.seed is not None:
        return _one(asked.seed, shorten=not asked.long)
    began, failed = time.monotonic(), 0
    seeds = range(asked.first, asked.first + asked.seeds)
    with ProcessPoolExecutor(asked.jobs) as pool:
        for found in pool.map(runs.check, seeds, chunksize=4):
            if found is not None:
                failed += 1
                print(found, flush=True)
    spent = time.monotonic() - began
    print(f"{len(seeds)} seeds, {failed} failed, {len(seeds) / spent:.1f} seeds/s")
    return 1 if failed else 0


def _one(seed: int, *, shorten: bool) -> int:
    found = runs.check(seed, shorten=shorten)
    print(found or f"seed {seed}: all laws hold")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
