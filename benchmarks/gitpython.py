"""What GitPython costs, and what it bounds, beside `git.gitcommand`.

    python benchmarks/gitpython.py [--files 5000] [--seconds 5]

Each row runs in a process of its own: it lists and reads the files of a commit, or asks a server
whose list of refs never ends. CPU is of everything, git included; memory is the most that the
process held, without its git. Prints a table; nothing is a bar.
"""

from __future__ import annotations

import argparse
import io
import itertools
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gitfixtures import ADVERTISED, OddServer, bare, commit, packet

TEXT = f"# {'why it is so, in the words of its team ' * 25}\n"
"""Makes a manifest of a kilobyte."""


def nothing(place: str) -> str:
    del place
    return "starts"


def imported(place: str) -> str:
    del place
    import git.cmd  # noqa: F401

    return "imports GitPython"


def ours(place: str) -> str:
    from gitops_mcp.git.gitcommand import Git

    git = Git(place, "--git-dir", place)
    listed = git.records("ls-tree", "-r", "-z", "main", most=100_000, longest=4096)
    blobs = git.blobs([line.split(b"\t")[0].split()[2].decode() for line in listed])
    return f"{len(blobs):,} files"


def commands(place: str) -> str:
    import git

    run = git.Repo(place).git
    listed = run.ls_tree("-r", "-z", "main").split("\0")
    ids = [line.split("\t")[0].split()[2] for line in filter(None, listed)]
    with tempfile.TemporaryFile() as asked:
        asked.write("".join(f"{one}\n" for one in ids).encode())
        asked.seek(0)
        out = run.cat_file("--batch", "--buffer", istream=asked, stdout_as_string=False)
    stream, found = io.BytesIO(out), {}
    for one in ids:
        found[one] = stream.read(int(stream.readline().split()[2]))
        stream.read(1)
    return f"{len(found):,} files"


def objects(place: str) -> str:
    import git

    tree = cast("Any", git.Repo(place).commit("main").tree)
    found = {
        blob.hexsha: blob.data_stream.read() for blob in tree.traverse() if blob.type == "blob"
    }
    return f"{len(found):,} files"


def our_refs(place: str) -> str:
    from gitops_mcp.base.errors import GitOpsError
    from gitops_mcp.git.gitrepo import open_source

    try:
        with open_source(place) as source:
            return str(source.poll())
    except GitOpsError as error:
        return f"refused: {error.message.split(': ', 1)[-1]}"


def their_refs(place: str) -> str:
    from git.cmd import Git
    from git.exc import GitCommandError

    url, seconds = place.split(" ")
    try:
        return str(len(Git().ls_remote(url, kill_after_timeout=float(seconds))))
    except GitCommandError as error:
        return f"ended from outside, with status {error.status}"


ROWS: dict[str, Callable[[str], str]] = {
    "no git at all": nothing,
    "GitPython, imported": imported,
    "files, gitcommand": ours,
    "files, GitPython's commands": commands,
    "files, GitPython's objects": objects,
    "endless refs, gitcommand": our_refs,
    "endless refs, GitPython": their_refs,
}


def endless() -> Iterator[bytes]:
    yield ADVERTISED
    yield packet(f"{1:040x} HEAD\0multi_ack side-band-64k symref=HEAD:refs/heads/main\n")
    block = b"".join(packet(f"{n + 1:040x} refs/heads/{n:0900d}\n") for n in range(1000))
    yield from itertools.repeat(block)


class Endless:
    """``endless`` for each request."""

    def __iter__(self) -> Iterator[bytes]:
        return endless()


def child(name: str, place: str) -> None:
    said = ROWS[name](place)
    used = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("VmHWM:")[2].split()[0]) >> 10
    print(f"| {name} | {cpu:.2f} s | {held} MB | {said}", end="", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--child", nargs=2)
    asked = parser.parse_args()
    if asked.child:
        child(*asked.child)
        return
    print("| | CPU | memory | |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        repository = bare(Path(folder) / "fleet.git")
        commit(repository, {f"{n // 100}/{n}.yaml": f"{n}\n{TEXT}" for n in range(asked.files)})
        for name in ROWS:
            with OddServer(Endless()) as server:
                place = str(repository)
                if "refs" in name:
                    place = server.url + (f" {asked.seconds}" if "GitPython" in name else "")
                command = [sys.executable, __file__, "--child", name, place]
                subprocess.run(command, check=True)
                print(f"; {server.sent >> 20} MB were sent |" if server.sent else " |", flush=True)


if __name__ == "__main__":
    main()
