"""Field ownership: what `managedFields` says after each write, and server-side apply itself.

Receives structures, values without their managedFields, and the managers so far; returns new
values and managers, or raises the conflict. It neither reads nor stores objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from gitops_mcp.sandbox import fields
from gitops_mcp.sandbox.errors import ApiError, Cause
from gitops_mcp.sandbox.fields import Comparison, Path, Paths
from gitops_mcp.sandbox.schema import Node


@dataclass(frozen=True, order=True)
class Manager:
    """Who owns: a name, an operation (Apply or Update), a subresource.

    An Update is told apart by API version as well; an Apply has none here.
    """

    name: str
    operation: str
    api_version: str = ""
    subresource: str = ""

    def __str__(self) -> str:
        text = f'"{self.name}"'
        if self.subresource:
            text += f' with subresource "{self.subresource}"'
        return f"{text} using {self.api_version}" if self.operation == "Update" else text


@dataclass(frozen=True)
class Owned:
    """What a manager owns, in the API version in which it wrote, and when it last changed."""

    paths: Paths
    api_version: str
    time: str = ""


Managers = Mapping[Manager, Owned]

UNOWNED_METADATA = (
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
)
NEVER_OWNED: frozenset[Path] = frozenset(
    [("f:apiVersion",), ("f:kind",), ("f:metadata",)]
    + [("f:metadata", f"f:{key}") for key in UNOWNED_METADATA]
)


def load(entries: Iterable[Mapping[str, Any]]) -> dict[Manager, Owned]:
    """The managers of `metadata.managedFields`."""
    managers = {}
    for entry in entries:
        operation, version = entry.get("operation", ""), entry.get("apiVersion", "")
        manager = Manager(
            entry.get("manager", ""),
            operation,
            version if operation == "Update" else "",
            entry.get("subresource", ""),
        )
        paths = fields.decode(entry.get("fieldsV1", {}))
        managers[manager] = Owned(paths, version, entry.get("time", ""))
    return managers


def dump(managers: Managers) -> list[dict[str, Any]]:
    """The managers as `metadata.managedFields`, in the server's order."""
    entries = []
    for manager, owned in sorted(
        managers.items(), key=lambda item: (item[0].operation, item[1].time, item[0])
    ):
        entry = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": owned.api_version,
            "time": owned.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": fields.encode(owned.paths),
            "subresource": manager.subresource,
        }
        entries.append({key: value for key, value in entry.items() if value != ""})
    return entries


def update(
    node: Node,
    live: Any,
    new: Any,
    managers: Managers,
    manager: Manager,
    *,
    api_version: str,
    reset: tuple[Path, ...] = (),
    now: str = "",
) -> dict[Manager, Owned]:
    """The managers after an operation other than apply took `live` to `new`.

    `reset` are the paths that this endpoint ignores.
    """
    change = Comparison(node, live, new)
    change.exclude(reset)
    touched = change.added | change.modified
    out = _without(managers, touched | change.removed)
    gained = frozenset(touched - NEVER_OWNED)
    if gained:
        before = out[manager].paths if manager in out else frozenset()
        out[manager] = Owned(before | gained, api_version, now)
    return out


def apply(
    node: Node,
    live: Any,
    config: Any,
    managers: Managers,
    manager: Manager,
    *,
    api_version: str,
    force: bool,
    reset: tuple[Path, ...] = (),
    now: str = "",
) -> tuple[Any, dict[Manager, Owned]]:
    """The live value with the configuration applied, and the managers after it.

    Raises ApiError 409 where another manager owns a field that would change.
    """
    merged = fields.merge(node, live, config)
    last = managers.get(manager)
    mine = frozenset(fields.exclude(fields.field_set(node, config), reset))
    after = dict(managers)
    after[manager] = Owned(mine, api_version, last.time if last else "")
    if last is not None and not last.paths <= mine:
        merged = _prune(node, merged, after, last.paths)

    change = Comparison(node, live, merged)
    change.exclude(reset)
    touched = change.added | change.modified
    others = {key: owned for key, owned in after.items() if key != manager}
    if not force:
        _refuse(others, touched)
    out = _without(others, touched | change.removed)
    mine -= NEVER_OWNED
    if mine:
        moved = touched or change.removed
        out[manager] = replace(after[manager], paths=mine)
        if moved or not fields.same(live, merged):
            out[manager] = replace(out[manager], time=now)
    return merged, out


def _without(managers: Managers, paths: set[Path]) -> dict[Manager, Owned]:
    out = {}
    for manager, owned in managers.items():
        left = owned.paths - paths
        if left:
            out[manager] = owned if len(left) == len(owned.paths) else replace(owned, paths=left)
    return out


def _prune(node: Node, merged: Any, managers: Managers, last: Paths) -> Any:
    """Remove what this manager applied last time and nobody owns now."""
    once = fields.with_parents(node, last)
    owned = fields.with_parents(node, (path for one in managers.values() for path in one.paths))
    everything = fields.with_parents(node, fields.field_set(node, merged))
    pruned = fields.remove(node, merged, once)
    kept = fields.with_parents(node, fields.field_set(node, pruned))
    pruned = fields.remove(node, merged, everything - (kept | owned))
    kept = fields.with_parents(node, fields.field_set(node, pruned))
    return fields.remove(node, merged, (everything - kept) & once)


def _refuse(others: Managers, touched: set[Path]) -> None:
    conflicts = sorted(
        ((manager, path) for manager, owned in others.items() for path in owned.paths & touched),
        key=lambda conflict: (conflict[0], fields.reading_order(conflict[1])),
    )
    if not conflicts:
        return
    causes = [
        Cause("FieldManagerConflict", f"conflict with {manager}", fields.pretty(path))
        for manager, path in conflicts
    ]
    if len(conflicts) == 1:
        message = f"Apply failed with 1 conflict: {causes[0].message}: {causes[0].field}"
    else:
        lines = []
        for manager, group in groupby(conflicts, key=lambda conflict: conflict[0]):
            lines.append(f"conflicts with {manager}:")
            lines += [f"- {fields.pretty(path)}" for _, path in group]
        message = f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines)
    raise ApiError(409, "Conflict", message, causes=causes)
