"""Which decisions replace pods, and so wait for their turn."""

from __future__ import annotations

from dataclasses import replace

from gitops_mcp.base import objects
from gitops_mcp.base.errors import GitOpsError
from gitops_mcp.base.model import Context, Facts
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.decide import shutdown
from gitops_mcp.decide.children import reshapes
from gitops_mcp.decide.ownership import (
    Owner,
    Renderer,
    adopts,
    claimant,
    is_orphaned,
    refusal,
    suspended_decision,
)
from gitops_mcp.decide.planning import foresee, why_forbidden


def rolls(facts: Facts, context: Context, renderer: Renderer) -> bool:
    """Would carrying out what git and the templates want replace pods that serve?

    Not where nothing runs yet, nor where what was changed by others is only put back.
    """
    cr, live = facts.cr, facts.children.get("Deployment")
    if cr is None or live is None or not _serves(live):
        return False
    owner = claimant(facts, context, renderer)
    kept = facts.desired is not None or facts.protected or owner is not Owner.OURS
    hands_off = owner is Owner.OTHER or shutdown.under_way(cr) or suspended_decision(facts)
    if owner is Owner.KUBECTL and facts.desired is not None and not adopts(facts.desired):
        hands_off = True
    if hands_off or not kept or is_orphaned(live, cr) or objects.is_deleting(live):
        return False
    if refusal(live, cr, adopt=adopts(facts.desired)):
        return False
    try:
        foreseen = foresee(facts, context, renderer, owner)
        children = renderer.children(foreseen)
    except GitOpsError:
        return False  # what cannot be rendered replaces nothing
    if why_forbidden(replace(facts, cr=foreseen), context, owner, children):
        return False
    return any(reshapes(facts, context, body, live) for body in children)


def rolled(facts: Facts, context: Context) -> bool:
    """Did the commit that is enforced change a server that ran? What it created counts not, nor
    what it left with no pod that serves."""
    cr, live = facts.cr, facts.children.get("Deployment")
    if cr is None or live is None or facts.desired is None or suspended_decision(facts):
        return False
    if shutdown.under_way(cr) or objects.generation(cr) <= 1:
        return False
    source = objects.part(cr, "status", "source")
    known = (source.get("revision"), source.get("digest"))
    if known != (str(context.revision), facts.desired.digest[:16]):
        return False
    replaced = objects.text(live, "spec", "strategy", "type") == "Recreate"
    return replaced or _serves(live)


def waited(cr: LiveObject | None) -> bool:
    """Does its status say that the server waits for a batch, or for something else to be over?"""
    synced = objects.condition(cr, "Synced")
    return (synced.get("status"), synced.get("reason")) == ("False", Reason.ROLLOUT_IN_PROGRESS)


def _serves(deployment: LiveObject) -> bool:
    return objects.number(deployment, "status", "readyReplicas") > 0
