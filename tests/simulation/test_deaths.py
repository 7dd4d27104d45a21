"""Killed at any request of a story, before it acts or after it, the agent ends where it would."""

from __future__ import annotations

import pytest

from simulation.stories import STORIES, deaths, survives


@pytest.mark.parametrize("name", STORIES)
def test_a_story_ends_the_same_wherever_its_teller_dies(name: str) -> None:
    story = STORIES[name]
    places = list(deaths(story))
    assert len(places) > 8
    trouble = [survives(story, number, fault) for number, fault in places]
    assert [text for text in trouble if text] == []
