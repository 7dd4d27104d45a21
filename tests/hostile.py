"""Input as bad as it comes, for tests of what it takes and benchmarks of what it costs."""

from __future__ import annotations

import random
from collections.abc import Callable

from stage import children, cr

from gitops_mcp.base.names import JsonObject

MIB = 1 << 20
SIZE = MIB // 4
"""Characters of each file here: enough to tell what does not grow with the length."""
HEAD = "apiVersion: mcp.example.com/v1alpha1\nkind: MCPServer\nmetadata: {name: web}\n"
GOOD = HEAD + "spec:\n  image: ghcr.io/example/web:1.0\n"


def full(part: str, size: int = SIZE) -> str:
    """``part`` again and again, ``size`` characters."""
    return (part * (size // len(part) + 1))[:size]


def servers(text: str) -> str:
    """So many documents like this one, each of another server."""
    each = (text.replace("name: web", f"name: web-{n}") for n in range(SIZE // len(text)))
    return "---\n".join(each)[:SIZE]


SHAPES: dict[str, str] = {
    # What the patterns of a scanner may trip over.
    "a directive and blank lines": "%a\n" + "\n" * 60 + "x: 1\n---\n",
    "directives only": "---\n%a" + full("\n \n") + "x\n",
    "a number and a letter": "a: " + full("1") + "x\n",
    "digits with underlines": "a: " + full("1_1") + ".x\n",
    "an exponent": "a: " + full("1") + "e" + "\n",
    "sexagesimal": "a: " + full("1:") + "x\n",
    "a fraction": GOOD + "  port: " + full("1") + ".0\n",
    "one long key": GOOD + "  " + full("a", SIZE - 200) + ": 1\n",
    # As many things as there can be.
    "lists": "[" + full("[],") + "]",
    "lists below lists": "[" + full(f"{'[' * 40}{']' * 40},") + "]",
    "maps": "[" + full("{a: },") + "]",
    "maps of maps": "[" + full("{a: {b: {c: d}}},") + "]",
    "scalars": GOOD + "  args: [" + full("a,") + "]",
    "items": GOOD + "  args:\n" + full("  - a\n"),
    "variables": GOOD + "  env:\n" + full("  - {name: A, value: b}\n"),
    "keys": GOOD + "  config:\n" + "".join(f"    K{n}: a\n" for n in range(17_000)),
    "nulls": GOOD + "  config:\n" + "".join(f"    K{n}:\n" for n in range(17_000)),
    "unknown fields": GOOD + "".join(f"  k{n}: a\n" for n in range(17_000)),
    "unknown fields without values": GOOD + "".join(f"  k{n}:\n" for n in range(17_000)),
    "the same key": GOOD + full("  port: 1\n"),
    "one key of many twice": "".join(f"k{n}: 1\n" for n in range(10_000)) + full("k9999: 1\n"),
    "tags and anchors": GOOD + "  args:\n" + full("  - !t &a x\n"),
    "aliases": GOOD + "  args: [&a x," + full("*a,") + "]",
    "documents": full("---\na\n"),
    "documents with an end": full("a\n...\n"),
    "empty documents": full("---\n"),
    "comments": full("# a\n"),
    "broken documents": full("---\na: [\n"),
    "broken manifests": servers(HEAD + "spec: {\n"),
    "wrong manifests": servers(GOOD + "  ports: 1\n"),
    "two manifests of each server": full("---\n" + GOOD),
    "items of a list": "apiVersion: v1\nkind: List\nitems:\n" + full("- {kind: MCPServer}\n"),
    "manifests": servers(
        GOOD + "  env: [{name: A, value: b}]\n  config: {B: c}\n"
        "  resources: {limits: {memory: 64Mi, cpu: 500m}}\n"
    ),
}
JSON_SHAPES: dict[str, str] = {
    "an open string of quotes": r'{"a": "\ud83d\ude00", "b": "' + full(r"\""),
    "an open string of backslashes": r'{"a": "\ud83d\ude00", "b": "' + full("\\"),
    "numbers": '{"kind": "MCPServer", "a": [' + full("1,") + "1]}",
    "surrogates": '["' + full(r"\ud83d\ude00", SIZE - 4) + '"]',
    "levels": full("["),
    "objects": "[" + full('{"a":[]},') + "{}]",
}


# --- objects as large as an API server takes them ---

LARGEST = 1_500_000
"""Bytes of an object that etcd takes."""

_random = random.Random(9)


def noise(length: int) -> str:
    """Nothing that packs well."""
    return "".join(_random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=length))


def conditions(count: int) -> list[JsonObject]:
    return [
        {"type": f"Type{number}", "status": "True", "reason": "X", "message": noise(60)}
        for number in range(count)
    ]


def many_conditions() -> list[JsonObject]:
    return [{**cr(), "status": {"conditions": conditions(10_000)}}]


def large_annotations() -> list[JsonObject]:
    return [cr(annotations={f"example.com/{number}": noise(1000) for number in range(250)})]


def many_managers() -> list[JsonObject]:
    body = cr()
    tree: JsonObject = {"f:metadata": {"f:annotations": {f"f:x/{each}": {} for each in range(100)}}}
    entry = {"manager": "m", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": tree}
    entries = body["metadata"]["managedFields"]
    body["metadata"]["managedFields"] = [*entries, *({**entry} for _ in range(500))]
    return [body]


def pod() -> list[JsonObject]:
    labels = {"app.kubernetes.io/instance": "web"}
    metadata = {"name": "web-1", "namespace": "ai", "uid": "p", "resourceVersion": "9"}
    status = {"podIP": "10.0.0.1", "conditions": conditions(10_000)}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {**metadata, "labels": labels}}
    return [cr(), {**made, "status": status}]


def deployment() -> list[JsonObject]:
    body = children(cr())[0]
    env = [{"name": f"E{number}", "value": noise(60)} for number in range(10_000)]
    body["spec"]["template"]["spec"]["containers"][0]["env"] = env
    return [cr(), body]


def service() -> list[JsonObject]:
    body = children(cr())[1]
    ports = [{"name": f"p{n}", "port": n, "protocol": "TCP"} for n in range(1, 10_000)]
    body["spec"]["ports"] = ports
    return [cr(), body]


HUGE: list[Callable[[], list[JsonObject]]] = [
    many_conditions,
    large_annotations,
    many_managers,
    pod,
    deployment,
    service,
]
