"""Every request of `cases/`, answered by the sandbox as a real API server answered it.

`pytest tests/contract --record` asks a real plane anew and writes its answers down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from contract.transcript import ANSWERS, CASES, Cluster, load, play

FILES = sorted(CASES.glob("*.yaml"))
PLAYED = [
    pytest.param(path, case, id=f"{path.stem}-{case['case']}")
    for path in FILES
    for case in load(path)
]


@pytest.mark.parametrize(("path", "case"), PLAYED)
def test_answers_as_a_real_api_server_does(
    cluster: Cluster, path: Path, case: dict[str, Any]
) -> None:
    recorded = yaml.load((ANSWERS / path.name).read_text(), yaml.CSafeLoader)
    assert play(cluster, case) == recorded[case["case"]]
