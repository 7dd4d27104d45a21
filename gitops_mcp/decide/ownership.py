"""Whose a server and its objects are."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from gitops_mcp.base import objects, transports
from gitops_mcp.base.errors import GitOpsError
from gitops_mcp.base.model import Context, Facts, FieldChange
from gitops_mcp.base.names import (
    ANNOTATION_ADOPT,
    ANNOTATION_FILE,
    ANNOTATION_PRUNE,
    ANNOTATION_REPLICAS,
    API_VERSION,
    APP_NAME,
    FIELD_MANAGER,
    FINALIZER,
    GROUP,
    KIND,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_SOURCE,
    ObjectRef,
)
from gitops_mcp.base.objects import DesiredObject, LiveObject, Outline
from gitops_mcp.base.source import McpServer
from gitops_mcp.decide import diffing, managedfields, shutdown
from gitops_mcp.source import serverschema
from gitops_mcp.source.documents import Path

AGENT = "gitops-mcp"
"""``app.kubernetes.io/name`` of what ``install`` prints."""


class Renderer(Protocol):
    """What ``rendering`` offers: the objects of a server, as applied."""

    def custom_resource(self, server: McpServer) -> DesiredObject: ...

    def children(self, cr: LiveObject | DesiredObject) -> tuple[DesiredObject, ...]: ...


class Owner(enum.Enum):
    """Whose a CR is."""

    OURS = "ours"
    COPIED = "copied"
    """Bears our source label, but we never applied it: run it, never prune it."""
    KUBECTL = "kubectl"
    """No source label: somebody made it by hand."""
    OTHER = "other"
    """Another source's: never written."""


def owner_of(cr: LiveObject | Outline, source: str) -> Owner:
    """Whose ``cr`` is, seen from ``source``: the label says it, and our Apply entry proves it."""
    label = objects.labels(cr).get(LABEL_SOURCE)
    if label is None:
        return Owner.KUBECTL
    if label != source:
        return Owner.OTHER
    proven = managedfields.owns(cr, "metadata", "labels", LABEL_SOURCE)
    return Owner.OURS if proven else Owner.COPIED


def is_kubectls(facts: Facts, context: Context) -> bool:
    """Is the server one that kubectl made, and none that git holds?"""
    if facts.desired is not None or facts.protected or facts.cr is None:
        return False
    return is_manual(facts.cr, context.source)


def is_manual(cr: LiveObject | Outline, source: str) -> bool:
    """Did somebody make ``cr`` with kubectl, seen from ``source``?"""
    return owner_of(cr, source) in (Owner.KUBECTL, Owner.COPIED)


def prunable(cr: LiveObject | Outline, context: Context) -> bool:
    """Is ``cr`` a prune candidate where git holds it no longer: ours, and of this run's path?"""
    if owner_of(cr, context.source) is not Owner.OURS or shutdown.under_way(cr):
        return False
    if objects.spec(cr).get("suspend") is True:
        return False
    return in_scope(cr, context)


def outlives_git(cr: LiveObject | Outline) -> bool:
    """Is it left to kubectl, instead of pruned, once git holds it no longer?"""
    return bool(objects.annotations(cr).get(ANNOTATION_PRUNE) == "disabled")


def in_scope(cr: LiveObject | Outline, context: Context) -> bool:
    """Was ``cr`` applied from a file below this run's path?"""
    return within(file_of(cr), context.path)


def file_of(cr: LiveObject | Outline) -> str:
    """The file that ``cr`` was applied from, "" for one that git never held."""
    return objects.text(cr, "metadata", "annotations", ANNOTATION_FILE)


def is_applied(server: McpServer | None, cr: LiveObject | None) -> bool:
    """Does the status say that git's word for the server (None: that of the CR itself) was carried
    out? What differs from it then, somebody else has done."""
    synced = objects.condition(cr, "Synced")
    if cr is None or synced.get("status") != "True":
        return False
    if server is None:
        return bool(synced.get("observedGeneration") == objects.generation(cr))
    return objects.text(cr, "status", "source", "digest") == server.digest[:16]


def is_scaled(server: McpServer | None, cr: LiveObject | None) -> bool:
    """Has somebody changed the MCPServer since its children followed it last, where git leaves its
    replicas to the cluster?"""
    if cr is None or server is None or "replicas" in server.spec:
        return False
    observed = objects.status(cr).get("observedGeneration")
    return isinstance(observed, int) and observed < objects.generation(cr)


def within(file: str, path: str) -> bool:
    """Does ``file`` lie below the folder ``path`` ("" is the root)?"""
    folder = path.strip("/")
    return folder in ("", ".") or file == folder or file.startswith(folder + "/")


def claimant(facts: Facts, context: Context, renderer: Renderer) -> Owner | None:
    """Whose the MCPServer is, as far as it goes for what git holds; None where there is none.

    The label alone makes nothing git's, nor takes anything from it: what we did not apply must come
    from this source (COPIED, and ours by the next apply), or it is what somebody made by hand.
    """
    cr, desired = facts.cr, facts.desired
    if cr is None:
        return None
    owner = owner_of(cr, context.source)
    if owner is Owner.OURS or desired is None:
        return owner
    if owner is Owner.COPIED:
        return owner if _made_from(cr, desired, renderer) else Owner.KUBECTL
    # Our label was changed or taken off: we applied the rest. Or we did so under another id.
    labels = objects.labels(cr)
    relabelled = not (
        LABEL_SOURCE in labels and managedfields.owns(cr, "metadata", "labels", LABEL_SOURCE)
    )
    moved = facts.former is not None and not facts.former.holder
    if (relabelled or moved) and _applied(cr) and _made_from(cr, desired, renderer):
        return Owner.COPIED
    return owner


def _applied(cr: LiveObject) -> bool:
    """Did we ever apply the MCPServer from git, whatever its source label says now?"""
    marks = (
        ("spec", "image"),
        ("metadata", "annotations", ANNOTATION_FILE),
        ("metadata", "labels", LABEL_MANAGED_BY),
    )
    return any(managedfields.owns(cr, *mark) for mark in marks)


def _made_from(cr: LiveObject, desired: McpServer, renderer: Renderer) -> bool:
    """Does what stands in the MCPServer come from this manifest: does it name its file, or say the
    very same?"""
    if objects.annotations(cr).get(ANNOTATION_FILE) == desired.file:
        return True
    live = objects.spec(cr)
    open_ = {name: live[name] for name in ("replicas", "suspend") if name in live}
    body = serverschema.defaulted(renderer.custom_resource(desired))
    wanted = {"kind": KIND, "spec": open_ | body["spec"]}
    return not diffing.between({"kind": KIND, "spec": live}, wanted)


def adopts(server: McpServer | None) -> bool:
    return server is not None and server.annotations.get(ANNOTATION_ADOPT) == "true"


def foreign(
    facts: Facts, context: Context, renderer: Renderer
) -> Iterator[tuple[ObjectRef, FieldChange]]:
    """The fields of a server's objects that other controllers have put there, and that stay. Costs
    a whole comparison of each object: only where somebody wants to see them."""
    cr = facts.cr
    owner = claimant(facts, context, renderer)
    if cr is None or owner is Owner.OTHER:
        return
    people = strict(context, owner).kubectl_managers
    body = cr_body(facts, context, renderer, owner)
    pairs = [(body, cr, people)] if body is not None else []
    try:
        children = renderer.children(cr)
    except GitOpsError:
        children = ()  # that is told elsewhere
    for child in children:
        live = facts.children.get(child["kind"])
        if live is not None and not refusal(live, cr, adopt=adopts(facts.desired)):
            pairs.append((child, live, context.kubectl_managers))
    for desired, live, people in pairs:
        found = diffing.compare(desired, live, kubectl_managers=people).foreign
        yield from ((ObjectRef.of(live), field) for field in found)


def strict(context: Context, owner: Owner | None) -> Context:
    """How a CR is compared: where it is a person's own, what their kubectl wrote is no drift."""
    if owner is Owner.OURS or owner is None:
        return context
    return replace(context, kubectl_managers=frozenset())


def cr_body(
    facts: Facts, context: Context, renderer: Renderer, owner: Owner | None
) -> DesiredObject | None:
    """The CR as we apply it, or None where we write none.

    A single apply holds all that we mean: a field left out would be given up, and so removed.
    """
    live = facts.cr
    if facts.desired is not None:
        body = renderer.custom_resource(facts.desired)
        if live is not None and suspended_decision(facts):
            # Under suspension nothing but the suspension itself is written: keep what we own.
            body = managedfields.owned(live)
            wanted = facts.desired.spec.get("suspend")
            if wanted is not None:
                body["spec"] = objects.spec(body) | {"suspend": wanted}
    elif live is None or owner is Owner.OURS:
        return None
    else:
        named = {"name": facts.key.name, "namespace": facts.key.namespace}
        body = DesiredObject({"apiVersion": API_VERSION, "kind": KIND, "metadata": named})
    spec = dict(objects.spec(body))
    if carries_replicas(facts) and not (live is not None and suspended_decision(facts)):
        live_replicas = objects.spec(live).get("replicas")
        if facts.desired is not None or live_replicas is None or _owns_replicas(live):
            spec["replicas"] = at_most(
                1 if live_replicas is None else live_replicas,
                facts.desired.spec if facts.desired is not None else objects.spec(live),
            )
    metadata = dict(body["metadata"])
    metadata.pop("finalizers", None)
    if context.finalizer or FINALIZER in objects.finalizers(live):
        metadata["finalizers"] = [FINALIZER]
    if (
        owner is Owner.KUBECTL
        and facts.desired is None
        and not spec
        and "finalizers" not in metadata
    ):
        return None
    return DesiredObject({**body, "metadata": metadata, **({"spec": spec} if spec else {})})


def carries_replicas(facts: Facts) -> bool:
    """Are the CR's replicas somebody else's than git's, so that we write the live value?"""
    return facts.desired is None or facts.desired.spec.get("replicas") is None


def at_most(replicas: int, spec: Mapping[str, Any]) -> int:
    """The replicas that somebody else set, as far as the transport takes them."""
    limit = transports.of_spec(spec).max_replicas
    return replicas if limit is None else min(replicas, limit)


def _owns_replicas(cr: LiveObject | None) -> bool:
    return cr is not None and managedfields.owns(cr, "spec", "replicas")


def suspended_decision(facts: Facts) -> bool:
    """Git's word where it has one, else the CR's."""
    wanted = facts.desired.spec.get("suspend") if facts.desired is not None else None
    if wanted is None and facts.cr is not None:
        wanted = objects.spec(facts.cr).get("suspend")
    return wanted is True


def set_by(cr: LiveObject, path: Path) -> str:
    """Who but us set the field of a finding, as the end of its message."""
    by = managedfields.holders(cr, path) if len(path) > 1 else ()
    managers = ", ".join(repr(name) for name in by)
    return f" (set by the field manager {managers})" if by else ""


def is_scaled_elsewhere(cr: LiveObject) -> bool:
    return bool(objects.annotations(cr).get(ANNOTATION_REPLICAS) == "external")


def controls(cr: LiveObject, child: LiveObject) -> bool:
    """Is the child this very CR's? One that is only foreseen has no uid, and so no child."""
    uid = objects.uid(cr)
    return uid != "" and objects.controller_of(child).get("uid") == uid


def is_orphaned(child: LiveObject, cr: LiveObject) -> bool:
    """Is the child a former CR's of the same name? The garbage collector takes it in a moment."""
    controller = objects.controller_of(child)
    return bool(controller) and controller["uid"] != objects.uid(cr)


def refusal(child: LiveObject, cr: LiveObject, *, adopt: bool) -> str:
    """Why ``child`` is not ours to write, or ""."""
    ref = ObjectRef.of(child)
    controller = objects.controller_of(child)
    if controller:
        same = controller.get("uid") == objects.uid(cr)
        # Others have a kind of this name, too: the group tells.
        kind = (controller.get("apiVersion", "").split("/")[0], controller.get("kind"))
        former = kind == (GROUP, KIND) and controller.get("name") == ref.name
        if same or former:
            return ""
        return f"{ref} is controlled by {controller['kind'].lower()}/{controller['name']}"
    if _clusters_own(child):
        return f"{ref} belongs to the cluster or to an agent; give the server another name"
    if _looks_rendered(child):
        return ""
    if not adopt:
        return (
            f'{ref} exists and is not ours; annotate the manifest with {ANNOTATION_ADOPT}: "true"'
        )
    selector = objects.part(child, "spec", "selector")
    if child["kind"] == "Deployment" and selector != {"matchLabels": _marks(ref.name)}:
        return (
            f"{ref} exists and cannot be taken over in place, since its selector is another one "
            "and immutable; delete it, or give the server another name"
        )
    return ""


def _marks(name: str) -> dict[str, str]:
    """The labels by which an object of a server is known."""
    return {LABEL_NAME: APP_NAME, LABEL_INSTANCE: name, LABEL_MANAGED_BY: FIELD_MANAGER}


def _looks_rendered(child: LiveObject) -> bool:
    """Does the child bear the labels of one that we rendered?"""
    labels = objects.labels(child)
    marks = _marks(child["metadata"]["name"])
    return all(labels.get(key) == value for key, value in marks.items())


def _clusters_own(child: LiveObject) -> bool:
    """Is it the control plane's, or an agent's? No annotation in git gives these away."""
    metadata = child["metadata"]
    labels = objects.labels(child)
    place = (child["kind"], metadata.get("namespace"), metadata["name"])
    return (
        place == ("Service", "default", "kubernetes")
        or str(metadata.get("namespace", "")).startswith("kube-")
        or labels.get("component") == "apiserver"
        or labels.get("provider") == "kubernetes"
        or labels.get(LABEL_NAME) == AGENT
    )


def is_strange(child: LiveObject) -> bool:
    """Is it nobody's of whom we know: only an annotation in git could make it ours?"""
    return not objects.controller_of(child) and not _looks_rendered(child)
