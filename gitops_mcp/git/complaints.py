"""What git complained of, as one sentence and what to do."""

from __future__ import annotations

import enum
import re

from gitops_mcp.base import limits
from gitops_mcp.base.errors import Obstructed, OverLimit, SourceError, Unanswered
from gitops_mcp.base.masking import scrub

BOM = b"\xef\xbb\xbf"


PROTOCOLS = {"https": "https", "http": "http:https", "ssh": "ssh", "file": "file"}
"""URL scheme to what git may use for it: a redirect never leads from https back to http."""


NOT_GIT = "what answers there is no git server"


NOT_GIT_HINT = "check the address; a login or maintenance page answers like this"


# What a server's or git's complaint means: pattern, message, what to do about it, its class.
# The first that matches counts: a 403 also says that the repository could not be read.
COMPLAINTS: tuple[tuple[str, str, str, type[SourceError]], ...] = (
    (
        r"File too large|died of signal 25|exceeds? maximum allowed size|size limit exceeded",
        f"the repository is larger than {limits.MIRROR // limits.MIB} MiB",
        "clone it without its history (git clone --depth=1), and give that directory",
        OverLimit,
    ),
    (
        r"[Oo]ut of memory|Cannot allocate memory|memory exhausted|bad_alloc",
        f"git needs more than {limits.GIT_MEMORY // limits.MIB} MiB of memory for it",
        "look for a very large file, folder or list of branches in the repository",
        OverLimit,
    ),
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|POSSIBLE DNS SPOOFING",
        "the git server's ssh host key has changed: another server may be answering in its place "
        "(a man in the middle)",
        "ask who runs the server for the new key's fingerprint before you trust it",
        SourceError,
    ),
    (
        r"[Pp]assphrase",
        "the git ssh key needs a passphrase",
        "use a deploy key without a passphrase: there is no prompt for it",
        SourceError,
    ),
    (
        r"UNPROTECTED PRIVATE KEY|bad permissions",
        "ssh does not use the git ssh key, since others may read it",
        "chmod 600 the key",
        SourceError,
    ),
    (
        r"Load key .*: (?:error in libcrypto|invalid format|unknown or unsupported)",
        "ssh cannot read the git ssh key",
        "give the private key as ssh-keygen wrote it, not the .pub file",
        SourceError,
    ),
    (
        r"No user exists for uid",
        "ssh finds no user of this uid",
        "run as a user of /etc/passwd (65532 in the image), or use an https address",
        SourceError,
    ),
    (
        r"(?:HTTP code|HTTP|error:) 407|[Pp]roxy [Aa]uthentication",
        "the proxy refused the credentials, or requires some",
        "check https_proxy; no_proxy names what is asked without it",
        SourceError,
    ),
    (
        r"TF401019",
        "there is no such git repository, or these credentials may not see it",
        "check the address and the token's permissions",
        SourceError,
    ),
    (
        r"Authentication failed|could not read (?:Username|Password)|Permission denied \(|"
        r"HTTP 40[13]|returned error: 40[13]|Permission to .* denied",
        "the git server refused the credentials",
        "check the user name, token or key and its right to this repository",
        SourceError,
    ),
    (
        r"Host key verification failed",
        "the git server's ssh host key is not known",
        "compare its fingerprint with what the server's operator says, then add it to known_hosts",
        SourceError,
    ),
    (
        r"Timeout: the command",
        "the git server took too long",
        "try again",
        Unanswered,
    ),
    (
        r"[Rr]epository .*not found|does not appear to be a git repository|"
        r"returned error: 404|could not be found",
        "there is no such git repository, or these credentials may not see it",
        "check the address",
        SourceError,
    ),
    (
        r"returned error: 429|[Rr]ate limit",
        "the git server limits how often it is asked",
        "look less often: --interval, with a webhook beside it",
        Unanswered,
    ),
    (
        r"info/refs not valid|bad line length character|invalid server response",
        NOT_GIT,
        NOT_GIT_HINT,
        Unanswered,
    ),
    (
        r"Could not resolve host(?:name)?|Connection (?:refused|timed out|reset|closed)|"
        r"Failed to connect|Couldn't connect|Operation too slow|No route to host|"
        r"Network is unreachable|unable to connect|early EOF|hung up unexpectedly|"
        r"unexpected disconnect|returned error: 5\d\d|Empty reply|timed out|"
        r"transfer closed with|RPC failed|GnuTLS (?:recv|send) error|SSL_ERROR_SYSCALL|"
        r"unexpected eof while reading",
        "the git server does not answer",
        "check the address and the network, then try again",
        Unanswered,
    ),
    (
        r"SSL certificate|certificate verif|server certificate|SSL_connect|TLS",
        "the git server's TLS certificate is not trusted",
        "set GIT_SSL_CAINFO to its authority's certificate",
        SourceError,
    ),
    (
        r"transport '.*' not allowed",
        "git must not use this transport",
        "use an https or ssh address",
        SourceError,
    ),
    (
        r"promisor remote",
        "this partial clone lacks the files",
        "clone it without --filter",
        SourceError,
    ),
    (
        r"dubious ownership",
        "the repository belongs to another user",
        "git config --global --add safe.directory <path>",
        SourceError,
    ),
    (
        r"No space left on device|Disk quota exceeded",
        "the disk is full",
        "make room where TMPDIR is",
        SourceError,
    ),
)


class Sign(enum.Enum):
    """What git's stderr may show besides a complaint: a regular expression each."""

    SHALLOW = "shallow"
    """The server gives no shallow fetch."""
    NO_REF = "couldn't find remote ref"
    MEMORY = COMPLAINTS[1][0]
    TAKEN = "Not updating|cannot lock ref"
    """Another writer was faster, in this repository."""
    RACE = r"fetch first|non-fast-forward|stale info|cannot lock ref|failed to update ref"
    """Another writer was faster, here or at the server."""
    IN_THE_WAY = "cannot create"
    """A branch ``a`` that is gone stands in the way of a new branch ``a/b``."""
    NOT_OURS = (
        r"refused|denied|not found|returned error|HTTP [345]\d\d|[Hh]ost key|certificate|"
        r"remote ref|No space left|quota|cannot create"
    )
    """Another folder would meet the same trouble."""

    def shown_in(self, err: str) -> bool:
        """Does git's stderr show it?"""
        return re.search(self.value, err) is not None


_NOISE = re.compile(
    r"[@\s]*$|@ .* @$|Could not read from remote repository|Please make sure you have the correct"
    r"|and the repository exists|Warning: Permanently added|It is (?:also )?possible that"
    r"|IT IS POSSIBLE THAT|Someone could be eavesdropping|It is required that|Please contact your"
    r"|Add correct host key|Timeout: the command|This private key will be ignored"
    r"|remove with:|ssh-keygen -"
)
"""Lines of git and ssh that say nothing of what goes wrong, or advise to trust a changed key."""


_VOLATILE = re.compile(r"(?i)request[ -]id:? *\S+| after \d+ (?:ms|milliseconds)|\d+(?= bytes? )")
"""What differs from one time to the next: it would make the same trouble news each time."""


def why(error: Exception) -> str:
    """An exception in a few words."""
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)


def redact(text: str) -> str:
    """Drop what stands before the @ of an http URL, and a password anywhere."""
    text = re.sub(r"(https?://)[^/@\s'\"]+@", r"\1", text)
    return re.sub(r"((?<!\w)\w+://[^/@:\s'\"]*):[^/@\s'\"]*@", r"\1@", text)


def printable(text: str) -> str:
    """A foreign text that a terminal and JSON can take."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _last_words(err: str) -> str:
    """What git, ssh or the server said last, on one line and without secrets."""
    lines = (re.sub(r"^(?:(?:fatal|error): *)+", "", each) for each in _lines_of(err))
    last = [line.strip() for line in lines if not _NOISE.match(line.strip())][-3:]
    words = (printable(scrub(redact(_VOLATILE.sub("", line))))[:300] for line in last)
    return "; ".join(dict.fromkeys(words))


def _lines_of(err: str) -> list[str]:
    """Of a server's making, so none is looked at to its end."""
    return [line[:1000] for line in re.split(r"[\r\n]+", err)]


def complaint(err: str, root: str) -> SourceError:
    """Git's stderr as one line: what it means, then git's own last words."""
    words, said = _last_words(err), "\n".join(_lines_of(err))
    for pattern, message, hint, kind in COMPLAINTS:
        if re.search(pattern, said):
            return kind(f"{root}: {message}" + (f": {words}" if words else ""), hint=hint)
    kind = Obstructed if Sign.IN_THE_WAY.shown_in(said) else SourceError
    return kind(f"{root}: {words or 'git failed without a word'}")
