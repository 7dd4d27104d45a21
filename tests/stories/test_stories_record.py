"""Nothing is pruned that nobody released: blocks that stand, and whose servers these are."""

from __future__ import annotations

from pathlib import Path

import gitfixtures
import pytest
from stories.telling import Story

from gitops_mcp.errors import UsageError
from gitops_mcp.model import FIELD_MANAGER, KIND, LABEL_SOURCE

FIVE = ("a", "b", "c", "d", "e")


def fleet(story: Story, *names: str) -> None:
    for name in names:
        story.write(name, replicas=0)
    story.commit()
    story.sync()


def test_a_commit_that_renames_three_of_five_is_held_whatever_comes_after_it(story: Story) -> None:
    fleet(story, *FIVE)
    for name in ("f", "g", "h"):
        story.write(name, replicas=0)
    story.remove("a", "b", "c")
    held = dict.fromkeys("abc", "blocked")
    assert story.sync().items() >= (held | dict.fromkeys("fgh", "changed")).items()
    for message in ("Talk", "More talk"):  # what the same commit created does not count
        assert story.sync().items() >= held.items()
        assert "3 server(s)" in story.outcome("a").message
        story.commit({"README.md": message}, message)
    assert story.sync().items() >= held.items()
    assert "of this source's 5 servers" in story.outcome("a").message
    story.commit(message="Release\n\nAllow-Prune: 3")
    assert story.sync().items() >= dict.fromkeys("abc", "pruned").items()
    assert story.settled()


def test_a_block_ends_where_git_takes_the_servers_back(story: Story) -> None:
    fleet(story, *FIVE)
    story.remove("a", "b", "c")
    assert story.sync()["a"] == "blocked"
    for name in "abc":
        story.write(name, replicas=0)
    story.commit()
    story.sync()
    story.remove("a")
    assert story.sync()["a"] == "pruned"


def test_a_sync_of_a_part_releases_no_block(story: Story) -> None:
    fleet(story, *FIVE)
    for name in ("f", "g", "h"):
        story.write(name, replicas=0)
    story.remove("a", "b", "c")
    assert set(story.sync(source={"limit": "f,g,h"}).values()) == {"changed"}
    assert story.sync()["a"] == "blocked"


def test_another_repository_under_the_same_id_changes_nothing(story: Story, tmp_path: Path) -> None:
    fleet(story, "mine")
    other = Story(story.kubeconfig, story.hand, tmp_path / "other", story.namespace)
    other.lease_namespace = story.lease_namespace
    other.watch_namespace = story.watch_namespace
    # Two commits of one second and one content are the same commit.
    gitfixtures.git(other.repository, "commit", "-q", "--amend", "-m", "Another fleet")
    other.put("theirs", replicas=0)
    for _ in range(2):
        with pytest.raises(UsageError, match="belongs to another repository"):
            other.sync()
        assert other.asked == []
    assert story.find(KIND, "mine")
    assert not story.find(KIND, "theirs")
    assert story.sync() == {"mine": "ok"}


def test_a_commit_that_is_not_known_here_stops_all_pruning(story: Story) -> None:
    fleet(story, *FIVE)
    gitfixtures.git(story.repository, "checkout", "-q", "--orphan", "anew")
    story.remove("a")
    gitfixtures.git(story.repository, "branch", "-D", "main")
    gitfixtures.git(story.repository, "reflog", "expire", "--expire=now", "--all")
    gitfixtures.git(story.repository, "gc", "-q", "--prune=now")
    assert story.sync()["a"] == "blocked"  # the address is the same
    assert "fetch-depth: 0" in story.outcome("a").message
    story.commit(message="It may go\n\nAllow-Prune: 1")
    assert story.sync()["a"] == "pruned"
    assert story.settled()


def test_forged_servers_neither_count_nor_go(story: Story) -> None:
    fleet(story, "a", "b", "c", "d")
    for number in range(8):
        story.apply(
            KIND,
            {
                "metadata": {"labels": {LABEL_SOURCE: story.namespace}},
                "spec": {"image": "example.com/forged:1", "suspend": number < 6},
            },
            f"forged-{number}",
            manager=FIELD_MANAGER,
        )
    story.remove("a")
    results = story.sync()
    assert results["a"] == "pruned"  # one of four
    assert {results[f"forged-{number}"] for number in range(8)} == {"skipped"}
    story.remove("b", "c")
    assert story.sync()["b"] == "blocked"  # two of three
    assert story.find(KIND, "forged-7")


def test_servers_that_a_renamed_folder_left_behind_are_named_and_not_pruned(story: Story) -> None:
    fleet(story, "a", "d")
    gitfixtures.git(story.repository, "mv", "servers", "fleet")
    story.commit({"fleet/d.yaml": None}, "Rename the folder, and drop one")
    story.warnings.clear()
    assert story.sync(source={"path": "fleet"})["a"] == "changed"
    (warning,) = story.warnings
    assert f"{story.namespace}/d (servers/d.yaml)" in warning
    assert "--path fleet" in warning
    assert story.find(KIND, "d")
    assert story.sync()["d"] == "pruned"
