"""The headers of a handshake that come from Secrets: an inquiry in, its headers with values out."""

from __future__ import annotations

import base64
import re

from gitops_mcp.base import objects
from gitops_mcp.base.errors import KubeError, Permanent
from gitops_mcp.base.model import Probe
from gitops_mcp.base.names import ObjectRef
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.sync.memory import Kube


class NoHeaders(Exception):
    """A Secret of ``health.headersFrom`` cannot be used; the text says why."""


def read(kube: Kube, namespace: str, inquiry: Probe) -> dict[str, str]:
    """The values of ``health.headersFrom``, read again each time: a rotated Secret counts at
    once, and none is kept. Raises NoHeaders, which says why, and no value."""
    secrets: dict[str, LiveObject] = {}
    headers: dict[str, str] = {}
    for header in inquiry.headers_from:
        where = f"health.headersFrom: Secret {namespace}/{header.secret}"
        ref = ObjectRef("v1", "Secret", namespace, header.secret)
        try:
            secret = secrets.get(header.secret) or kube.get(ref)
        except Permanent:
            hint = "the agent may not read it (gitops-mcp install --handshake-secrets)"
            raise NoHeaders(f"{where}: {hint}") from None
        except KubeError as error:
            raise NoHeaders(f"{where} cannot be read: {error.category} error") from None
        if secret is None:
            raise NoHeaders(f"{where} does not exist")
        secrets[header.secret] = secret
        coded = objects.part(secret, "data").get(header.key)
        if coded is None:
            raise NoHeaders(f"{where} has no key {header.key}")
        try:
            value = base64.b64decode(coded).rstrip(b"\r\n")
        except ValueError:
            value = b""
        if not re.fullmatch(rb"[!-~](?:[ -~]*[!-~])?", value):
            raise NoHeaders(f"{where}: the value of {header.key} is not one line of ASCII")
        headers[header.name] = header.prefix + value.decode()
    return headers
