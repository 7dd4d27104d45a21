"""How messages show counts, commits and long texts."""

from __future__ import annotations

import pytest

from gitops_mcp.base import wording

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 servers"), (1, "1 server"), (2, "2 servers"), (-1, "-1 servers")]
)
def test_a_count_agrees_with_its_noun(count: int, text: str) -> None:
    assert wording.plural(count, "server") == text


@pytest.mark.parametrize(
    ("revision", "text"),
    [
        (SHA, "0123456789ab"),
        (f"{SHA}-dirty", "0123456789ab-dirty"),
        ("none", "none"),
        ("abc-dirty", "abc-dirty"),
        ("", ""),
        (f"{SHA}-{'x' * 1000}", "0123456789ab"),
    ],
)
def test_a_commit_is_short(revision: str, text: str) -> None:
    assert wording.short_sha(revision) == text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        (" a\n\tb ", "a b"),
        ("x" * 10, "x" * 10),
        ("x" * 11, "x" * 9 + "…"),
        ("x" * 5 + "\n" * 99 + "y", "xxxxx y"),
    ],
)
def test_a_long_text_is_clipped_to_one_line(text: str, line: str) -> None:
    assert wording.clipped(text, 10) == line
