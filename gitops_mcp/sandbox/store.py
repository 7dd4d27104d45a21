"""What every write goes through: the rules of the API server, without HTTP.

Receives objects, patches and deletes together with who sends them; returns what is stored, or
raises `ApiError` with the real server's answer. Reads return shared objects: copy before you
change one. It never waits, starts no thread and knows no controller; clock and randomness come
from outside, so that one seed is one run.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gitops_mcp.sandbox import (
    admission,
    apply,
    crds,
    deletion,
    errors,
    fields,
    schema,
    strategy,
    structural,
    validation,
)
from gitops_mcp.sandbox import services as service_rules
from gitops_mcp.sandbox.apply import Manager, Managers
from gitops_mcp.sandbox.errors import ApiError, Cause
from gitops_mcp.sandbox.kinds import CRDS, NAMESPACES, SERVICES, Kind, Registry
from gitops_mcp.sandbox.schema import Decoding, Mismatch, Node
from gitops_mcp.sandbox.storage import KindKey, Object, Storage, Stored, WatchEvent, dumps
from gitops_mcp.sandbox.writing import Writing

__all__ = ["ApiError", "KindKey", "Object", "Store", "WatchEvent", "timestamp"]

Objects = list[Object]

SYSTEM_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
REPLICAS: fields.Path = ("f:spec", "f:replicas")


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as `metav1.Time`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
        deletion.check_preconditions(known, old, uid, rv)
        new = deepcopy(old)
        meta = new["metadata"]
        deletion.hold(known, new, propagation)
        seconds = deletion.grace_seconds(known, old, grace)
        if not seconds and not meta.get("finalizers") and not deletion.is_held(known, new):
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
        live = strategy.without_managers(old) if old is not None else {}
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
            reset=strategy.ignored(kind, writing.subresource),
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
            before, after = strategy.without_managers(old), strategy.without_managers(new)
            managers = self._updated(kind, before, after, writing, managers)
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
            raise admission.refusal(kind, new, causes)
        admission.admit(self, kind, new)
        owners = managers()
        meta["uid"] = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        meta["creationTimestamp"] = timestamp(self.clock())
        if kind.generation:
            meta["generation"] = 1
        strategy.prepare_for_create(kind, new)
        meta["managedFields"] = apply.dump(owners)
        if not meta["managedFields"]:
            del meta["managedFields"]
        self._allot(kind, new, None, writing)
        admission.validate(kind, new, None)
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
        strategy.prepare_for_update(kind, new, old, writing.subresource)
        managers = self._updated(kind, strategy.without_managers(old), new, writing, before)
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
                reset=strategy.ignored(kind, writing.subresource),
                now="" if writing.subresource == "scale" else timestamp(self.clock()),
            )
        except ValueError:  # an item without its key, which validation will refuse
            return managers or {}

    def _write(
        self, kind: Kind, old: Object, new: Object, writing: Writing, managers: Managers
    ) -> Object:
        strategy.prepare_for_update(kind, new, old, writing.subresource)
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
        if strategy.is_new_generation(kind, new, old, writing.subresource):
            meta["generation"] = before.get("generation", 0) + 1
        admission.validate(kind, new, old)
        if strategy.equal(new, old):
            return old
        if writing.dry_run:
            return new
        if before.get("deletionTimestamp") and not meta.get("finalizers"):
            held = deletion.is_held(kind, new) or before.get("deletionGracePeriodSeconds")
            if not held:
                self._remove(kind, old)
                return new
        return self._put(kind, new)

    def _allot(self, kind: Kind, new: Object, old: Object | None, writing: Writing) -> None:
        if kind.key == SERVICES:
            others = (other for other in self.list(SERVICES) if other is not old)
            service_rules.allot(new, old, others, dry_run=writing.dry_run)

    def _put(self, kind: Kind, new: Object) -> Object:
        return self.storage.put(kind.key, new).object

    def _remove(self, kind: Kind, old: Object) -> Stored:
        return self.storage.remove(kind.key, {**old, "metadata": dict(old["metadata"])})

    def _suffix(self) -> str:
        return "".join(self._random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))


def _etcd_key(kind: Kind, obj: Object) -> str:
    group = f"{kind.group}/" if kind.definition else ""
    namespace = obj["metadata"].get("namespace", "")
    return f"/registry/{group}{kind.plural}/{namespace}/{obj['metadata']['name']}"
