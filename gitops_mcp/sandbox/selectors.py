"""Label and field selectors of lists and watches, and the label selectors in specs.

Receives the selector strings of a request; returns predicates on objects. Raises ApiError 400 for
what is no selector, or for a field that a kind cannot be selected by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from gitops_mcp.sandbox.errors import bad_request
from gitops_mcp.sandbox.kinds import Kind
from gitops_mcp.sandbox.storage import KindKey, Object

Predicate = Callable[[Object], bool]

TERM = re.compile(
    r"\s*(?:(?P<key>[^\s!=,()]+)\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\)"
    r"|(?P<absent>!)\s*(?P<gone>[^\s!=,()]+)"
    r"|(?P<name>[^\s!=,()]+)\s*(?:(?P<op>==|=|!=)\s*(?P<value>[^\s,()]*))?)\s*(?:,|$)"
)


def labels(selector: str) -> Predicate:
    """The predicate of a label selector; an empty one selects everything."""
    tests: list[Callable[[Mapping[str, str]], bool]] = []
    at = 0
    while at < len(selector.rstrip()):
        term = TERM.match(selector, at)
        if term is None or term.end() == at:
            found = selector[at:].lstrip()[:1]
            raise bad_request(f"found '{found}', expected: !, identifier, or 'end of string'")
        tests.append(_label_test(term))
        at = term.end()
    return lambda obj: all(test(obj["metadata"].get("labels", {})) for test in tests)


def _label_test(term: re.Match[str]) -> Callable[[Mapping[str, str]], bool]:
    if term["set"]:
        key = term["key"]
        values = {value.strip() for value in term["values"].split(",")}
        if term["set"] == "in":
            return lambda found: key in found and found[key] in values
        return lambda found: found.get(key) not in values
    if term["absent"]:
        gone = term["gone"]
        return lambda found: gone not in found
    name, value = term["name"], term["value"]
    if term["op"] is None:
        return lambda found: name in found
    if term["op"] == "!=":
        return lambda found: found.get(name) != value
    return lambda found: found.get(name) == value


def number(text: str) -> int:
    """A number in a query; ApiError 400 for anything else."""
    try:
        return int(text)
    except ValueError:
        raise bad_request(f'invalid number: "{text}"') from None


SELECTABLE: dict[KindKey, frozenset[str]] = {
    key: frozenset(names.split())
    for key, names in {
        ("", "pods"): "spec.nodeName spec.restartPolicy spec.schedulerName spec.serviceAccountName"
        " status.phase status.podIP status.nominatedNodeName",
        ("", "events"): "involvedObject.kind involvedObject.namespace involvedObject.name"
        " involvedObject.uid involvedObject.apiVersion involvedObject.resourceVersion"
        " involvedObject.fieldPath reason reportingComponent source type",
        ("", "secrets"): "type",
        ("", "namespaces"): "status.phase",
        ("", "services"): "spec.clusterIP spec.type",
        ("", "nodes"): "spec.unschedulable",
        ("apps", "replicasets"): "status.replicas",
        ("events.k8s.io", "events"): "reason type regarding.name regarding.kind"
        " regarding.namespace regarding.uid",
    }.items()
}
"""Fields besides metadata.name and metadata.namespace."""


def fields(kind: Kind, selector: str) -> Predicate:
    """The predicate of a field selector on this kind."""
    tests: list[tuple[list[str], bool, str]] = []
    for term in filter(None, selector.split(",")):
        path, operator, value = re.split(r"(!=|==|=)", term, maxsplit=1) if "=" in term else (
            term, "", "")  # fmt: skip
        known = path in ("metadata.name", "metadata.namespace")
        if not known and path not in SELECTABLE.get(kind.key, ()):
            if kind.definition is not None or kind.key in SELECTABLE:
                raise bad_request(f"field label not supported: {path}")
            known_ones = 'only "metadata.name", "metadata.namespace"'
            raise bad_request(f'"{path}" is not a known field selector: {known_ones}')
        tests.append((path.split("."), operator != "!=", value))
    return lambda obj: all((_look(obj, path) == value) is equal for path, equal, value in tests)


def _look(obj: Any, path: list[str]) -> str:
    for part in path:
        obj = obj.get(part, "") if isinstance(obj, dict) else ""
    return str(obj)


def matches(selector: Object, obj: Object) -> bool:
    """Whether a label selector chooses an object; an empty one chooses all."""
    labels = obj["metadata"].get("labels") or {}
    wanted = (selector.get("matchLabels") or {}).items()
    expressions = selector.get("matchExpressions") or ()
    return wanted <= labels.items() and all(_holds(one, labels) for one in expressions)


def _holds(expression: Object, labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", ())
    return {
        "In": key in labels and labels[key] in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[expression["operator"]]
