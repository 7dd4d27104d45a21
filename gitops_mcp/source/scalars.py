"""Scalars of YAML and JSON, and those that readers read differently."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

MAX_NUMBER = 400
"""Characters. No number that a YAML reader holds is longer: 1.8e308 has 309 digits."""


_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


_AMBIGUOUS_WORDS = frozenset(
    form
    for word in ("y", "n", "yes", "no", "on", "off")
    for form in (word, word.capitalize(), word.upper())
)


_AMBIGUOUS_NUMBER = re.compile(
    r"""[-+]?0[0-9_]+                                     # 012: octal or not
      | [-+]?0[xXoObB][0-9a-fA-F_]+                       # 0o12, 0x1f, 0b1
      | [-+]?(?:[0-9][0-9_]*)?\.?[0-9][0-9_]*[eE][-+]?[0-9]+   # 1e3
      | [-+]?[0-9][0-9_]*\.[eE][-+]?[0-9]+
      | [-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?  # 1:30
      | [-+]?[0-9][0-9.]*_[0-9_.]*                        # 1_000
      | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN)
      | [0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?      # a date
    """,
    re.VERBOSE,
)


_NUMERIC = re.compile(r"[-+.:_0-9a-fA-FxXoO]+")


_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")


_LONG_INTEGER = re.compile(r"[-+]?[1-9][0-9]{18,}")


_FRACTION = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)")


_AMBIGUOUS = "ambiguous: some readers take it for a number or a date; write it in quotes"


Scalar = Callable[[str], tuple[Any, str]]
"""The text of an unquoted scalar → its value, and what is wrong with it ("": nothing)."""


def yaml_scalar(text: str) -> tuple[Any, str]:
    """Only what YAML 1.1, YAML 1.2 and kubectl read alike has a type of its own."""
    if text in _WORDS:
        return _WORDS[text], ""
    if text in _AMBIGUOUS_WORDS:
        return text, "ambiguous: write it in quotes, or true or false"
    if text[0] not in "0123456789+-.":
        return text, ""
    if _INTEGER.fullmatch(text):
        return int(text), ""
    if _LONG_INTEGER.fullmatch(text):
        return text, "a number too long to be exact: write it in quotes"
    if len(text) > MAX_NUMBER:
        return text, _AMBIGUOUS if _NUMERIC.fullmatch(text) else ""
    if _FRACTION.fullmatch(text) and not text.lstrip("+-").startswith("00"):
        return float(text), ""
    if _AMBIGUOUS_NUMBER.fullmatch(text):
        return text, _AMBIGUOUS
    return text, ""


def text_scalar(text: str) -> tuple[Any, str]:
    return text or None, ""


_json_value = json.JSONDecoder().raw_decode
"""What ``json.loads`` comes to, at a quarter of its cost: a file may hold 100,000 numbers."""


def json_scalar(text: str) -> tuple[Any, str]:
    try:
        value, end = _json_value(text)
    except ValueError:
        end = -1
    if end != len(text):  # the YAML reader takes no key of more than 1024 characters for one
        return text, "not read: a key before it is longer than 1024 characters"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return text, "a number too long to be exact: write it in quotes"
    return value, ""
