"""The source record: which repository a source is, what git has held, what counts as enforced."""

from __future__ import annotations

import base64
import gzip
import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from records import Api

from gitops_mcp.base.errors import LeaseLost, OverLimit, UsageError
from gitops_mcp.base.names import ObjectRef, ServerKey
from gitops_mcp.decide.books import Books, Store
from gitops_mcp.decide.record import TAKEN_OVER, Entry, Fingerprint, Identity, Record, body, parse

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
HTTPS = Fingerprint("https://git.example.com/ops/fleet.git", frozenset({"a" * 40}))
MINE = Identity("fleet", HTTPS, "prod")
A, B, C = (ServerKey("ai", name) for name in "abc")


def books(api: Api, **more: Any) -> Books:
    return Books(Store(api, "gitops", "gitops-mcp-fleet", "fleet"), clock=lambda: NOW, **more)


def enforce(one: Books, held: dict[ServerKey, str], revision: str, live: set[ServerKey]) -> None:
    one.enforced(MINE, held, revision=revision, reaches=lambda *_: True, remains=live.__contains__)


def nothing() -> dict[ServerKey, str]:
    return {}


@pytest.mark.parametrize(
    ("address", "same"),
    [
        ("https://git.example.com/ops/fleet", True),
        ("git@git.example.com:ops/fleet.git", True),
        ("ssh://git@git.example.com:22/ops/fleet.git", True),
        ("https://GIT.example.com:443/ops/fleet/", True),
        ("https://git.example.com:8443/ops/fleet", False),
        ("https://git.example.com/ops/other", False),
        ("/srv/ops/fleet", False),
    ],
)
def test_a_repository_is_the_same_by_its_address_whatever_the_protocol(
    address: str, same: bool
) -> None:
    assert HTTPS.agrees(Fingerprint(address)) is same
    assert HTTPS.agrees(Fingerprint(address, frozenset({"a" * 40})))


def test_the_record_survives_its_config_map_and_5000_servers_are_small() -> None:
    servers = {
        ServerKey(f"team-{number % 50}", f"server-{number}"): Entry(
            f"teams/team-{number % 50}/server-{number}.yaml", number % 3 > 0, number % 7 == 0
        )
        for number in range(5000)
    }
    record = Record(HTTPS, "prod", "c" * 40, "2026-11-29T12:00:00Z", "b" * 40, servers)
    found = body(ObjectRef("v1", "ConfigMap", "gitops", "gitops-mcp-fleet"), "fleet", record)
    assert parse(found) == record
    assert len(str(found)) < 100_000


SPOILT_ROWS: list[Any] = [
    5,
    ["abcd"],
    [[]],
    [["ai", "web", "web.yaml"]],
    [["ai", "web", None, 1]],
    [[1, "web", "web.yaml", 1]],
    [["ai", ["web"], "web.yaml", 1]],
    [["ai", "web", "web.yaml", "1"]],
    [["ai", "web", "web.yaml", 1.5]],
    {"abcd": 1},
]


def spoil_servers(found: Any, rows: Any) -> None:
    packed = gzip.compress(json.dumps(rows).encode())
    found["binaryData"]["servers"] = base64.b64encode(packed).decode()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found["data"].pop("format"),
        lambda found: found["data"].update(format="2"),
        lambda found: found["binaryData"].update(servers="bm90IGd6aXA="),
        lambda found: found.pop("binaryData"),
        lambda found: found.pop("data"),
        lambda found: found.update(data=None),
        lambda found: found.update(binaryData={}),
        lambda found: found["binaryData"].update(servers="*"),
        lambda found: found["data"].update(status="{"),
        lambda found: found["data"].update(revision="--output=/tmp/x"),
        lambda found: found["data"].update(spent="main"),
        lambda found: found["data"].update(roots=None),
        *(partial(spoil_servers, rows=rows) for rows in SPOILT_ROWS),
    ],
)
def test_a_record_that_somebody_spoilt_says_what_to_do(spoil: Callable[[Any], Any]) -> None:
    found = body(ObjectRef("v1", "ConfigMap", "gitops", "gitops-mcp-fleet"), "fleet", Record())
    spoil(found)
    with pytest.raises(UsageError, match="gitops-mcp-fleet in namespace gitops") as raised:
        parse(found)
    assert "delete" in raised.value.hint


def test_a_commit_costs_one_write_ahead_where_it_adds_servers_and_one_at_its_end() -> None:
    api = Api()
    one = books(api)
    one.open(MINE, revision="", live=nothing)
    one.ahead({A: "a.yaml"})
    enforce(one, {A: "a.yaml"}, "1" * 40, {A})
    assert api.asked == ["get", "apply", "apply"]
    api.asked.clear()
    one.ahead({A: "a.yaml"})  # the next commit changes an image
    enforce(one, {A: "a.yaml"}, "2" * 40, {A})
    assert api.asked == ["apply"]
    api.asked.clear()
    one.ahead({A: "a.yaml"})
    enforce(one, {A: "a.yaml"}, "2" * 40, {A})
    assert api.asked == []
    assert api.live is not None
    assert parse(api.live) == one.record
    assert one.record.at == "2026-11-29T12:00:00Z"


def test_what_a_commit_adds_counts_only_once_a_commit_was_enforced_to_its_end() -> None:
    one = books(Api())
    one.open(MINE, revision="", live=lambda: {A: "a.yaml"})
    one.ahead({B: "b.yaml"})
    assert one.record.servers == {A: Entry("a.yaml", enforced=True), B: Entry("b.yaml")}
    enforce(one, {B: "b.yaml"}, "1" * 40, {A, B})
    assert one.record.servers == {A: Entry("a.yaml"), B: Entry("b.yaml", enforced=True)}
    enforce(one, {B: "b.yaml", C: "c.yaml"}, "2" * 40, {B})
    assert one.record.servers.keys() == {B, C}


def test_a_release_holds_until_git_holds_the_server_again() -> None:
    one = books(Api())
    one.open(MINE, revision="", live=lambda: {A: "a.yaml", B: "b.yaml"})
    one.release({A}, "9" * 40)
    assert one.record.spent == "9" * 40
    assert one.record.servers[A].released
    one.ahead({A: "a.yaml"})
    assert not one.record.servers[A].released


def test_another_repository_with_this_id_changes_nothing_until_it_is_told_to_take_over() -> None:
    api = Api()
    first = books(api)
    first.open(MINE, revision="", live=nothing)
    first.ahead({A: "a.yaml"})
    enforce(first, {A: "a.yaml"}, "1" * 40, {A})
    stranger = replace_fingerprint(Fingerprint("https://git.example.com/b", frozenset({"b" * 40})))
    with pytest.raises(UsageError) as raised:
        books(api).open(stranger, revision="", live=nothing)
    for part in ("fleet.git", "root aaaaaaaa", "111111111111", "example.com/b", "root bbbbbbbb"):
        assert part in raised.value.message
    assert "--take-over" in raised.value.hint

    with pytest.raises(UsageError, match="belongs to another") as raised:  # chosen by its own file
        books(api, take_over=True).open(stranger._replace(named=False), revision="", live=nothing)
    assert f"--source-id {stranger.source} --take-over" in raised.value.hint

    taken = books(api, take_over=True)
    taken.open(stranger, revision="", live=nothing)
    assert taken.record.servers == {A: Entry("a.yaml", enforced=True)}
    assert taken.record.revision == TAKEN_OVER
    taken.ahead({})
    with pytest.raises(UsageError):
        books(api).open(MINE, revision="", live=nothing)


def test_a_shallow_clone_neither_shows_nor_forgets_the_root_commits() -> None:
    api = Api()
    first = books(api)
    first.open(MINE, revision="", live=nothing)
    enforce(first, {A: "a.yaml"}, "1" * 40, {A})
    shallow = replace_fingerprint(replace(HTTPS, roots=frozenset()))
    second = books(api)
    second.open(shallow, revision="", live=nothing)
    second.enforced(
        shallow, {}, revision="2" * 40, reaches=lambda *_: True, remains=lambda _: False
    )
    assert api.live is not None
    assert parse(api.live).fingerprint == HTTPS

    elsewhere = replace_fingerprint(Fingerprint("/builds/fleet"))
    with pytest.raises(UsageError) as raised:
        books(api).open(elsewhere, revision="", live=nothing)
    assert "whole history" in raised.value.hint


def replace_fingerprint(other: Fingerprint) -> Identity:
    return MINE._replace(fingerprint=other)


def test_another_name_of_the_cluster_is_refused_until_it_is_said() -> None:
    api = Api()
    first = books(api)
    first.open(MINE, revision="", live=nothing)
    first.ahead({A: "a.yaml"})
    forgotten = MINE._replace(cluster="default", cluster_named=False)
    for take_over in (False, True):
        with pytest.raises(UsageError, match="--cluster prod, not default") as raised:
            books(api, take_over=take_over).open(forgotten, revision="", live=nothing)
        assert "--take-over" in raised.value.hint
    renamed = books(api, take_over=True)
    renamed.open(MINE._replace(cluster="production"), revision="", live=nothing)
    renamed.ahead({})
    assert api.live is not None
    assert parse(api.live).cluster == "production"


def test_a_write_that_met_anothers_is_made_again_by_whoever_still_holds_the_lease() -> None:
    api, held = Api(), True
    one = books(api, may_write=lambda: held)
    one.open(MINE, revision="", live=nothing)
    one.ahead({A: "a.yaml"})
    assert api.live is not None
    api.live["metadata"]["resourceVersion"] = "70"  # somebody has annotated it
    one.ahead({A: "a.yaml", B: "b.yaml"})
    assert parse(api.live).servers.keys() == {A, B}
    held = False
    with pytest.raises(LeaseLost):
        one.ahead({C: "c.yaml"})
    assert C not in one.record.servers


def test_a_record_that_is_only_read_is_not_written_though_it_counts() -> None:
    api = Api()
    one = books(api, read_only=True)
    one.open(MINE, revision="", live=lambda: {A: "a.yaml"})
    one.ahead({B: "b.yaml"})
    assert one.record.servers.keys() == {A, B}
    assert api.asked == ["get"]


def test_after_a_change_of_leader_the_record_is_read_again() -> None:
    api = Api()
    one, other = books(api), books(api)
    one.open(MINE, revision="", live=nothing)
    one.ahead({A: "a.yaml"})
    one.close()
    assert not one.is_open
    other.open(MINE, revision="", live=nothing)
    other.ahead({B: "b.yaml"})
    assert one.open(MINE, revision="", live=nothing).servers.keys() == {A, B}


@pytest.mark.parametrize(
    ("revision", "commit"), [("none", ""), ("", ""), ("a" * 40, "a" * 40), ("b-dirty", "b")]
)
def test_the_commit_of_a_revision(revision: str, commit: str) -> None:
    assert replace(Record(), revision=revision).commit == commit


def test_a_former_term_does_not_overwrite_what_another_leader_wrote() -> None:
    api = Api()
    mine, theirs = books(api), books(api)
    mine.open(MINE, revision="", live=nothing)
    mine.ahead({A: "a.yaml"})
    mine.close()
    theirs.open(MINE, revision="", live=nothing)
    enforce(theirs, {A: "a.yaml", B: "b.yaml"}, "2" * 40, {A, B})
    with pytest.raises(LeaseLost):
        mine.ahead({C: "c.yaml"})
    with pytest.raises(LeaseLost):
        mine.release({A}, "1" * 40)
    assert parse(api.live or {}).revision == "2" * 40
    assert mine.open(MINE, revision="", live=nothing).servers.keys() == {A, B}
    mine.ahead({C: "c.yaml"})
    assert parse(api.live or {}).servers.keys() == {A, B, C}


def test_an_inventory_that_no_config_map_holds_is_refused_before_it_is_sent() -> None:
    rng = random.Random(7)
    words = (f"{rng.getrandbits(12_000):x}" for _ in range(700))
    servers = {ServerKey("ai", f"s{n}"): Entry(f"{word}.yaml") for n, word in enumerate(words)}
    ref = ObjectRef("v1", "ConfigMap", "ai", "gitops-mcp-fleet")
    with pytest.raises(OverLimit, match="700 servers do not fit into the source record") as caught:
        body(ref, "fleet", Record(servers=servers))
    assert "--path" in caught.value.hint


def test_what_the_record_lacks_is_released_and_recreated_without_it() -> None:
    """Somebody, or another leader, may have taken a server out of it meanwhile."""
    one = books(Api())
    one.open(MINE, revision="", live=nothing)
    one.recreate(A)
    assert one.record.servers == {}
    one.release({A}, "1" * 40)
    assert one.record.servers == {A: Entry("", released=True)}
    assert one.record.spent == "1" * 40
