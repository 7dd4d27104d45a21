"""Reading a source never fails on what it holds, and stays within its budget: the kept corpus, a
few thousand mutations of it, and what Hypothesis makes up. ``make fuzz`` reads a million."""

from __future__ import annotations

import math

import fuzzing
import pytest
from fuzzing import ATOMS, Input, kept, read
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    "one", kept(), ids=[file.name for file in sorted(fuzzing.CORPUS.iterdir())]
)
def test_the_kept_files_are_read(one: Input) -> None:
    read(one)


def test_mutations_of_them_are_read() -> None:
    fuzzing.run(2000, seed=2026, seconds=math.inf)  # `make fuzz` holds the bar


PATHS = st.sampled_from(["a.yaml", "a.json", "group_vars/all.yaml", "gitops-mcp.yaml"])
TEXTS = st.lists(st.sampled_from(ATOMS) | st.text(max_size=4).map(str.encode), max_size=40)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(PATHS, TEXTS.map(b"".join) | st.binary(max_size=200))
def test_any_bytes_are_read(path: str, data: bytes) -> None:
    read(Input(path, data))
