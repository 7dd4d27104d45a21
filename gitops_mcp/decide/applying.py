"""One body and its live object in, the apply that makes them agree out."""

from __future__ import annotations

import hashlib

import orjson

from gitops_mcp.base import objects
from gitops_mcp.base.model import Action, Change, Contest, Context, Facts, Verb
from gitops_mcp.base.names import KIND, LABEL_MANAGED_BY, LABEL_SOURCE, ObjectRef
from gitops_mcp.base.objects import DesiredObject, LiveObject
from gitops_mcp.decide import diffing, inquiries, managedfields
from gitops_mcp.decide.ownership import carries_replicas, is_scaled_elsewhere
from gitops_mcp.decide.writing import STILL

NEVER = "1"
"""A resourceVersion that no object has. An apply that bears it makes what is missing, and is a
conflict with what is there (measured: a missing object is not held against it)."""


def applies(
    facts: Facts,
    context: Context,
    body: DesiredObject,
    live: LiveObject | None,
    contested: list[ObjectRef],
) -> list[Action]:
    """The actions that make ``live`` what ``body`` says: none, when it is so already. ``contested``
    gets the object if others undid the same before, and it is not time to apply it again."""
    people = context.kubectl_managers
    if live is not None and diffing.agrees(body, live, kubectl_managers=people):
        return _claim(facts, body, live)
    ref = ObjectRef.of(body)
    difference = diffing.compare(body, live, kubectl_managers=people)
    if live is not None and (not difference.fields or difference.key in facts.noise):
        return _claim(facts, body, live)
    wanted, known = _hash(facts, body), facts.contests.get(ref)
    again = known is not None and known.wanted == wanted
    if known is not None and again and _holds_still(facts, known):
        contested.append(ref)
        return []
    by = managedfields.writers(live, difference.places) if live is not None else ()
    undone = known.undone if known is not None and again and facts.now < known.at + STILL else 0
    change = Change(
        "create" if live is None else "update",
        facts.key,
        ref,
        reason=f"undone by {', '.join(by)}" if by and undone else "",
        fields=difference.fields,
        before=difference.before,
        after=difference.after,
        foreign=difference.foreign,
    )
    if live is None:
        # An apply is merged into whatever stands there, were it not for a version that never was.
        return [
            Action(
                Verb.APPLY,
                ref,
                "create",
                body,
                resource_version=NEVER,
                change=change,
                key=difference.key,
                wanted=wanted,
            )
        ]
    if difference.take_ownership:
        # A plain apply would leave these for ever: what we never owned we cannot give up.
        patch = managedfields.ownership_patch(live, difference.take_ownership)
        return [
            Action(
                Verb.JSON_PATCH,
                ref,
                "take over what was added by hand",
                {"patch": patch},
                **objects.preconditions(live),
                change=change,
                key=difference.key,
            )
        ]
    return [
        Action(
            Verb.APPLY,
            ref,
            "update",
            body,
            **objects.preconditions(live),
            change=change,
            key=difference.key,
            wanted=wanted,
            by=by,
        )
    ]


def _holds_still(facts: Facts, contest: Contest) -> bool:
    """Is it too early to apply again what others undid?"""
    return facts.now < contest.until and contest.asked == inquiries.requested(facts.cr)


def _hash(facts: Facts, body: DesiredObject) -> str:
    """What an apply means, but for replicas that are not git's: a scaler contests nothing."""
    spec = objects.spec(body)
    if carries_replicas(facts) or (facts.cr is not None and is_scaled_elsewhere(facts.cr)):
        spec = {name: value for name, value in spec.items() if name != "replicas"}
    text = orjson.dumps([body["metadata"], spec], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


def _claim(facts: Facts, body: DesiredObject, live: LiveObject) -> list[Action]:
    """Apply what is equal already, where nothing proves that it is ours: else what git drops one
    day would stay for ever, and the server with it."""
    uid = objects.uid(live)  # one that is only foreseen has none
    key = f"claim {uid}"
    if not uid or not unproven(body, live) or key in facts.noise:
        return []
    ref = ObjectRef.of(body)
    reason = "take ownership: others made it from this source"
    return [
        Action(
            Verb.APPLY,
            ref,
            "take ownership",
            body,
            **objects.preconditions(live),
            change=Change("update", facts.key, ref, reason=reason),
            key=key,
            claims=True,
        )
    ]


def unproven(body: DesiredObject, live: LiveObject) -> bool:
    """Does ``live`` lack the proof that an apply of ``body`` leaves: that its mark is ours?"""
    mark = LABEL_SOURCE if body["kind"] == KIND else LABEL_MANAGED_BY
    wanted = mark in objects.labels(body)
    return wanted and not managedfields.owns(live, "metadata", "labels", mark)
