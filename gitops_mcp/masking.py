"""Hides what may be a secret, before a value reaches a screen, a file, a note or an event.

Receives decoded JSON values and text; returns copies in which secret-like values are replaced by a
marker. It judges by the *name* of a value (a map key, or the name of the variable that holds it)
and, in any text, by well-known shapes: credentials in a URL, ``--password=…``, private keys, tokens
with a registered prefix. References to Secrets are names and stay readable.
It never raises and never changes its argument. When in doubt it hides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from gitops_mcp.model import JsonObject

MASK = "***"

_REFERENCES = frozenset(
    {
        "imagePullSecrets",
        "secret",
        "secretKeyRef",
        "secretName",
        "secretRef",
        "serviceAccountToken",
    }
)
"""Keys of the pod API that speak of Secrets without holding any: their values are names."""

_WORDS = (
    r"(?:passw(?:or)?d|passphrase|pwd|secret|token|credential|bearer|authorization|cookie|dsn|jwt"
    r"|webhook|conn(?:ection)?[_.-]?(?:str|string|uri|url)"
    r"|(?:api|access|account|auth|encryption|master|private|session|shared|signing)[_.-]?key)"
)
# "pass", "auth" and "key" are parts of innocent words (bypass, author, topologyKey): whole words
# only, and "key" alone is a field of the pod API.
_SECRETIVE = re.compile(
    rf"{_WORDS}|(?:^|[_.-])(?:pass|auth|pat|creds)(?:$|[_.-])|[_.-]keys?$", re.IGNORECASE
)
_NAME = rf"[\w.-]{{0,64}}{_WORDS}[\w.-]{{0,64}}"  # bounded: the text is untrusted
_QUOTED = r"'[^']*'|\"[^\"]*\""

_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.S), MASK),
    # scheme://user:password@host; the last @ before the path ends the credentials.
    (re.compile(r"(?<=://)[^/\s?#]*@"), f"{MASK}@"),
    (re.compile(r"\b(Bearer|Basic)\s+(?=\S*[\d=])[\w.~+/=-]{6,}", re.I), rf"\1 {MASK}"),
    # token=…, --api-key=…, "password": "…"
    (
        re.compile(
            rf"(?<![\w.-])(-{{0,2}}{_NAME}(?:\s*=\s*|['\"]\s*:\s*))(?:{_QUOTED}|[^\s&;,'\"}}]+)",
            re.I,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(rf"(?<!\S)(--{_NAME}\s+)(?!-)\S+", re.I), rf"\1{MASK}"),
    (
        re.compile(
            r"\b(?:gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{8,}"
            r"|sk-[\w-]{16,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
        ),
        MASK,
    ),
)
_SUSPECT = re.compile(r"[@=\s'\"]|gh|glpat-|xox|sk-|AKIA|eyJ")
"""Without any of these no shape matches: most values are let through by one look."""
_FLAG = re.compile(rf"--?{_NAME}", re.I)
"""An argument whose value is the next argument."""
_HEADER = re.compile(rf"\A({_NAME}:\s*)\S.*", re.I | re.S)
"""A value that is an HTTP header as a whole."""


@lru_cache(maxsize=8192)
def secretive(name: str) -> bool:
    """Whether a value of this name may be a secret."""
    return _SECRETIVE.search(name) is not None


def scrub(text: str) -> str:
    """``text`` without the secrets that its shape gives away, e.g. ``https://***@host/path``."""
    if not _SUSPECT.search(text):
        return text
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


def hides(parent: Mapping[str, Any], key: str, *, hidden: bool = False) -> bool:
    """Whether ``parent[key]`` is hidden; ``hidden``: whether ``parent`` is.

    The ``value`` of an item with a ``name`` (a variable, a header) is judged by that name.
    """
    if key in _REFERENCES:
        return False
    if hidden:
        return True
    if key == "value" and isinstance(name := parent.get("name"), str):
        return secretive(name)
    return secretive(key)


def mask(value: Any, *, hidden: bool = False) -> Any:
    """``value`` with its secrets hidden; ``hidden``: all of its scalars are secret."""
    if isinstance(value, dict):
        return {k: mask(v, hidden=hides(value, k, hidden=hidden)) for k, v in value.items()}
    if isinstance(value, list):
        return [mask(v, hidden=hidden or _follows_flag(value, i)) for i, v in enumerate(value)]
    if value is None or isinstance(value, bool) or value == "":
        return value
    if hidden:
        return MASK
    if not isinstance(value, str):
        return value
    return scrub(_HEADER.sub(rf"\1{MASK}", value) if ":" in value else value)


def masked(body: JsonObject) -> JsonObject:
    """A whole object with its secrets hidden."""
    result: JsonObject = mask(body)
    return result


def mask_pair(before: Any, after: Any, *, hidden: bool = False) -> tuple[Any, Any]:
    """Two states of one value, masked. Where only hidden parts differ, the second says so."""
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = {
            key: mask_pair(
                value,
                after[key],
                hidden=hides(before, key, hidden=hidden) or hides(after, key, hidden=hidden),
            )
            for key, value in before.items()
            if key in after
        }
        one, two = (
            {
                key: pairs[key][side]
                if key in pairs
                else mask(value, hidden=hides(body, key, hidden=hidden))
                for key, value in body.items()
            }
            for side, body in enumerate((before, after))
        )
        return one, two
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        items = [
            mask_pair(*pair, hidden=hidden or _follows_flag(before, i) or _follows_flag(after, i))
            for i, pair in enumerate(zip(before, after, strict=True))
        ]
        return [pair[0] for pair in items], [pair[1] for pair in items]
    left, right = mask(before, hidden=hidden), mask(after, hidden=hidden)
    return left, f"{right} (changed)" if before != after and left == right else right


def _follows_flag(items: list[Any], position: int) -> bool:
    previous = items[position - 1] if position else None
    return isinstance(previous, str) and _FLAG.fullmatch(previous) is not None
