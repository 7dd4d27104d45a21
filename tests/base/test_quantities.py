"""Quantities are read as the API server reads them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import paths
import pytest
import yaml

from gitops_mcp.base import quantities
from gitops_mcp.source import serverschema

ROWS = yaml.load((paths.DATA / "quantities.yaml").read_text(), yaml.BaseLoader)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: repr(row["text"]))
def test_a_quantity_is_what_the_server_stores(row: dict[str, str]) -> None:
    number = None if row["is"] == "null" else Decimal(row["is"])
    assert quantities.parse(row["text"]) == number


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (2, Decimal(2)),
        (0.5, Decimal("0.5")),
        (1e22, Decimal(10**22)),
        ("-1", Decimal(-1)),
        ("-0.0001", Decimal("-0.001")),
        ("-100Ei", Decimal(1 - 2**63)),
        (True, None),
        (None, None),
        ({}, None),
        (float("inf"), None),
        (float("nan"), None),
        # The server would compare this one with a limit for ten seconds.
        ("1e100000", None),
        ("1" * 100_000, Decimal("1" * 100_000)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_values(value: Any, number: Decimal | None) -> None:
    assert quantities.parse(value) == number


def test_the_schema_lets_no_other_quantity_pass() -> None:
    pattern = re.compile(serverschema.schema()["$defs"]["quantity"]["pattern"], re.ASCII)
    passed = [row for row in ROWS if pattern.search(row["text"]) and "\n" not in row["text"]]
    assert len(passed) > 20
    assert all(row["is"] != "null" for row in passed)
    assert not pattern.search("1e100000")
