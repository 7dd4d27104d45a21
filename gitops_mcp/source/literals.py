"""Secrets that a manifest spells out, where a reference belongs.

Receives a manifest's metadata and spec as the schema accepts them; returns a warning for each value
that is a secret beyond doubt: by a name such as ``DB_PASSWORD``, or by the shape of an issuer's
tokens. A message never quotes the value. What is merely unusual is no finding: a diff hides it all
the same (``masking``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gitops_mcp.base import objects
from gitops_mcp.base.names import JsonObject
from gitops_mcp.base.secretnames import allows, takes_secret
from gitops_mcp.source.documents import Finding, Path

MESSAGE = "looks like a secret: keep it in a Secret and refer to it by secretKeyRef in env"

_CERTAIN = re.compile(
    r"(?i)passw|passphrase|(?:^|[^a-z])pass(?:$|[^a-z])|[a-z0-9]pass$|pwd|(?:^|[^a-z])pw$|secret|token"
    r"|credential|api[_.-]?key|access[_.-]?key|private[_.-]?key|webhook"
)
"""Names whose value is a secret, whatever it looks like."""
_PLACEHOLDER = re.compile(
    r"(?i)<.*>|\[.*\]|(?:change|replace|fill|insert|set)[-_ ]?(?:it|me|this|in|with).*|your[-_ ].*"
    r"|x{3,}|\*+|\.{3}|to[-_ ]?do|tbd|dummy|fake|example|placeholder|redacted|unused|not[-_ ].*"
)
_LONG = re.compile(r"[\w-]{16}|-----BEGIN ")
_LOGIN = re.compile(r"://[^/\s:@]{0,128}:(?!\$)[^/\s@]{1,256}@")


def of_manifest(metadata: JsonObject, spec: JsonObject) -> list[Finding]:
    """A warning for each secret in variables, arguments and annotations."""
    found: list[Path] = []
    for name, value in objects.part(spec, "config").items():
        if _is_secret(name, value):
            found.append(("spec", "config", name))
    for index, item in enumerate(spec.get("env") or ()):
        if _is_secret(item.get("name", ""), item.get("value")):
            found.append(("spec", "env", index, "value"))
    for field in ("command", "args"):
        found += (("spec", field, index) for index in _arguments(spec.get(field) or ()))
    places: tuple[tuple[Path, JsonObject], ...] = (
        (("metadata",), metadata),
        (("spec", "service"), objects.part(spec, "service")),
    )
    for path, parent in places:
        found += ((*path, "annotations", name) for name in _annotations(parent.get("annotations")))
    found += (("spec", "podAnnotations", name) for name in _annotations(spec.get("podAnnotations")))
    return [Finding(path, MESSAGE, severity="warning") for path in found]


def _is_secret(name: str, value: object) -> bool:
    if not isinstance(value, str) or not value:
        return False
    if _CERTAIN.search(name) and not allows(name, value):
        # An address is a secret by what it holds, not by what it is called.
        linked = "://" in value and _is_harmless(value)
        return not linked and not _PLACEHOLDER.fullmatch(value)
    return _gives_itself_away(value)


def _gives_itself_away(value: str) -> bool:
    login = _LOGIN.search(value)
    if login is not None:
        password = login[0].rpartition(":")[2].rstrip("@")
        return not _PLACEHOLDER.fullmatch(password)
    return _LONG.search(value) is not None and _is_token(value)


# Both are slow to import, and most manifests have nothing to ask them.


def _is_token(value: str) -> bool:
    from gitops_mcp.base.masking import token

    return token(value)


def _is_harmless(value: str) -> bool:
    from gitops_mcp.base.harmless import reveal

    return reveal(value) == value


def _arguments(items: Sequence[object]) -> Iterator[int]:
    before = ""
    for index, item in enumerate(items):
        text = item if isinstance(item, str) else ""
        name, equals, value = text.partition("=")
        if (equals and name.startswith("-") and _is_secret(name, value)) or (
            (not text.startswith("-") and takes_secret(before) and _is_secret(before, text))
            or _gives_itself_away(text)
        ):
            yield index
        before = text


def _annotations(found: object) -> Iterator[str]:
    """Annotations often name Secrets (of other tools): what is a word or a path is none."""
    if isinstance(found, dict):
        for name, value in found.items():
            if _is_secret(name, value) and not _is_harmless(value):
                yield name
