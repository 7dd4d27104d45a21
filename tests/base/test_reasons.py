"""No reason is written outside the table of reasons."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from paths import ROOT

from gitops_mcp.base.reasons import PASSING, TERMINAL, Reason

PACKAGE = ROOT / "gitops_mcp"
MODULES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if "sandbox" not in path.parts and path.name != "reasons.py"
)
CONDITIONS = {kind for row in Reason for kind in row.conditions}
ELSEWHERE = {
    "Terminating": "a phase, of servers and of namespaces",
    "Unschedulable": "Kubernetes' own, of PodScheduled",
    "ProgressDeadlineExceeded": "Kubernetes' own, of Progressing",
}
"""Words that mean something else, too, besides the types of conditions."""
MAKERS = {
    "Condition": 2,
    "Condition.of": 0,
    "Handshake": 0,
    "ProbeResult": 0,
    "_fact": 1,
    "News": 0,
}
"""What takes a reason, and at which place."""
PRINTER_COLUMN = ("source/crd.py", "Suspended")


def words(tree: ast.AST) -> Iterator[str]:
    """The word that each string begins with, documentation aside."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition(":")[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_reason_is_written_by_its_row_s_name(module: str) -> None:
    found = set(words(ast.parse((PACKAGE / module).read_text()))) & set(map(str, Reason))
    found -= CONDITIONS | ELSEWHERE.keys()
    assert {(module, word) for word in found} <= {PRINTER_COLUMN}


@pytest.mark.parametrize("module", MODULES)
def test_no_condition_is_made_of_a_reason_outside_the_table(module: str) -> None:
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in MAKERS:
            reason = node.args[MAKERS[ast.unparse(node.func)]]
            assert not isinstance(reason, ast.Constant | ast.JoinedStr), ast.unparse(node)


def test_rows_agree_with_what_follows_from_them() -> None:
    for row in Reason:
        assert row not in TERMINAL or row.event == "Warning", row
        assert row not in TERMINAL or "False" in row.conditions.values(), row
        assert row not in PASSING or row.conditions["Synced"] == "False", row
        assert row.conditions or row.event, row
        assert row.means or not row.event or row is Reason.CONFIGURATION_INVALID, row
