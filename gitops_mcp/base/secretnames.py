"""Whether a value is a secret by its name, and what it may be all the same.

Receives the name of a variable, a flag or a key. Names that speak of a secret hide the value,
unless their last word says that it is only about one (``TOKEN_LIMIT``, ``PASSWORD_FILE``) and the
value is of that kind. Pure and quick: ``validate`` asks it for every value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

MASK = "***"


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_SECRET_WORDS = words(
    "apikey appkey apitoken auth authorization basicauth bearer connstr cookie cookies cred creds "
    "credential credentials dsn encryption fernet hmac htpasswd key keys login mnemonic netrc "
    "nonce npmrc otp pass passcode passphrase passwd password passwords pat pepper phrase pin "
    "privatekey pw pwd pypirc salt sas secret secrets seed sessid sessionid sid sig signature "
    "totp token tokens usercreds userpass webhook webhooks"
)
_SECRET_PARTS = re.compile(
    r"passw|passphrase|secret|credential|apikey|webhook|authtoken|connectionstr|connectionuri"
    r"|(?:key|keys|pass|pwd|pw|pat|tokens?|auth|creds?|login|dsn|hmac|salt|cookie|passcode)\Z"
)
"""In one part of a name: HMACKEY, DBPASS, GITHUBPAT."""
_INNOCENT_PARTS = re.compile(
    r"(?:by|com|tres|over|under|sur|encom)pass|(?:mon|don|tur|hot|joc|hoc|whis|primary|public|pub)key"
    r"|secretar\w*|compat|tokeniz\w*"
)
_INNOCENT_PAIRS = frozenset(
    {("public", "key"), ("pub", "key"), ("primary", "key"), ("sort", "key"), ("partition", "key")}
    | {("foreign", "key"), ("topology", "key"), ("publishable", "key"), ("cache", "key")}
)
_SECRET_PAIRS = frozenset(
    {("connection", "string"), ("connection", "str"), ("connection", "uri"), ("conn", "str")}
    | {("conn", "string"), ("conn", "uri"), ("connection", "url"), ("conn", "url")}
    | {("seed", "phrase"), ("recovery", "code"), ("access", "code")}
)

NUMBER = re.compile(r"[+-]?\d{1,19}(?:[.,_]\d{1,12})*(?:[eE][+-]?\d{1,3})?%?")
QUANTITY = re.compile(
    r"(?:\d{1,12}(?:\.\d{1,6})?"
    r"(?:n|u|m|k|ns|us|µs|ms|s|h|d|w|y|[KMGTPE]i?B?|[kmgt]b?|min|mins|sec|secs|hours?|days?|rpm|rps|px|x))"
    r"{1,4}"
)
_MOUNTED = re.compile(
    r"/(?:app|config|data|etc|home|mnt|opt|root|run|secrets?|srv|tls|tmp|usr|var|vault|workspace)"
    r"(?:/\.{0,2}[A-Za-z][\w.-]{0,63}){1,8}"
)
"""A file, by whatever name it is known."""
_SETTING = re.compile(r"true|false|yes|no|on|off|none|null|nil|enabled|disabled", re.I)
REFERENCE = re.compile(r"\$\([\w.-]+\)|\$\{[\w.-]+\}|\$[A-Z][A-Z_]{1,40}|\{\{\s*[\w.]+\s*\}\}")
_PATH = re.compile(
    r"(?:[~.]{0,2}/|[A-Za-z]:\\).*|[\w-]+\.(?:pem|crt|key|cer|json|ya?ml|txt|p12|pub)"
)
_LINK = re.compile(r"[a-z][a-z0-9+.-]*://\S+|[\w-]+(?:\.[\w-]+)*(?::\d{1,5})?")
_PLAIN_WORD = re.compile(r"[A-Za-z][A-Za-z0-9]{0,15}(?:[-_. ,/][A-Za-z0-9]{1,16}){0,4}")


def never(text: str) -> bool:
    """Nothing but a switch or a reference is no secret by such a name."""
    return bool(_SETTING.fullmatch(text) or REFERENCE.fullmatch(text) or _MOUNTED.fullmatch(text))


def _one_of(*patterns: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: never(text) or any(pattern.fullmatch(text) for pattern in patterns)


_AMOUNTS = _one_of(NUMBER, QUANTITY)
_FILES = _one_of(_PATH)
_LINKS = _one_of(_LINK)
_NAMES = _one_of(_PLAIN_WORD)
_ABOUT: dict[str, Callable[[str], bool]] = {
    word: check
    for words, check in (
        ("file files path paths dir directory mount", _FILES),
        ("url uri endpoint issuer audience host server authority domain origin", _LINKS),
        (
            "ttl timeout limit limits count size length lifetime expiry expires expiration seconds"
            " minutes hours days max min ratio rotation interval age budget port cost window minute"
            " hour day second rounds iterations bytes",
            _AMOUNTS,
        ),
        ("enabled disabled required enable optional verify validation rotate debug", _AMOUNTS),
        (
            "type mode method scheme provider algorithm alg name header prefix backend store"
            " strategy format kind class field param realm scope scopes role roles version style"
            " engine ref region manager driver",
            _NAMES,
        ),
    )
    for word in words.split()
}
"""The last word of a name that is about a secret and holds none: TOKEN_LIMIT, AUTH_TYPE."""
_AMOUNTS_OF = words("max min num total avg input output context completion prompt")


@lru_cache(maxsize=8192)
def parts(name: str) -> tuple[str, ...]:
    return tuple(part.lower() for part in _PARTS.findall(name[:256]))


@lru_cache(maxsize=8192)
def secretive(name: str) -> bool:
    """Whether a variable, a flag or a key of this name speaks of a secret."""
    each = parts(name)
    if not _SECRET_PAIRS.isdisjoint(pairwise(each)):
        return True
    kept = list(each)
    for first, second in pairwise(each):
        if (first, second) in _INNOCENT_PAIRS:
            kept.remove(second)
    return any(_speaks_of_secret(part) for part in kept)


def _speaks_of_secret(part: str) -> bool:
    if part in _SECRET_WORDS:
        return True
    return bool(_SECRET_PARTS.search(part)) and not _INNOCENT_PARTS.fullmatch(part)


@lru_cache(maxsize=8192)
def rule(name: str) -> Callable[[str], bool] | None:
    """What a value must be to be shown by this name, over being harmless; None: nothing more."""
    if not secretive(name):
        return None
    each = parts(name)
    if _AMOUNTS_OF & {*each} and each[-1] == "tokens":
        return _AMOUNTS
    webhook = any("webhook" in part for part in each)
    return never if webhook and each[-1] in ("url", "uri") else _ABOUT.get(each[-1], never)


def allows(name: str, text: str) -> bool:
    """Whether the name alone lets the value be shown."""
    check = rule(name)
    return check is None or check(text)


_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")


def is_flag(text: object) -> bool:
    """Whether an argument is a flag without a value of its own."""
    return isinstance(text, str) and _FLAG.fullmatch(text) is not None


def takes_secret(flag: str) -> bool:
    """Whether the argument after this one is a secret."""
    return is_flag(flag) and secretive(flag) and parts(flag)[0] not in _SWITCHES


_SWITCHES = words("no disable enable skip allow require")
"""``--no-auth`` takes nothing."""
