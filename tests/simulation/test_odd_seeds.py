"""Seeds with a server that kubectl made: whatever happens, the laws hold, and so does the end."""

from __future__ import annotations

import pytest

from simulation import runs

SEEDS = range(1, 200, 2)


@pytest.mark.parametrize("first", SEEDS[::5])
def test_the_laws_hold_and_the_end_is_that_of_the_undisturbed_run(first: int) -> None:
    for seed in range(first, first + 10, 2):
        failed = runs.check(seed)
        assert failed is None, str(failed)
