"""What a message says is for people: nothing that the program does hangs on its wording."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from paths import ROOT

PACKAGE = ROOT / "gitops_mcp"
FOREIGN = ("git/complaints.py", "cluster/refusals.py")
"""They read what git and the API server write."""
MODULES = sorted(
    name
    for path in PACKAGE.rglob("*.py")
    if not (name := path.relative_to(PACKAGE).as_posix()).startswith("sandbox/")
    and name not in FOREIGN
)
PROSE = {"message", "text", "hint", "reason", "why", "waiting", "holder", "flaw", "err", "remark"}
"""Attributes that hold a sentence, or another program's words."""
SEARCHES = {"startswith", "endswith", "find", "index", "count", "partition", "rpartition", "split"}


def prose(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in PROSE


def literal(node: ast.AST) -> bool:
    """A text, or some of them; not the empty one, which says that there is none."""
    if isinstance(node, ast.Tuple | ast.Set | ast.List):
        return any(map(literal, node.elts))
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != ""
    )


def hangs_on_wording(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            if any(map(prose, sides)) and any(map(literal, sides)):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            searched = node.func.attr in SEARCHES and prose(node.func.value)
            if searched and any(map(literal, node.args)):
                yield ast.unparse(node)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_hangs_on_the_wording_of_a_message(module: str) -> None:
    assert list(hangs_on_wording(ast.parse((PACKAGE / module).read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        'error.message == "no"',
        '"cannot create" not in error.message',
        'decision.waiting.startswith(("shut", "recreate"))',
        'outcome.message.partition(": ")',
        'one.reason in {"a", "b"}',
    ],
)
def test_the_kinds_of_such_code_are_found(code: str) -> None:
    assert list(hangs_on_wording(ast.parse(code)))
