"""Resource quantities (`500m`, `1Gi`) in the spelling in which the API server stores them."""

from __future__ import annotations

import re
from decimal import ROUND_UP, Decimal
from functools import lru_cache

PATTERN = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+))([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+|)$")
BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
BAD = (
    "quantities must match the regular expression "
    r"'^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)


def amount(text: str) -> Decimal:
    """A quantity's value; ValueError for what is no quantity."""
    match = PATTERN.match(text)
    if match is None:
        raise ValueError(BAD)
    number, suffix = Decimal(match[1]), match[2]
    if suffix in BINARY:
        return number * Decimal(1024) ** BINARY[suffix]
    return number.scaleb(DECIMAL[suffix] if suffix in DECIMAL else int(suffix[1:]))


@lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """The stored spelling of a quantity: the largest suffix that leaves no fraction.

    The form is kept (binary, decimal or exponent); what is finer than a nano is rounded up.
    Raises ValueError for what is no quantity.
    """
    value = amount(text)
    suffix = PATTERN.sub(r"\2", text)
    if suffix in BINARY and abs(value) >= 1024 and value == value.to_integral_value():
        return _scaled(value, [(name, 1024**power) for name, power in BINARY.items()])
    if suffix in BINARY or suffix in DECIMAL:
        value = value.quantize(Decimal("1e-9"), ROUND_UP)
        return _scaled(value, [(name, Decimal(10) ** power) for name, power in DECIMAL.items()])
    if value == 0:
        return "0"
    exponent = 0
    while value == (value / 1000).to_integral_value() * 1000:
        value /= 1000
        exponent += 3
    return f"{int(value)}e{exponent}" if exponent else f"{int(value)}"


def rounded(text: str) -> str:
    """A stored quantity as resources store it: what is finer than a thousandth is rounded up."""
    value = amount(text)
    whole = value.quantize(Decimal("1e-3"), ROUND_UP)
    return text if whole == value else canonical(str(whole))


def _scaled(value: Decimal, suffixes: list[tuple[str, Decimal | int]]) -> str:
    if value == 0:
        return "0"
    best = ("", Decimal(1))
    for name, factor in suffixes:
        if value % factor == 0:
            best = (name, Decimal(factor))
    return f"{int(value / best[1])}{best[0]}"
