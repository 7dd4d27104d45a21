"""What git, ssh and servers say in our words, and what they are given: real keys, real servers."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from gitfixtures import ADVERTISED, GitServer, OddServer, bare, commit, packet

from gitops_mcp.base.errors import SourceError, Unanswered
from gitops_mcp.git import addresses, complaints
from gitops_mcp.git.gitrepo import Credentials, open_source

SECRET = "tok-5f1a9c"


@pytest.fixture
def repository(processes: None, tmp_path: Path) -> Path:
    folder = bare(tmp_path / "fleet.git")
    commit(folder, {"web.yaml": "kind: Web\n"})
    return folder


# --- complaints --------------------------------------------------------------------------------

CHANGED_KEY = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\r
Someone could be eavesdropping on you right now (man-in-the-middle attack)!\r
It is also possible that a host key has just been changed.\r
The fingerprint for the ED25519 key sent by the remote host is\r
SHA256:8Ok7YxbyKFxXfoMSfhEJ1mz7nbwbR5Mv3VTWHdFmOhs.\r
Please contact your system administrator.\r
Add correct host key in /etc/known to get rid of this message.\r
Offending ED25519 key in /etc/known:1\r
  remove with:\r
  ssh-keygen -f "/etc/known" -R "[127.0.0.1]:2222"\r
Host key for [127.0.0.1]:2222 has changed and you have requested strict checking.\r
Host key verification failed.\r
fatal: Could not read from remote repository.

Please make sure you have the correct access rights
and the repository exists.
"""

COMPLAINTS = {
    "fatal: unable to access 'https://h/': The requested URL returned error: 429": "how often",
    "kex_exchange_identification: Connection closed by remote host": "does not answer",
    "fatal: the remote end hung up unexpectedly": "does not answer",
    "fatal: unable to access 'https://h/': GnuTLS recv error (-110): The TLS connection was "
    "non-properly terminated.": "does not answer",
    "fatal: unable to access 'https://h/': OpenSSL SSL_connect: SSL_ERROR_SYSCALL in connection to "
    "h:443": "does not answer",
    "error: RPC failed; OpenSSL SSL_read: unexpected eof while reading": "does not answer",
    "fatal: unable to access 'https://h/': server certificate verification failed. CAfile: none "
    "CRLfile: none": "not trusted",
    "ssh: connect to host h port 22: Network is unreachable": "does not answer",
    "fatal: repository 'https://h/certificates.git/' not found": "there is no such git repository",
    "fatal: unable to access 'https://h/': The requested URL returned error: 403": "refused",
    "git@h: Permission denied (publickey).\nfatal: Could not read from remote.": "refused",
    "fatal: unable to access 'https://h/': Could not resolve host: h": "does not answer",
    "ssh: connect to host h port 22: Connection refused": "does not answer",
    "fatal: unable to access 'https://h/': server certificate verification failed.": "TLS",
    "Host key verification failed.\nfatal: Could not read": "host key is not known",
    CHANGED_KEY: "man in the middle",
    'Load key "/k/id": error in libcrypto\ngit@h: Permission denied (publickey).': "Load key",
    'Load key "/k/id": bad permissions\ngit@h: Permission denied (publickey).': "others may read",
    'Load key "/k/id": incorrect passphrase supplied to decrypt private key': "needs a passphrase",
    "No user exists for uid 54321\r\nfatal: Could not read from remote": "uid 54321",
    "fatal: unable to access 'https://h/': Received HTTP code 407 from proxy": "the proxy refused",
    "remote: TF401019: The Git repository with name x does not exist": "TF401019: The Git",
    "fatal: remote error: the token=abc123secret has expired": "the token=*** has expired",
    "fatal: write error: File too large": "the repository is larger than 768 MiB",
    "fatal: Out of memory, malloc failed (tried to allocate 9 bytes)": "more than 512 MiB",
    "error: RPC failed; curl 18 transfer closed with 5 bytes remaining": "does not answer",
    "fatal: detected dubious ownership in repository at '/x'": "belongs to another user",
    "warning: a\nfatal: odd \x1b[31m https://u:tok@h/x": "odd \\x1b[31m https://h/x",
    "remote: so it is\n": "remote: so it is",
    "": "git failed without a word",
}


@pytest.mark.parametrize(("err", "expected"), COMPLAINTS.items())
def test_a_complaint_of_git_becomes_one_line(err: str, expected: str) -> None:
    error = complaints.complaint(err, "SOURCE")
    assert error.message.startswith("SOURCE: ")
    assert expected in error.message
    assert "\n" not in error.message
    assert len(error.message) < 1200


def test_nobody_is_told_to_trust_a_host_key_that_has_changed() -> None:
    error = complaints.complaint(CHANGED_KEY, "SOURCE")
    for advice in ("known_hosts", "ssh-keygen", "remove with"):
        assert advice not in f"{error} {error.hint}"
    assert "Host key for [127.0.0.1]:2222 has changed" in error.message


@pytest.mark.parametrize("part", ["x", "Load key ", "transport '", "\x1b[2J", "@ "])
def test_a_long_complaint_is_read_to_its_end(part: str) -> None:
    error = complaints.complaint(f"{part * 60_000}\nfatal: that is why\n", "SOURCE")
    assert "that is why" in error.message
    assert "\x1b" not in error.message


def test_the_same_trouble_is_the_same_text_each_time() -> None:
    said = {
        str(complaints.complaint(f"Failed to connect to h port 1 after {ms} ms: no", "S"))
        for ms in (0, 12)
    }
    assert len(said) == 1


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    "option", [{}, {"branch": "main"}, {"ref": "v1"}, {"ref": "refs/pull/1/head"}]
)
@pytest.mark.parametrize(
    ("page", "told"), [(b"<html>Log in</html>", ": it sent text/html"), (b"<html>\n</html>\n", "")]
)
def test_a_page_is_no_empty_repository(option: dict[str, str], page: bytes, told: str) -> None:
    with (
        OddServer([page], kind="text/html; charset=utf-8") as server,
        open_source(server.url, **option) as opened,  # type: ignore[arg-type]
        pytest.raises(Unanswered, match=f"what answers there is no git server{told}"),
    ):
        opened.poll()


@pytest.mark.usefixtures("processes")
def test_what_a_server_says_is_kept_without_its_secrets() -> None:
    text = "\x1b[2Jpwned\x07 https://user:hunter2@h/x token=abc123secret"
    with (
        OddServer([ADVERTISED, packet(f"ERR {text}\n"), b"0000"]) as server,
        open_source(server.url) as opened,
        pytest.raises(SourceError, match="pwned") as caught,
    ):
        opened.poll()
    for secret in ("\x1b", "\x07", "hunter2", "abc123secret"):
        assert secret not in str(caught.value)


# --- ssh keys and password files as people have them -------------------------------------------


@pytest.fixture
def key(processes: None, tmp_path: Path) -> Path:
    file = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)
    return file


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.rstrip(b"\n"),
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n").rstrip(),
    ],
)
def test_a_pasted_ssh_key_is_read(key: Path, spoil: Callable[[bytes], bytes]) -> None:
    whole = key.read_bytes()
    key.write_bytes(spoil(whole))
    spoilt = key.read_bytes()
    command = addresses._ssh(Credentials(ssh_key=key))["GIT_SSH_COMMAND"].split()
    copy = Path(command[command.index("-i") + 1])
    read = subprocess.run(
        ["ssh-keygen", "-y", "-P", "", "-f", copy], capture_output=True, check=True
    )
    assert read.stdout.split()[:2] == key.with_suffix(".pub").read_bytes().split()[:2]
    assert copy.stat().st_mode & 0o777 == 0o600
    assert copy.parent.stat().st_mode & 0o777 == 0o700
    assert key.read_bytes() == spoilt
    key.write_bytes(whole)  # a rotated one
    assert str(key) in addresses._ssh(Credentials(ssh_key=key))["GIT_SSH_COMMAND"]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
def test_a_key_with_a_passphrase_is_named_unless_an_ssh_agent_may_hold_it(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "id"
    make = ["ssh-keygen", "-q", "-t", "rsa", "-m", form, "-N", "secret", "-f", str(key)]
    subprocess.run(make, check=True)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(SourceError, match=r"/id needs a passphrase") as refused:
        addresses._ssh(Credentials(ssh_key=key))
    assert "deploy key" in str(refused.value.hint)
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    assert str(key) in addresses._ssh(Credentials(ssh_key=key))["GIT_SSH_COMMAND"]


def test_known_hosts_that_windows_saved_are_read(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_bytes(b"\xef\xbb\xbfgit.example.com ssh-ed25519 AAAA\r\n")
    command = addresses._ssh(Credentials(known_hosts=hosts))["GIT_SSH_COMMAND"]
    (copy,) = (part.partition("=")[2] for part in command.split() if "UserKnownHosts" in part)
    assert Path(copy).read_bytes() == b"git.example.com ssh-ed25519 AAAA\n"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["", "ada"])
@pytest.mark.parametrize("user", ["", "ada@"])
def test_the_user_of_an_address_goes_with_the_password_file(
    tmp_path: Path, repository: Path, mark: bytes, name: str, user: str
) -> None:
    password = tmp_path / "password"
    password.write_bytes(mark + f"{SECRET}\r\n".encode())
    with GitServer(repository.parent, password=SECRET) as server:
        address = f"{server.url.replace('://', f'://{user}')}/{repository.name}"
        credentials = Credentials(username=name, password_file=password)
        with open_source(address, credentials=credentials) as opened:
            opened.poll()
            assert opened.root == f"{server.url}/{repository.name}"
        given = base64.b64decode((server.seen[-1].authorization or "").split()[1]).decode()
    assert given == f"{'ada' if name or user else 'git'}:{SECRET}"
