"""What of a value may be shown: only what is known to be harmless.

Receives a text and the name that it belongs to (a variable, a flag, a key); returns the text, in
which everything from the first part that is not known to be harmless to the end of its line is
replaced by a marker. Harmless are the shapes of ordinary settings: words, numbers, durations, host
names, URLs, paths, images, and lists and sentences of them. What is none of these may be a secret.
It never raises, and takes time in proportion to the text.
"""

from __future__ import annotations

import re
from functools import lru_cache

from gitops_mcp.base.secretnames import (
    MASK,
    NUMBER,
    QUANTITY,
    REFERENCE,
    allows,
    is_flag,
    never,
    parts,
    rule,
    secretive,
    takes_secret,
    words,
)
from gitops_mcp.base.spoken import CONTRACTED, LONGEST_WORD, is_word

LONGEST = 16_384
"""Characters of a value that are looked at. What is longer is hidden as a whole."""


DEEPEST = 4
"""Values in values (``a=b=c``) that are looked at."""

# --- words ------------------------------------------------------------------------------------


# --- what is made of words --------------------------------------------------------------------

_TIME = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"
    r"|\d{1,2}:\d\d(?::\d\d)?(?:-\d{1,2}:\d\d)?|\d{1,5}x\d{1,5}"
)
_ADDRESS = re.compile(
    r"\[?(?:\d{1,3}(?:\.\d{1,3}){3}|(?=[^:]*:[^:]*:)[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7})\]?"
    r"(?::\d{1,5})?(?:/\d{1,3})?",
    re.I,
)
_SIGNS = re.compile(r"[^\w\s]{1,3}|[\d*/,?-]{1,12}|#[0-9a-fA-F]{3,8}|[LM#?]")
_DIGEST = re.compile(r"(?:sha(?:1|256|512)[:-])?[0-9a-f]{7,128}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.I)
_SHORT_ID = re.compile(r"[A-Z0-9]{1,12}|\d{1,20}(?:-\d{1,20})?")
_IMAGE_DIGEST = re.compile(r"@?sha256:[0-9a-f]{64}\Z")
_URL = re.compile(
    r"(?P<scheme>(?:[A-Za-z][\w+.]{0,15}:)?[A-Za-z][\w+.-]{0,23}):(?P<rest>//.*)", re.S
)
_PORT = re.compile(r"\d{1,5}")
_TAG = re.compile(r"latest|stable|edge|main|master|nightly|dev|prod|v?\d[\w.+-]*|\$.*", re.I)
_SCOPES = words(
    "admin:org read write manage delete view edit create list get watch exec execute role scope "
    "repo user org project group team status all any profile email public gist workflow package "
    "packages security_events read_api api http https tcp udp unix file host model models tool "
    "tools app main server application create_app asgi wsgi"
)
_CLOUD = re.compile(
    r"(?i).+\.(?:amazonaws\.com|windows\.net|azure\.(?:com|net)|azure-api\.net|azurewebsites\.net"
    r"|cloudapp\.net|googleapis\.com|googleusercontent\.com|run\.app|mongodb\.net|elastic-cloud\.com"
    r"|cloud\.es\.io|snowflakecomputing\.com|supabase\.co|neon\.tech|qdrant\.io|pinecone\.io"
    r"|upstash\.io|cloudflarestorage\.com|digitaloceanspaces\.com|grafana\.net|aivencloud\.com"
    r"|svc|cluster\.local)"
)
_AT_IN_PATH = re.compile(r"(?:[\w.-]+/)*(?:@[\w.-]+/[\w./-]*|[\w.-]+@v?\d[\w.-]*)")
_CLOUD_LABEL = re.compile(r"[a-z0-9-]{1,40}", re.I)
_HOOKS = re.compile(
    r"(?i)(?:hooks\.slack(?:-gov)?\.com|discord(?:app)?\.com|(?:[\w-]+\.)?webhook\.office\.com"
    r"|outlook\.office\.com|hooks\.zapier\.com|hook\.[\w.]*make\.com|maker\.ifttt\.com|webhook\.site"
    r"|chat\.googleapis\.com|[\w.-]+\.logic\.azure\.com|api\.telegram\.org|events\.pagerduty\.com"
    r"|[\w-]+\.m\.pipedream\.net)(?::\d+)?"
)
"""Hosts whose addresses are secrets as a whole."""
_LEADING, _TRAILING = "\"'([{<`*#\u201c\u2018", "\"')]}>`*,.;:!?\u2026\u201d\u2019"
_ASSIGNED = re.compile(r"([\w.-]+)(?:=|:=)(.*)", re.S)
_PACKAGE = re.compile(r"@?[\w.-]+(?:/[\w.-]+)*(?:@[~^]?(?:latest|next|v?\d[\w.+-]*))?")
_REMOTE = re.compile(r"[a-z]{2,16}@(?P<host>[\w.-]+):(?P<path>[\w./-]+)")
_REQUIRED = re.compile(r"[\w.-]+(?:\[[\w,-]+\])?(?:==|>=|<=|~=|!=)[\w.*+-]+")


def host(text: str) -> bool:
    """``db``, ``db:5432``, ``api.example.com``, ``[::1]:80``."""
    if _ADDRESS.fullmatch(text):
        return True
    name, colon, port = text.partition(":")
    if colon and not (_PORT.fullmatch(port) or REFERENCE.fullmatch(port)):
        return False
    if REFERENCE.fullmatch(name):
        return True
    labels = [label for label in name.removeprefix("*.").rstrip(".").split(".") if label]
    if _CLOUD.fullmatch(name) and all(_CLOUD_LABEL.fullmatch(label) for label in labels):
        return True
    return bool(labels) and all(is_word(label) for label in labels)


def _url(scheme: str, rest: str) -> str:
    """``rest`` from ``//`` on."""
    address, query_mark, query = rest[2:].partition("?")
    fragment = ""
    if not query_mark:
        address, hash_mark, fragment = address.partition("#")
        fragment = hash_mark + fragment
    place, slash, path = address.partition("/")
    where = f"{scheme}://"
    _, at, place = place.rpartition("@")
    if at:
        where += MASK + "@"
    if "@" in path and not _AT_IN_PATH.fullmatch(path):
        return where + MASK
    if scheme.lower().endswith("sqlite") or scheme == "file":
        hosts = place in ("", "localhost", ".")
    else:
        hosts = place == "" or all(host(one) for one in place.split(","))
    if not hosts:
        return where + MASK
    where += place
    if path and _HOOKS.fullmatch(place):
        return f"{where}/{path.split('/')[0] if is_word(path.split('/')[0]) else ''}/{MASK}"
    if slash:
        shown, whole = _segments(path, "/")
        where += "/" + shown
        if not whole:
            return where
    if query_mark:
        shown = _query(query)
        where += f"?{shown}"
        if shown != query:
            return where
    if fragment and not is_word(fragment[1:]):
        return f"{where}#{MASK}"
    return where + fragment


def _segments(path: str, separator: str) -> tuple[str, bool]:
    """A path as far as it is harmless, and whether that is all of it."""
    shown: list[str] = []
    for segment in path.split(separator):
        if not _segment(segment):
            return separator.join([*shown, MASK]), False
        shown.append(segment)
    return separator.join(shown), True


def _segment(text: str) -> bool:
    bare = text.strip("*{}()<>:@%,")
    if not bare or REFERENCE.fullmatch(text) or NUMBER.fullmatch(bare):
        return True
    return all(is_word(part) for part in re.split(r"[@:=*,%{}]+", bare) if part)


def _pair(text: str) -> str:
    """``name=value``; a value that may not be shown is hidden."""
    name, equals, value = text.partition("=")
    if not equals:
        return text if not text or _shown(text) == text else MASK
    if not is_word(name.strip("-[]$/")):
        return MASK
    if not value:
        return text
    if value.count("=") > DEEPEST:
        return f"{name}={MASK}"
    return f"{name}={reveal(value, name)}"


_LISTS = (",", ";", "|", "&")


def _list(text: str) -> str | None:
    for separator in _LISTS:
        if separator not in text:
            continue
        shown: list[str] = []
        for item in text.split(separator):
            seen = _shown(item) if item else item
            shown.append(seen)
            if seen != item:
                break
        return separator.join(shown)
    return None


def _is_atom(text: str) -> bool:
    return bool(
        NUMBER.fullmatch(text)
        or QUANTITY.fullmatch(text)
        or _SIGNS.fullmatch(text)
        or REFERENCE.fullmatch(text)
        or _TIME.fullmatch(text)
        or _ADDRESS.fullmatch(text)
        or is_word(text)
        or CONTRACTED.fullmatch(text)
    )


@lru_cache(maxsize=8192)
def _shown(text: str) -> str:
    """One text without spaces, as far as it is harmless."""
    if len(text) > LONGEST_WORD:
        return MASK
    if not text or _is_atom(text):
        return text if _flag(text) is None else str(_flag(text))
    core = text.strip(_LEADING).rstrip(_TRAILING) if text[0] in _LEADING else text
    core = core.rstrip(_TRAILING)
    if core != text:
        if not core:
            return MASK
        before, _, after = text.partition(core)
        seen = _shown(core)
        return before + seen + (after if seen == core else "")
    return _compound(text)


def _compound(text: str) -> str:
    digest = _IMAGE_DIGEST.search(text)
    if digest:
        rest = text[: digest.start()]
        return text if not rest or _shown(rest) == rest else MASK
    for separator in ",;":
        if f"{separator}http" in text and text.startswith("http"):
            return _list(text) or MASK
    url = _URL.fullmatch(text)
    if url and not _ASSIGNED.match(text.split("://")[0]):
        return _url(url["scheme"], url["rest"])
    flag = _flag(text)
    if flag is not None:
        return flag
    if _REQUIRED.fullmatch(text):
        return text if _simple(text) else MASK
    if _ASSIGNED.fullmatch(text) and "://" not in text.partition("=")[0]:
        listed = _list(text)
        return _pair(text) if listed is None else listed
    listed = _list(text)
    if listed is not None:
        return listed
    return (
        text if _simple(text) else MASK if "/" not in text or text[0] not in "/.~" else _file(text)
    )


def _file(text: str) -> str:
    path, query_mark, query = text.partition("?")
    shown, whole = _segments(path, "/")
    return shown + (query_mark + _query(query) if whole else "")


def _query(text: str) -> str:
    shown: list[str] = []
    for pair in text.split("&"):
        shown.append(_pair(pair))
        if shown[-1] != pair:
            break
    return "&".join(shown)


def _simple(text: str) -> bool:
    """A host, an image, a package, a path, an address of mail, a scope."""
    if host(text):
        return True
    if "\\" in text:
        return _segments(text.replace("\\", "/"), "/")[1]
    if "@" in text and not text.startswith("@") and "/" not in text and ":" not in text:
        user, _, place = text.rpartition("@")
        dotted = "." in place or place == "localhost" or bool(_TAG.fullmatch(place))
        return dotted and is_word(user) and (host(place) or bool(_TAG.fullmatch(place)))
    name, colon, tag = text.rpartition(":")
    remote = _REMOTE.fullmatch(text)
    if remote:
        return host(remote["host"]) and _segments(remote["path"], "/")[1]
    if "/" in text:
        if "@" in text and not _PACKAGE.fullmatch(text):
            return False
        where = name if colon and "/" not in tag else text
        if (
            colon
            and "/" not in tag
            and not (_TAG.fullmatch(tag) or tag in _SCOPES)
            and not is_word(tag)
        ):
            return False
        if where is name and tag and not is_word(tag) and not REFERENCE.fullmatch(tag):
            return False
        return _segments(where, "/")[1] and len(text) <= 256
    if not colon:
        versioned = re.split(r"==|>=|<=|~=|\^|!=", text)
        bracketed = [part.partition("[")[0] for part in versioned]
        return len(versioned) > 1 and all(is_word(part) for part in bracketed if part)
    parts = text.split(":")
    if len(parts) == 2 and is_word(parts[0]) and _TAG.fullmatch(tag) and is_word(tag):
        return True
    if all(NUMBER.fullmatch(part) for part in parts):
        return True
    if all(is_word(part) or part == "*" for part in parts):
        return (
            len(parts) > 3
            or any(part in _SCOPES for part in parts)
            or (parts[0].islower() and tag in ("*", ""))
        )
    return False


# --- flags ------------------------------------------------------------------------------------

_PASSWORD_FLAGS = frozenset({"-p", "-P", "-a", "-w", "-pw", "-pass"})
"""Short flags that take a password in some programs, and a port or a path in others."""
_USER_FLAGS = frozenset({"-u", "-U", "--user", "-user", "--username", "--proxy-user", "--basic"})
_TELLING_FLAGS = _PASSWORD_FLAGS | _USER_FLAGS
_SHORT_WORDS = re.compile(
    r"-p(?:ort|ath|retty|rint|rofile|refix|rotocol|roxy|roject|lugins?|oll|ublic|arallel|rod|rovider"
    r"|ing|olicy|latform|id|ersist|ackages?|ages?|arams?|arse|ool|ull|ush)\b.*"
)
_PASSWORD_ATTACHED = re.compile(r"-p(?P<value>[^-\s=].*)", re.S)
_PORTS = re.compile(r"\d{1,5}(?::\d{1,5})?(?:/(?:tcp|udp))?")


def _flag(text: str) -> str | None:
    """An argument that is a flag, with a value of its own or not; None: it is none."""
    if not text.startswith("-") or len(text) < 2:
        return None
    name, equals, value = text.partition("=")
    if equals:
        name = re.sub(r"\A-(?:D|XX:[+-]?|e)(?=[A-Za-z])", "-", name)
        if not is_word(name.strip("-")):
            return MASK
        shown = MASK if value.count("=") > DEEPEST else reveal_argument(value, name)
        return f"{text.partition('=')[0]}={shown}"
    attached = _PASSWORD_ATTACHED.fullmatch(text)
    if attached and not _SHORT_WORDS.fullmatch(text):
        return text if _PORTS.fullmatch(attached["value"]) else f"-p{MASK}"
    if re.fullmatch(r"--?[A-Za-z]\S*", text):
        bare = text.strip("-").replace(":", "-").replace("+", "")
        if is_word(bare) or QUANTITY.fullmatch(bare[2:]) or host(text.lstrip("-")):
            return text
        return MASK
    return None


def reveal_argument(text: str, flag: str) -> str:
    """The value of a flag, or the argument after it."""
    if flag in _PASSWORD_FLAGS:
        path = text.startswith(("/", "./")) and _shown(text) == text
        return text if path or _PORTS.fullmatch(text) or never(text) else MASK
    if flag in _USER_FLAGS and ":" in text and not re.fullmatch(r"\d+:\d+", text):
        return f"{text.partition(':')[0]}:{MASK}" if is_word(text.partition(":")[0]) else MASK
    return reveal(text, flag) if is_flag(flag) else reveal(text)


# --- lines ------------------------------------------------------------------------------------

_BLOCK = re.compile(r"-----BEGIN [A-Z0-9 ]*(?:PRIVATE KEY|SECRET|PGP MESSAGE)", re.I)
_NAMED = re.compile(r"(?<![\w.-])([\w.-]++)[\"']?\s*(?:=>|:=|=|:(?!//))\s*(?=\S)")
_SPOKEN_OF = re.compile(
    r"\b(?:password|passwd|passphrase|secret|token|api[ _-]?key|account)\s+(?:is\s+|to\s+)?(?=\S)",
    re.I,
)
_SCHEME = re.compile(r"\b(?:Bearer|Basic|Digest|Token|ApiKey)\s+(?=\S)", re.I)
_AFTER_SCHEME = re.compile(
    r"(?:auth\w*|tokens?|scheme|schemes|header|realm|limit|count|usage)\b", re.I
)
_SPACES = re.compile(r"(\s+)")
_PROSE = re.compile(r"[a-z]{1,16}[.,;:!?)]{0,2}")


def reveal(text: str, name: str = "") -> str:
    """``text`` as far as it may be shown by this name (a variable's, a flag's, a key's)."""
    if len(text) > LONGEST:
        return MASK
    check = rule(name) if name else None
    if check is not None and not check(text.strip()):
        return MASK
    if "\n" in text:
        return _lines(text)
    return _identified(text, name) or _line(text)


def _identified(text: str, name: str) -> str:
    """A value that only its name makes harmless: an id, a digest."""
    each = parts(name) if name else ()
    if not each:
        return ""
    if each[-1] in ("id", "uuid", "guid", "ids") and not {"session", "key"} & {*each}:
        return text if _UUID.fullmatch(text) or _SHORT_ID.fullmatch(text) else ""
    if {"checksum", "digest", "sha", "sha256", "commit", "revision", "etag"} & {*each}:
        return text if _DIGEST.fullmatch(text) else ""
    return ""


def _lines(text: str) -> str:
    """A text of several lines; what is indented below a secret's name is hidden with it."""
    if _BLOCK.search(text):
        return MASK
    shown: list[str] = []
    below: int | None = None
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip())
        if below is not None and line.strip():
            if indent > below:
                shown.append(" " * indent + MASK)
                continue
            below = None
        shown.append(_line(line))
        opened = re.match(
            r"\s*(?:- )?[\"']?([\w.-]{1,128})[\"']?\s*:\s*(?:[|>][-+\d]*)?\s*\Z", line
        )
        if (opened and secretive(opened[1])) or line.rstrip().endswith(MASK):
            below = indent
    return "\n".join(shown)


def _line(text: str) -> str:
    """One line, as far as it is harmless."""
    if _BLOCK.search(text):
        return MASK
    end = _first_named(text)
    shown: list[str] = []
    length, before = 0, ""
    for piece in _SPACES.split(text):
        if end is not None and length >= end:
            return "".join((*shown, MASK))
        if piece and not piece.isspace():
            seen = reveal_argument(piece, before) if before in _TELLING_FLAGS else _shown(piece)
            if takes_secret(before) and not piece.startswith("-") and not allows(before, piece):
                seen = MASK
            if end is not None and length + len(piece) > end:
                seen = seen[: end - length] if seen == piece else seen.removesuffix(MASK)
                return "".join((*shown, seen, MASK))
            shown.append(seen)
            if seen != piece:
                return "".join(shown)
            before = piece.strip("\"'")
        else:
            shown.append(piece)
        length += len(piece)
    return "".join(shown)


def _first_named(text: str) -> int | None:
    """Where the first value begins that is a secret by the name before it."""
    found = []
    for match in _NAMED.finditer(text):
        name = match[1][-128:]
        if secretive(name):
            value = re.match(r"[\"']?([^\s\"',;&}]*)", text[match.end() : match.end() + 256])
            if not (value and allows(name, value[1])):
                found.append(match.end())
                break
    for match in _SCHEME.finditer(text):
        if not _AFTER_SCHEME.match(text, match.end()):
            found.append(match.end())
            break
    for match in _SPOKEN_OF.finditer(text):
        word = re.match(r"\S+", text[match.end() : match.end() + 256])
        if word and not _PROSE.fullmatch(word[0]):
            found.append(match.end())
            break
    return min(found, default=None)
