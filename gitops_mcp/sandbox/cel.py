"""The rules in a CRD's `x-kubernetes-validations`, run by Google's own CEL runtime.

Receives a rule's text and the values of `self` and `oldSelf`; returns what it evaluates to. The
standard library, macros and string extensions of CEL are there; of the libraries that Kubernetes
adds (quantity, url, ip, format …) none is: a rule that uses one is refused with its CRD. Values
are plain JSON, so a string with a format stays a string.
"""

from __future__ import annotations

from functools import cache
from typing import Any


class Failed(Exception):
    """A rule that does not compile or cannot be evaluated; the message says why."""


@cache
def _environment() -> Any:
    # Imported here: 10 ms and a large library that only CRDs with rules need.
    from cel_expr_python import cel  # type: ignore[import-untyped]
    from cel_expr_python.ext import ext_strings  # type: ignore[import-untyped]

    dynamic = cel.Type.DYN
    return cel.NewEnv(
        variables={"self": dynamic, "oldSelf": dynamic}, extensions=[ext_strings.ExtStrings()]
    )


@cache
def compiled(rule: str) -> Any:
    """The rule, ready to run."""
    try:
        return _environment().compile(rule)
    except RuntimeError as exc:
        raise Failed(f"compilation failed: {str(exc).removeprefix('INVALID_ARGUMENT: ')}") from None


def evaluate(rule: str, value: Any, old: Any = None) -> Any:
    """What the rule says of the value; `old` is None where there is none."""
    try:
        result = compiled(rule).eval(data={"self": value, "oldSelf": old})
    except RuntimeError as exc:
        raise Failed(str(exc)) from None
    found = result.value()
    if str(result.type()) == "ERROR":
        raise Failed(str(found).partition(": ")[2])
    return found
