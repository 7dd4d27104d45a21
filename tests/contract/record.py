"""Ask a real plane for the answers to every case and write them down: `python record.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))

import plane
from contract.transcript import ANSWERS, CASES, QUIET, load, of_plane, play


def main() -> None:
    """Record every file of cases, or those named."""
    wanted = sys.argv[1:]
    with plane.Plane(arguments={"kube-controller-manager": [QUIET]}) as real:
        cluster = of_plane(real)
        for path in sorted(CASES.glob("*.yaml")):
            if wanted and path.stem not in wanted:
                continue
            answers = {case["case"]: play(cluster, case) for case in load(path)}
            text = yaml.dump(answers, Dumper=yaml.CSafeDumper, width=100, sort_keys=False)
            (ANSWERS / path.name).write_text(text)


if __name__ == "__main__":
    main()
