"""The view believes what is newest, whoever tells it and whenever."""

from __future__ import annotations

from gitops_mcp.model import JsonObject, ServerKey
from gitops_mcp.view import REMEMBERED, View

WEB = ServerKey("ai", "web")


def service(uid: str, version: int) -> JsonObject:
    metadata = {"name": "web", "namespace": "ai", "uid": uid, "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata}


def known(view: View) -> tuple[str, int] | None:
    found = view.live(WEB).children.get("Service")
    if found is None:
        return None
    return found["metadata"]["uid"], int(found["metadata"]["resourceVersion"])


def test_an_older_state_does_not_come_back() -> None:
    view = View()
    view.put(service("a", 7))
    view.put(service("a", 5))
    assert known(view) == ("a", 7)


def test_late_news_of_an_object_that_has_gone_do_not_revive_it() -> None:
    view = View()
    view.put(service("a", 7))
    view.drop(service("a", 7))
    view.put(service("a", 8))
    assert known(view) is None
    assert list(view.resources()) == []


def test_late_news_of_a_former_object_do_not_replace_the_present_one() -> None:
    view = View()
    view.put(service("b", 9))
    view.put(service("a", 8))
    assert known(view) == ("b", 9)
    view.drop(service("a", 10))
    assert known(view) == ("b", 9)


def test_only_so_many_ends_are_remembered() -> None:
    view = View()
    for number in range(REMEMBERED + 1):
        view.drop(service(str(number), number + 1))
    view.put(service("0", 1))
    assert known(view) == ("0", 1)
