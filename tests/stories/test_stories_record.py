"""Nothing is pruned that nobody released: blocks that stand, and whose servers these are."""

from __future__ import annotations

from pathlib import Path

import gitfixtures
import pytest
from stories.telling import Story

from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.names import FIELD_MANAGER, KIND, LABEL_SOURCE
from gitops_mcp.cluster.leadership import create_namespace

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


@pytest.mark.parametrize("how", ["a pause", "a file without a manifest"])
def test_what_keeps_dropped_servers_for_a_while_releases_no_block(story: Story, how: str) -> None:
    """They are no candidates meanwhile; the new servers count by then, were that a release."""
    fleet(story, *FIVE)
    for name in ("f", "g", "h"):
        story.write(name, replicas=0)
    story.remove("a", "b", "c")
    held = dict.fromkeys("abc", "blocked")
    assert story.sync().items() >= held.items()
    if how == "a pause":
        for suspend, result in ((True, "skipped"), (False, "blocked")):
            for name in "abc":
                story.patch(KIND, {"spec": {"suspend": suspend}}, name)
            assert story.sync().items() >= dict.fromkeys("abc", result).items()
    else:
        files = {f"servers/{name}.yaml": "# moved\n" for name in "abc"}
        story.commit(dict(files))
        assert story.sync().items() >= held.items()
        story.remove("a", "b", "c")
    assert story.sync().items() >= held.items()
    assert "of this source's 5 servers" in story.outcome("a").message
    story.commit(message="Release\n\nAllow-Prune: 3")
    assert story.sync().items() >= dict.fromkeys("abc", "pruned").items()
    story.commit({"README.md": "Talk"}, "Talk")
    story.sync()
    story.remove("f", "g")  # two of five again: the new ones count by now
    assert story.sync().items() >= dict.fromkeys("fg", "pruned").items()


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
    other = another(story, tmp_path / "other")
    other.lease_namespace = story.lease_namespace
    other.watch_namespace = story.watch_namespace
    other.put("theirs", replicas=0)
    for _ in range(2):
        with pytest.raises(UsageError, match="belongs to another repository"):
            other.sync()
        assert other.asked == []
    assert story.find(KIND, "mine")
    assert not story.find(KIND, "theirs")
    assert story.sync() == {"mine": "ok"}


def another(story: Story, folder: Path) -> Story:
    """Another repository under the same source id."""
    other = Story(story.kubeconfig, story.hand, folder, story.namespace)
    # Two commits of one second and one content are the same commit.
    gitfixtures.git(other.repository, "commit", "-q", "--amend", "-m", "Another fleet")
    return other


@pytest.mark.parametrize("ground", ["sandbox"], indirect=True)
@pytest.mark.parametrize("narrow", [False, True], ids=["in another namespace", "of an area"])
def test_another_repository_whose_record_is_another_one_prunes_nothing(
    story: Story, tmp_path: Path, narrow: bool
) -> None:
    fleet(story, "mine", "kept")
    other = another(story, tmp_path / "other")
    if narrow:
        other.watch_namespace = story.namespace
    else:
        other.lease_namespace = f"{story.namespace}-2"
        create_namespace(story.hand, other.lease_namespace)
    other.put("theirs", replicas=0)
    for _ in range(2):
        assert other.sync()["mine"] == "skipped"
    assert "git never held it" in other.outcome("mine").message
    assert story.find(KIND, "mine")
    story.remove("mine")
    assert story.sync()["mine"] == "pruned"


@pytest.mark.parametrize("ground", ["sandbox"], indirect=True)
def test_a_record_that_begins_anew_holds_what_this_repository_applied(story: Story) -> None:
    fleet(story, *FIVE)
    story.remove("a")
    story.lease_namespace = f"{story.namespace}-2"
    create_namespace(story.hand, story.lease_namespace)
    assert story.sync()["a"] == "blocked"
    assert "what git held before is not known" in story.outcome("a").message
    story.commit(message="It may go\n\nAllow-Prune: 1")
    assert story.sync()["a"] == "pruned"


def test_a_commit_that_a_force_push_dropped_stops_all_pruning(story: Story) -> None:
    fleet(story, *FIVE)
    gitfixtures.git(story.repository, "checkout", "-q", "--orphan", "anew")
    story.remove("a")
    gitfixtures.git(story.repository, "branch", "-D", "main")
    assert story.sync()["a"] == "blocked"  # its objects are still there
    assert "force-push" in story.outcome("a").message


def test_a_commit_of_another_branch_is_known_here(story: Story) -> None:
    fleet(story, *FIVE)
    gitfixtures.git(story.repository, "checkout", "-q", "-b", "feature", "HEAD~1")
    for name in "bcde":
        story.write(name, replicas=0)
    story.commit()
    assert story.sync()["a"] == "pruned"


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
