"""Kubernetes' quantities (``500m``, ``1.5Gi``, ``1e3``) as numbers, by the API server's rule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import MAX_EMAX, MIN_EMIN, ROUND_UP, Context, Decimal
from types import MappingProxyType
from typing import Final

_TEXT: Final = re.compile(
    r"([-+]?)([0-9]*)\.?([0-9]*)(?:([KMGTPE]i)|([numkMGTPE])|[eE]([-+]?[0-9]{1,5}))?"
)
"""``m`` is 0, as it is to the API server. An exponent may have five digits: the server would take
more, but compares 1e10000000 with a limit for ten seconds."""
_POWERS: Final[Mapping[str, int]] = MappingProxyType(
    {s: 3 * n for n, s in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)}
)
_BINARY: Final[Mapping[str, Decimal]] = MappingProxyType(
    {f"{s}i": Decimal(1024) ** n for n, s in enumerate("KMGTPE", 1)}
)
_MOST: Final = Decimal(2**63 - 1)
_FINEST: Final = Decimal("0.001")


def parse(value: object) -> Decimal | None:
    """The value of a quantity as resources store it; None for what is no quantity.

    What is finer than a thousandth is rounded up, away from 0; a binary one (``8Ei``) is at most
    2^63 - 1. A decimal one has no such limit.
    """
    text = str(value)
    match = _TEXT.fullmatch(text) if text else None
    if match is None:
        return None
    sign, whole, fraction, binary, decimal, exponent = match.groups()
    exact = Context(len(text) + 24, ROUND_UP, MIN_EMIN, MAX_EMAX)
    number = Decimal(f"{sign}{whole}.{fraction}" if whole or fraction else 0)
    if binary:
        number = exact.multiply(number, _BINARY[binary])
        number = max(min(number, _MOST), -_MOST)
    else:
        number = exact.scaleb(number, int(exponent) if exponent else _POWERS[decimal or ""])
    fine = number.as_tuple().exponent
    return number.quantize(_FINEST, context=exact) if fine < -3 else number  # type: ignore[operator]
