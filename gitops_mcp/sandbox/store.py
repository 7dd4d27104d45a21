"""What every write goes through: the rules of the API server, without HTTP.

Receives objects, patches and deletes together with who sends them; returns what is stored, or
raises `ApiError` with the real server's answer. Reads return shared objects: copy before you
change one. It never waits, starts no thread and knows no controller; clock and randomness come
from outside, so that one seed is one run.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gitops_mcp.sandbox import apply, crds, errors, fields, schema, structural, validation
from gitops_mcp.sandbox import services as service_rules
from gitops_mcp.sandbox.apply import Manager, Managers
from gitops_mcp.sandbox.errors import ApiError, Cause
from gitops_mcp.sandbox.kinds import CRDS, NAMESPACES, Kind, Registry
from gitops_mcp.sandbox.schema import MISSING, Decoding, Mismatch, Node
from gitops_mcp.sandbox.storage import KindKey, Object, Storage, Stored, WatchEvent, dumps

__all__ = ["ApiError", "KindKey", "Object", "Store", "WatchEvent", "timestamp"]

Objects = list[Object]

PODS: KindKey = ("", "pods")
SERVICES: KindKey = ("", "services")
DEPLOYMENTS: KindKey = ("apps", "deployments")
SYSTEM_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
REPLICAS: fields.Path = ("f:spec", "f:replicas")
MAX_CUSTOM_OBJECT = 1_500_000
"""Bytes; etcd's limit, which only a custom object meets below the request's own limit."""


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as `metav1.Time`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Writing:
    """How one write is done: by whom, on which subresource, for real or not."""

    manager: str
    subresource: str = ""
    dry_run: bool = False
    decoding: Decoding | None = None

    def as_manager(self, kind: Kind, operation: str = "Update") -> Manager:
        version = kind.api_version if operation == "Update" else ""
        return Manager(self.manager[:128], operation, version, self.subresource)

    def reader(self) -> Decoding:
        return self.decoding or Decoding()


class Store:
    """The cluster's objects."""

    def __init__(
        self,
        state: Path | None = None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        seed: int | None = None,
    ) -> None:
        self.registry = Registry()
        self.storage = Storage(state)
        self.clock = clock
        self._random = random.Random(seed)  # noqa: S311 - names and uids of a sandbox
        for crd in self.list(CRDS):
            self.serve(crd)
        for name in SYSTEM_NAMESPACES:
            if self.get(NAMESPACES, None, name) is None:
                self.create(NAMESPACES, {"metadata": {"name": name}}, manager="kube-apiserver")

    # --- reading --------------------------------------------------------------------------------

    def get(self, kind: KindKey, namespace: str | None, name: str) -> Object | None:
        """The object, or None."""
        stored = self.storage.get(kind, namespace, name)
        return stored.object if stored else None

    def list(self, kind: KindKey, namespace: str | None = None) -> Objects:
        """Every object of the kind (in one namespace), by namespace and name."""
        return [stored.object for stored in self.storage.list(kind, namespace)]

    def subscribe(self, callback: Callable[[WatchEvent], None]) -> Callable[[], None]:
        """Call `callback` after every change, in order; returns what ends the subscription."""
        return self.storage.subscribe(callback)

    def node(self, kind: Kind) -> Node:
        """The kind's structure."""
        if kind.definition is not None:
            return kind.definition.node
        return schema.built_in(kind.group, kind.version, kind.name)

    # --- writing --------------------------------------------------------------------------------

    def create(self, kind: KindKey, obj: Object, *, manager: str) -> Object:
        """Store a new object."""
        return self.insert(self.registry.stored(kind), obj, Writing(manager))

    def update(
        self, kind: KindKey, obj: Object, *, manager: str, subresource: str | None = None
    ) -> Object:
        """Replace an object (or its subresource), guarded by its resourceVersion if it has one."""
        return self.replace(self.registry.stored(kind), obj, Writing(manager, subresource or ""))

    def delete(
        self,
        kind: KindKey,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        grace: int | None = None,
        rv: str | None = None,
        propagation: str | None = None,
        dry_run: bool = False,
    ) -> Object | None:
        """Delete an object: at once (None), or by a deletionTimestamp while something holds it.

        `uid` and `rv` are preconditions; `grace` is in seconds (pods only); `propagation` is
        Background, Foreground or Orphan.
        """
        known = self.registry.stored(kind)
        old = self._existing(known, namespace, name)
        _precondition(known, old, uid, rv)
        new = deepcopy(old)
        meta = new["metadata"]
        _hold(known, new, propagation)
        seconds = _grace(known, old, grace)
        if not seconds and not meta.get("finalizers") and not _held(known, new):
            if not dry_run:
                self._remove(known, old)
            return None
        deadline = timestamp(self.clock() + timedelta(seconds=seconds))
        if "deletionTimestamp" not in meta:
            meta["deletionTimestamp"] = deadline
            meta["deletionGracePeriodSeconds"] = seconds
            if kind == CRDS:
                del meta["deletionGracePeriodSeconds"]  # it has a way of its own
            elif meta.get("generation"):
                meta["generation"] += 1
        elif seconds < meta.get("deletionGracePeriodSeconds", 0):
            meta["deletionTimestamp"] = deadline
            meta["deletionGracePeriodSeconds"] = seconds
        if kind == NAMESPACES:
            new["status"] = {**new.get("status", {}), "phase": "Terminating"}
        if fields.same(new, old) or dry_run:
            return new
        return self._put(known, new)

    def finish(self, kind: KindKey, obj: Object) -> None:
        """Remove a terminating object whose last hold, which `obj` lacks, is gone."""
        known = self.registry.stored(kind)
        if obj["metadata"].get("finalizers"):
            self._put(known, obj)
        else:
            self._remove(known, obj)

    # --- writing with every option ---------------------------------------------------------------

    def insert(self, kind: Kind, obj: Object, writing: Writing) -> Object:
        """Create from a full body."""
        new = self.decode(kind, obj, writing.reader())
        return self._insert(
            kind, new, writing, lambda: self._updated(kind, self._nothing(kind), new, writing)
        )

    def replace(self, kind: Kind, obj: Object, writing: Writing) -> Object:
        """Update from a full body: PUT."""
        new = self.decode(kind, obj, writing.reader())
        meta = new["metadata"]
        old = self._existing(kind, meta.get("namespace"), meta.get("name", ""))
        if meta.get("uid") not in (None, "", old["metadata"]["uid"]):
            raise errors.conflict(
                kind,
                meta["name"],
                f"StorageError: invalid object, Code: 4, Key: {_etcd_key(kind, old)},"
                " ResourceVersion: 0,"
                " AdditionalErrorMsg: Precondition failed: UID in precondition:"
                f" {meta['uid']}, UID in object meta: {old['metadata']['uid']}",
            )
        if not meta.get("resourceVersion") and not kind.unconditional:
            cause = validation.invalid(
                "metadata.resourceVersion", 0, "must be specified for an update"
            )
            raise errors.invalid(kind.group, kind.plural, meta["name"], [cause])
        return self._updated_object(kind, old, new, writing)

    def modify(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        change: Callable[[Object], Object],
        writing: Writing,
    ) -> Object:
        """Update from a patch: `change` receives the object and returns the patched one."""
        old = self._existing(kind, namespace, name)
        patched = change(old)
        if not isinstance(patched, dict):
            raise errors.bad_request("the patch leaves no object")
        try:
            new = self.decode(kind, patched, writing.reader())
        except ApiError as exc:
            if kind.definition is not None or not isinstance(exc.__cause__, Mismatch):
                raise
            # The real server quotes the whole object here, secrets included.
            whole = dumps(dumps(patched).decode()).decode()
            cause = Cause("FieldValueInvalid", f"Invalid value: {whole}: {exc.__cause__}", "patch")
            raise errors.invalid("", "", "", [cause]) from exc
        if new["metadata"].get("name") != name:
            raise errors.bad_request(
                f"the name of the object ({new['metadata'].get('name', '')}) does not match the"
                f" name on the URL ({name})"
            )
        return self._updated_object(kind, old, new, writing)

    def apply(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        config: Object,
        writing: Writing,
        *,
        force: bool,
    ) -> tuple[Object, bool]:
        """Server-side apply; returns the object and whether it was created."""
        node = self.node(kind)
        if not isinstance(config.get("metadata") or {}, dict):
            (problem,) = fields.check(node, {"metadata": config["metadata"]})
            raise errors.unclassified(f"failed to create typed patch object: {problem}")
        config = dict(config)
        metadata = config["metadata"] = {**(config.get("metadata") or {}), "name": name}
        where = f"{kind.group}/{kind.version}"
        who = f"({metadata.get('namespace', '')}/{name}; {where}, Kind={kind.name})"
        if namespace:
            metadata["namespace"] = namespace
        old = self.get(kind.key, namespace, name)
        if old is None and writing.subresource:
            raise errors.not_found(kind, name)
        if old is None and metadata.get("uid"):
            raise errors.conflict(
                kind,
                name,
                f"uid mismatch: the provided object specified uid {metadata['uid']}, and no"
                " existing object was found",
            )
        problems = list(fields.check(node, config))
        if problems:
            listed = problems[0] if len(problems) == 1 else "\n  ".join(["errors:", *problems])
            raise errors.unclassified(f"failed to create typed patch object {who}: {listed}")
        live = _without_managers(old) if old is not None else {}
        managers = apply.load(old["metadata"].get("managedFields", ())) if old else {}
        if old is not None and not managers:
            unknown = Manager("before-first-apply", "Update", kind.api_version)
            managers = apply.update(
                node,
                self._nothing(kind),
                live,
                {},
                unknown,
                api_version=kind.api_version,
                now=timestamp(self.clock()),
            )
        merged, managers = apply.apply(
            node,
            live,
            config,
            managers,
            writing.as_manager(kind, "Apply"),
            api_version=kind.api_version,
            force=force,
            reset=_reset(kind, writing.subresource),
            now=timestamp(self.clock()),
        )
        try:
            new = self._read(kind, merged, Decoding(), applied=True)
        except Mismatch as exc:
            raise errors.unclassified(
                f"failed to convert new object {who} to proper version: unable to convert"
                f" unstructured object to {kind.api_version}, Kind={kind.name}: {exc}"
            ) from None
        if old is None:
            return self._insert(kind, new, writing, lambda: managers), True
        return self._write(kind, old, new, writing, managers), False

    def decode(self, kind: Kind, body: Object, decoding: Decoding) -> Object:
        """A body as the server holds it; ApiError 400 for what its types cannot hold."""
        try:
            return self._read(kind, body, decoding)
        except Mismatch as exc:
            raise errors.bad_request(
                f'{kind.name} in version "{kind.version}" cannot be handled as a {kind.name}: {exc}'
            ) from exc

    def scale(
        self, kind: Kind, namespace: str | None, name: str, replicas: int, writing: Writing
    ) -> Object:
        """Set spec.replicas through /scale, which becomes an owner only of what was owned."""
        old = self._existing(kind, namespace, name)
        new = deepcopy(old)
        new.setdefault("spec", {})["replicas"] = replicas
        managers: Managers = apply.load(old["metadata"].get("managedFields", ()))
        if any(REPLICAS in owned.paths for owned in managers.values()):
            # Such an entry has no time.
            managers = self._updated(kind, _without_managers(old), _without_managers(new), writing,
                                     managers)  # fmt: skip
        return self._write(kind, old, new, writing, managers)

    # --- custom kinds ----------------------------------------------------------------------------

    def serve(self, crd: Object) -> None:
        """Serve what an established CRD defines, and show its defaults in what is stored."""
        conditions = crd.get("status", {}).get("conditions") or ()
        if not any(one["type"] == "Established" and one["status"] == "True" for one in conditions):
            return
        served, stored = crds.kinds(crd)
        self.registry.replace(stored.key, served, stored)
        node = self.node(stored)
        self.storage.refresh(stored.key, lambda obj: structural.default(node, obj))

    def forget(self, crd: Object) -> None:
        """Serve a CRD's kinds no more."""
        key = crd["spec"]["group"], crd["spec"]["names"]["plural"]
        self.registry.replace(key, (), None)

    # --- the steps of a write --------------------------------------------------------------------

    def _read(
        self, kind: Kind, body: Object, decoding: Decoding, *, applied: bool = False
    ) -> Object:
        node = self.node(kind)
        if kind.definition is None:
            new = schema.read(node, body, "", decoding)
        else:
            metadata = schema.object_meta()
            rest = {key: value for key, value in body.items() if key != "metadata"}
            # Apply keeps nulls (a type error later); the other verbs drop them.
            new = rest if applied else structural.prune(node, rest, "", decoding)
            new = structural.default(node, new)
            found = schema.read(metadata, body.get("metadata") or {}, "metadata", decoding)
            new["metadata"] = found
        return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": {}} | {
            key: value for key, value in new.items() if key not in ("apiVersion", "kind")
        }

    def _nothing(self, kind: Kind) -> Object:
        """What a new object is compared with for its owners."""
        return schema.zero(self.node(kind)) if kind.definition is None else {}

    def _existing(self, kind: Kind, namespace: str | None, name: str) -> Object:
        old = self.get(kind.key, namespace, name)
        if old is None:
            raise errors.not_found(kind, name)
        return old

    def _insert(
        self, kind: Kind, new: Object, writing: Writing, managers: Callable[[], Managers]
    ) -> Object:
        meta = new["metadata"]
        for field in [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "deletionTimestamp",
            "generation",
            "selfLink",
            "deletionGracePeriodSeconds",
            "managedFields",
        ]:
            meta.pop(field, None)
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + self._suffix()
        if not kind.namespaced:
            meta.pop("namespace", None)
        if not meta.get("name"):
            why = "name or generateName is required"
            causes = [validation.required("metadata.name", why)]
            if kind.definition is not None and kind.definition.rules:
                causes.append(structural.UNCHECKED)
            raise self._refuse(kind, new, causes)
        self._admit(kind, new)
        owners = managers()
        meta["uid"] = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        meta["creationTimestamp"] = timestamp(self.clock())
        if kind.generation:
            meta["generation"] = 1
        _reset_on_create(kind, new)
        meta["managedFields"] = apply.dump(owners)
        if not meta["managedFields"]:
            del meta["managedFields"]
        self._allot(kind, new, None, writing)
        self._validate(kind, new, None)
        old = self.get(kind.key, meta.get("namespace"), meta["name"])
        if old is not None:
            terminating = "deletionTimestamp" in old["metadata"]
            raise errors.already_exists(kind, meta["name"], terminating=terminating)
        return new if writing.dry_run else self._put(kind, new)

    def _updated_object(self, kind: Kind, old: Object, new: Object, writing: Writing) -> Object:
        given = new["metadata"].pop("managedFields", None)
        if given and not writing.subresource:
            # Sent along as a rule; `[{}]` is the documented way to reset it.
            old_entries = [] if given == [{}] else given
        else:
            old_entries = old["metadata"].get("managedFields", [])
        try:
            before = apply.load(old_entries)
        except (AttributeError, TypeError, ValueError):  # what was sent is no field set
            before = apply.load(old["metadata"].get("managedFields", []))
        _restore(kind, new, old, writing.subresource)
        managers = self._updated(kind, _without_managers(old), new, writing, before)
        return self._write(kind, old, new, writing, managers)

    def _updated(
        self,
        kind: Kind,
        live: Object,
        new: Object,
        writing: Writing,
        managers: Managers | None = None,
    ) -> Managers:
        try:
            return apply.update(
                self.node(kind),
                live,
                new,
                managers or {},
                writing.as_manager(kind),
                api_version=kind.api_version,
                reset=_reset(kind, writing.subresource),
                now="" if writing.subresource == "scale" else timestamp(self.clock()),
            )
        except ValueError:  # an item without its key, which validation will refuse
            return managers or {}

    def _write(
        self, kind: Kind, old: Object, new: Object, writing: Writing, managers: Managers
    ) -> Object:
        _restore(kind, new, old, writing.subresource)
        meta, before = new["metadata"], old["metadata"]
        name = before["name"]
        if meta.get("resourceVersion") not in (None, "", "0", before["resourceVersion"]):
            raise errors.conflict(kind, name)
        for field in [
            "name",
            "namespace",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "resourceVersion",
            "generateName",
        ]:
            meta.pop(field, None)
            if field in before:
                meta[field] = before[field]
        meta.setdefault("uid", before["uid"])
        meta.pop("managedFields", None)
        if entries := apply.dump(managers):
            meta["managedFields"] = entries
        self._allot(kind, new, old, writing)
        if _spec_changed(kind, new, old, writing.subresource):
            meta["generation"] = before.get("generation", 0) + 1
        self._validate(kind, new, old)
        if _equal(new, old):
            return old
        if writing.dry_run:
            return new
        if before.get("deletionTimestamp") and not meta.get("finalizers"):
            held = _held(kind, new) or before.get("deletionGracePeriodSeconds")
            if not held:
                self._remove(kind, old)
                return new
        return self._put(kind, new)

    def _admit(self, kind: Kind, new: Object) -> None:
        meta = new["metadata"]
        name = meta["name"]
        if kind.definition is not None and kind.definition.terminating:
            why = "create not allowed while custom resource definition is terminating"
            raise ApiError(
                403,
                "Forbidden",
                why,
                details={"name": name, "group": kind.group, "kind": kind.plural},
            ) from None
        if not kind.namespaced:
            return
        namespace = meta.get("namespace", "")
        found = self.get(NAMESPACES, None, namespace)
        if found is None:
            raise errors.not_found(self.registry.stored(NAMESPACES), namespace)
        if "deletionTimestamp" in found["metadata"]:
            cause = Cause(
                "NamespaceTerminating",
                f"namespace {namespace} is being terminated",
                "metadata.namespace",
            )
            why = (
                f"unable to create new content in namespace {namespace} because it is being"
                " terminated"
            )
            raise errors.forbidden(kind, name, why, [cause])

    def _allot(self, kind: Kind, new: Object, old: Object | None, writing: Writing) -> None:
        if kind.key == SERVICES:
            others = (other for other in self.list(SERVICES) if other is not old)
            service_rules.allot(new, old, others, dry_run=writing.dry_run)

    def _validate(self, kind: Kind, new: Object, old: Object | None) -> None:
        causes = list(validation.metadata(kind, new, old))
        if kind.definition is not None:
            before = MISSING if old is None else old
            causes = structural.validate(
                kind.definition.node, new, before, rules=kind.definition.rules, known=causes
            )
            spec = new.get("spec")
            replicas = spec.get("replicas") if isinstance(spec, dict) else None
            if kind.definition.scale and isinstance(replicas, int) and replicas < 0:
                why = "should be a non-negative integer"
                causes.append(validation.invalid(".spec.replicas", replicas, why))
        elif kind.key == CRDS:
            causes += crds.validate(new)
        elif kind.key in validation.KINDS:
            causes += validation.KINDS[kind.key](new, old)
        if causes:
            raise self._refuse(kind, new, causes)
        if kind.definition is not None and len(dumps(new)) > MAX_CUSTOM_OBJECT:
            raise errors.unclassified("etcdserver: request is too large")

    def _refuse(self, kind: Kind, new: Object, causes: Iterable[Cause]) -> ApiError:
        group = "" if kind.plural == "events" else kind.group  # both groups' Events are one kind
        return errors.invalid(group, kind.name, new["metadata"].get("name", ""), causes)

    def _put(self, kind: Kind, new: Object) -> Object:
        return self.storage.put(kind.key, new).object

    def _remove(self, kind: Kind, old: Object) -> Stored:
        return self.storage.remove(kind.key, {**old, "metadata": dict(old["metadata"])})

    def _suffix(self) -> str:
        return "".join(self._random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))


# --- rules of writes ------------------------------------------------------------------------------


def _etcd_key(kind: Kind, obj: Object) -> str:
    group = f"{kind.group}/" if kind.definition else ""
    namespace = obj["metadata"].get("namespace", "")
    return f"/registry/{group}{kind.plural}/{namespace}/{obj['metadata']['name']}"


def _without_managers(obj: Object) -> Object:
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    return {**obj, "metadata": metadata}


def _equal(new: Object, old: Object) -> bool:
    """True if nothing but the time of a manager's entry differs."""
    return fields.same(_timeless(new), _timeless(old))


def _timeless(obj: Object) -> Object:
    entries = obj["metadata"].get("managedFields", ())
    timeless = [{key: value for key, value in one.items() if key != "time"} for one in entries]
    timeless.sort(key=lambda one: (one["operation"], one["manager"], one.get("subresource", "")))
    return {**obj, "metadata": {**obj["metadata"], "managedFields": timeless}}


def _reset(kind: Kind, subresource: str) -> tuple[fields.Path, ...]:
    """The paths that an endpoint ignores."""
    if subresource == "status":
        if kind.definition is not None:
            return (("f:metadata",), ("f:spec",))
        return (("f:spec",), *STATUS_RESETS.get(kind.key, ()))
    return (("f:status",),) if "status" in kind.subresources else ()


STATUS_RESETS: Mapping[KindKey, tuple[fields.Path, ...]] = {
    DEPLOYMENTS: (("f:metadata", "f:labels"),),
    PODS: (("f:metadata", "f:deletionTimestamp"), ("f:metadata", "f:ownerReferences")),
    CRDS: (("f:metadata",),),
}


def _restore(kind: Kind, new: Object, old: Object, subresource: str) -> None:
    """Undo what an endpoint does not write."""
    if subresource == "status":
        version = new["metadata"].get("resourceVersion", "")
        kept = {"status", "apiVersion", "kind"}
        if kind.definition is None:
            kept.add("metadata")
        for key in {*new, *old} - kept:
            new.pop(key, None)
            if key in old:
                new[key] = old[key]
        if kind.definition is not None:
            new["metadata"] = {**_without_managers(old)["metadata"], "resourceVersion": version}
        elif kind.key == DEPLOYMENTS:
            new["metadata"].pop("labels", None)
            if "labels" in old["metadata"]:
                new["metadata"]["labels"] = old["metadata"]["labels"]
    elif "status" in kind.subresources:
        new.pop("status", None)
        if "status" in old:
            new["status"] = old["status"]


def _reset_on_create(kind: Kind, new: Object) -> None:
    if "status" not in kind.subresources:
        return
    new.pop("status", None)
    if kind.definition is None:
        new["status"] = dict(NEW_STATUS.get(kind.key, {}))
    if kind.key == NAMESPACES:
        new["spec"] = {"finalizers": ["kubernetes"]}
    elif kind.key == CRDS:
        spec = new.get("spec", {})
        stored = [one.get("name") for one in spec.get("versions", []) if one.get("storage")]
        new["status"] = {
            "conditions": None,
            "acceptedNames": {"plural": "", "kind": ""},
            "storedVersions": stored,
        }


NEW_STATUS: Mapping[KindKey, Object] = {
    NAMESPACES: {"phase": "Active"},
    PODS: {"phase": "Pending"},
    SERVICES: {"loadBalancer": {}},
    ("apps", "replicasets"): {"replicas": 0},
}


def _spec_changed(kind: Kind, new: Object, old: Object, subresource: str) -> bool:
    if not kind.generation or subresource == "status":
        return False
    if kind.key == DEPLOYMENTS:
        one, other = new["metadata"].get("annotations"), old["metadata"].get("annotations")
        if one != other:
            return True
    ignored = {"metadata", "status"} if "status" in kind.subresources else {"metadata"}
    return any(not fields.same(new.get(key), old.get(key)) for key in {*new, *old} - ignored)


def _precondition(kind: Kind, old: Object, uid: str | None, rv: str | None) -> None:
    meta = old["metadata"]
    for what, wanted, found, guess in (
        ("UID", uid, meta["uid"], "deleted and then recreated"),
        ("ResourceVersion", rv, meta["resourceVersion"], "modified"),
    ):
        if wanted is not None and wanted != found:
            why = (
                f"the {what} in the precondition ({wanted}) does not match the {what} in record"
                f" ({found}). The object might have been {guess}"
            )
            # This one names the kind where the others name the resource.
            raise errors.conflict(replace(kind, plural=kind.name), meta["name"], why)


def _hold(kind: Kind, new: Object, propagation: str | None) -> None:
    """Add the finalizers that a propagation policy stands for."""
    meta = new["metadata"]
    finalizers = list(meta.get("finalizers", []))
    if propagation is not None:
        chosen = {"Orphan": "orphan", "Foreground": "foregroundDeletion"}.get(propagation)
        finalizers = [one for one in finalizers if one not in ("orphan", "foregroundDeletion")]
        if chosen:
            finalizers.append(chosen)
    starting = "deletionTimestamp" not in meta
    if kind.key == CRDS and starting and crds.CLEANUP not in finalizers:
        finalizers.append(crds.CLEANUP)
    meta.pop("finalizers", None)
    if finalizers:
        meta["finalizers"] = finalizers


def _held(kind: Kind, obj: Object) -> bool:
    """True for a namespace whose content has not gone yet."""
    return kind.key == NAMESPACES and bool(obj.get("spec", {}).get("finalizers"))


def _grace(kind: Kind, old: Object, asked: int | None) -> int:
    if kind.key != PODS:
        return 0
    ended = old.get("status", {}).get("phase") in ("Failed", "Succeeded")
    if ended or not old["spec"].get("nodeName"):
        return 0
    if asked is not None:
        return max(asked, 0)
    return int(old["spec"].get("terminationGracePeriodSeconds", 30))
