"""The bar of masking: of a corpus of secrets nothing is shown, of ordinary values nearly all."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from corpora import ORDINARY, SECRETS, Value, corpus

from gitops_mcp.base.masking import mask, scrub
from gitops_mcp.base.model import Change, Outcome, Report
from gitops_mcp.base.names import JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.objects import DesiredObject, LiveObject
from gitops_mcp.base.source import Loaded, Problem, Revision
from gitops_mcp.decide import diffing
from gitops_mcp.report import reports

KEY = ServerKey("ai", "web")
FORMATS = ("text", "json", "markdown")


def parts(secret: str) -> list[str]:
    """What must not be shown of a secret: no part of it that would help."""
    size = min(len(secret), 6)
    return [secret[start : start + size] for start in range(len(secret) - size + 1)]


def changes(before: JsonObject | None, after: JsonObject) -> tuple[Change, ...]:
    def whole(spec: JsonObject) -> JsonObject:
        names = {"name": KEY.name, "namespace": KEY.namespace}
        body = {"apiVersion": "mcp.example.com/v1alpha1", "kind": "MCPServer", "metadata": names}
        return {**body, "spec": spec}

    live = LiveObject(whole(before)) if before is not None else None
    found = diffing.compare(DesiredObject(whole(after)), live, kubectl_managers=frozenset())
    ref = ObjectRef("mcp.example.com/v1alpha1", "MCPServer", KEY.namespace, KEY.name)
    action: Any = "update" if before else "create"
    return (Change(action, KEY, ref, fields=found.fields, before=found.before, after=found.after),)


def shown(value: Value) -> dict[str, str]:
    """Everything that people read of a server with this value, by what it is."""
    seen = {}
    for action, before in (("created", None), ("changed", _other(value))):
        outcome = Outcome(KEY, "changed", None, changes(before, value.spec), "")
        report = Report(Revision("a" * 40), "default", False, (outcome,), ())
        for output in FORMATS:
            seen[f"{output}, {action}"] = reports.diff(report, base="b" * 40, output=output)
    return seen


def _other(value: Value) -> JsonObject:
    """The same server with another value there."""
    other: Any = ["x"] if value.place == "args" else "other"
    return value._replace(text=json.dumps(other) if value.place == "args" else other).spec


def told(messages: dict[str, str]) -> dict[str, str]:
    """Everything that repeats these messages, by what it is."""
    return {
        **{how: scrub(message) for how, message in messages.items()},
        **{
            f"{output} problem, {how}": reports.validation(
                Loaded({}, problems=(Problem("a.yaml", 1, 1, None, "", message),)),
                count=0,
                output=output,
            )
            for how, message in messages.items()
            for output in ("text", "json", "github")
        },
    }


def test_the_corpora_are_large_enough() -> None:
    assert len(SECRETS) >= 150
    assert len(ORDINARY) >= 300


@pytest.mark.parametrize("value", SECRETS, ids=lambda value: f"{value.name} {value.text[:24]!r}")
def test_no_part_of_a_secret_is_shown(value: Value) -> None:
    for where, seen in shown(value).items():
        for secret in value.secrets:
            assert not [part for part in parts(secret) if part in seen], (where, seen)


@pytest.mark.parametrize("seed", range(1, 8))
def test_other_secrets_of_these_shapes_are_not_shown_either(seed: int) -> None:
    leaked = [
        (value, seen)
        for value in corpus("secret-values.tsv", seed)
        if any(
            part in (seen := json.dumps(mask({"spec": value.spec}), ensure_ascii=False))
            for secret in value.secrets
            for part in parts(secret)
        )
    ]
    assert leaked == []


def test_nine_of_ten_ordinary_values_are_shown() -> None:
    hidden = [value for value in ORDINARY if mask({"spec": value.spec}) != {"spec": value.spec}]
    assert len(hidden) <= len(ORDINARY) // 10, [(v.name, v.text) for v in hidden]


@pytest.mark.parametrize("value", SECRETS, ids=lambda value: f"{value.name} {value.text[:24]!r}")
def test_no_message_repeats_a_secret(value: Value) -> None:
    text = " ".join(value.arguments) if value.place == "args" else value.text
    # Without its name, nobody can tell a secret that is a word or a number from any other word.
    quoted = told({"quoted": f'Invalid value: "{text}": must be shorter'})
    named = told({"named": f"refused: {value.name}={text}"})
    for secret in value.secrets:
        if secret in value.made and not secret.isdigit():
            for where, seen in quoted.items():
                assert not [part for part in parts(secret) if part in seen], (where, seen)
        if value.place != "args" and not re.search(r"\s", text):
            for where, seen in named.items():
                assert not [part for part in parts(secret) if part in seen], (where, seen)
