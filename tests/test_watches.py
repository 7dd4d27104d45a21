"""The view is filled by lists and kept current by watches."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from gitops_mcp.errors import KindAbsent, KubeError, Permanent, Transient
from gitops_mcp.model import JsonObject
from gitops_mcp.view import View
from gitops_mcp.watches import read

SOON = timedelta(milliseconds=10)


class Busy:
    """A connection whose first LIST of each kind is refused."""

    def __init__(self, error: KubeError) -> None:
        self._error = error
        self.asked: list[str] = []

    def list(self, _: str, kind: str, *__: Any, **___: Any) -> tuple[list[JsonObject], str]:
        self.asked.append(kind)
        if self.asked.count(kind) == 1:
            raise self._error
        return [], "7"


def test_an_api_server_that_is_only_starting_is_asked_again() -> None:
    busy = Busy(Transient("list: storage is (re)initializing", code=429, retry_after=SOON))
    versions = read(busy, View(), [None])  # type: ignore[arg-type]
    assert set(versions.values()) == {"7"}
    assert len(busy.asked) == 2 * len(versions)


@pytest.mark.parametrize(
    "error",
    [
        Transient("list: connection refused or no route"),
        KindAbsent("list: the API server serves no such kind", code=404),
        Permanent("list: forbidden", code=403),
        Transient("list: too many requests", code=429, retry_after=timedelta(minutes=5)),
    ],
    ids=lambda error: error.message,
)
def test_what_waiting_does_not_mend_is_said_at_once(error: KubeError) -> None:
    with pytest.raises(type(error)):
        read(Busy(error), View(), [None])  # type: ignore[arg-type]
