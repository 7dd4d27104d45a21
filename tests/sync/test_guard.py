"""The prune guard between looks: what was let go counts, and what was allowed is asked for late."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from stage import CONTEXT, NOW, WEB, cr

from gitops_mcp.base.names import ServerKey
from gitops_mcp.base.source import Loaded
from gitops_mcp.cluster.view import View
from gitops_mcp.decide.books import Books
from gitops_mcp.decide.pruning import Allowance
from gitops_mcp.decide.record import Fingerprint, Identity
from gitops_mcp.sync.guard import PruneGuard

FLEET = [ServerKey("ai", f"s{index}") for index in range(4)]


class Guarded:
    """Four servers of this source in the cluster; git holds all of them, or one other."""

    def __init__(self, allowance: Allowance | None = None, *, held: bool) -> None:
        self.asked: list[tuple[int, int]] = []
        self.selects: Callable[[ServerKey], bool] = lambda _: True
        self._allowance = allowance
        view = View()
        for key in FLEET:
            view.put(cr(name=key.name, uid=key.name))
        loaded = Loaded(dict.fromkeys(FLEET if held else [WEB.key], WEB))
        books = self.books = Books(None, clock=lambda: NOW)
        mine = Identity("fleet", Fingerprint("/fleet"), "default")
        books.open(mine, revision="", live=lambda: dict.fromkeys(FLEET, "fleet.yaml"))
        self._view, self._loaded = view, loaded
        self.guard = self.again()

    def again(self) -> PruneGuard:
        """A guard that remembers nothing but the record."""
        return PruneGuard(
            self._view,
            CONTEXT,
            self._loaded,
            self.books,
            selects=lambda key: self.selects(key),
            allowed=self._allowed,
        )

    def _allowed(self, count: int, under_way: int) -> Allowance | None:
        self.asked.append((count, under_way))
        return self._allowance


def test_the_first_half_of_a_fleet_is_recreated_and_nobody_is_asked_what_is_allowed() -> None:
    guarded = Guarded(held=True)
    for key in (FLEET[0], *FLEET[:2]):
        assert guarded.guard.recreate(key) == ""
    assert guarded.asked == []
    assert "more than half" in guarded.guard.recreate(FLEET[2])
    assert guarded.asked == [(3, 0)]


def test_what_was_recreated_counts_until_a_commit_is_enforced_to_its_end() -> None:
    guarded = Guarded(held=True)
    assert [guarded.guard.recreate(key) for key in FLEET[:2]] == ["", ""]
    later = guarded.again()  # of the next commit, or after a restart
    assert "more than half" in later.recreate(FLEET[2])
    assert later.recreate(FLEET[0]) == ""
    whole = dict.fromkeys(FLEET, "fleet.yaml")
    mine = Identity("fleet", Fingerprint("/fleet"), "default")
    guarded.books.enforced(
        mine, whole, revision="c2", reaches=lambda *_: True, remains=lambda _: True
    )
    assert guarded.again().recreate(FLEET[2]) == ""


@pytest.mark.parametrize(("count", "further"), [(3, 1), (4, 2), (9, 2), (None, 2)])
def test_recreates_go_on_until_what_is_allowed_is_used_up(count: int | None, further: int) -> None:
    guard = Guarded(Allowance(count, "cli"), held=True).guard
    assert [guard.recreate(key) == "" for key in FLEET].count(True) == 2 + further


@pytest.mark.parametrize(("count", "goes"), [(3, False), (4, True), (9, False), (None, True)])
def test_prunes_need_their_very_number_allowed(count: int | None, goes: bool) -> None:
    guarded = Guarded(Allowance(count, "cli"), held=False)
    assert [guarded.guard.prune(key) == "" for key in FLEET] == [goes] * 4
    assert guarded.asked[0] == (4, 0)
    assert guarded.guard.held == (frozenset() if goes else frozenset(FLEET))


@pytest.mark.parametrize("moment", range(2, 5))
def test_a_record_that_is_written_in_the_middle_of_a_judgement_does_not_change_it(
    moment: int,
) -> None:
    guarded = Guarded(held=False)
    mine = Identity("fleet", Fingerprint("/fleet"), "default")
    looks = 0

    def selects(_: ServerKey) -> bool:
        nonlocal looks
        looks += 1
        if looks == moment:  # another thread
            held = {WEB.key: "web.yaml"}
            guarded.books.enforced(
                mine, held, revision="c2", reaches=lambda *_: True, remains=lambda _: False
            )
        return True

    guarded.selects = selects
    assert "prune" in guarded.guard.prune(FLEET[0])
    assert guarded.guard.held == frozenset(FLEET)


def test_no_record_is_needed_for_a_server_that_kubectl_made() -> None:
    guarded = Guarded(held=False)
    by_hand = cr(name="by-hand", uid="by-hand")
    del by_hand["metadata"]["labels"]
    guarded._view.put(by_hand)
    guarded.books = Books(None, clock=lambda: NOW)  # nobody has opened it
    assert guarded.again().prune(ServerKey("ai", "by-hand")) == ""
