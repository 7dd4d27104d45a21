"""Hides what may be a secret, before a value reaches a screen, a file, a note or an event.

Receives decoded JSON values and text; returns copies in which everything that may be a secret is
replaced by a marker. Three kinds of places are told apart (``Sight``): the fields of an API are
shown, but for names and shapes that speak of a secret; values that people choose freely (variables,
arguments, annotations, headers) are shown only as far as they are known to be ``harmless``; what is
a secret by its name is never shown. Free text (``scrub``) loses the shapes of secrets, and what it
quotes is judged like a value. References to Secrets are names and stay readable.
It never raises and never changes its argument. When in doubt it hides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from enum import IntEnum
from functools import cache, lru_cache
from typing import Any, NamedTuple

from gitops_mcp.base.names import GROUP, JsonObject
from gitops_mcp.base.secretnames import MASK, allows, is_flag, secretive, takes_secret

__all__ = ["MASK", "OPEN", "Sight", "mask", "mask_pair", "masked", "scrub", "secretive", "token"]

# --- places -----------------------------------------------------------------------------------


class _Level(IntEnum):
    """How much of a place is shown. The higher is the stricter."""

    SHOWN = 0  # a field of an API: all but the shapes of secrets
    FREE = 1  # people write here what they like: what is known to be harmless
    HIDDEN = 2  # nothing


class Sight(NamedTuple):
    """How much is shown of a place; ``name``: what the value there is called."""

    level: _Level = _Level.SHOWN
    name: str = ""

    def below(self, parent: Mapping[str, Any], key: str) -> Sight:
        """That of ``parent[key]``, where this is ``parent``'s.

        The ``value`` of an item with a ``name`` (a variable, a header) is judged by that name.
        """
        if self.level is _Level.HIDDEN:
            return self
        if self.level is _Level.FREE:
            return self._free(parent, key)
        if key in _REFERENCES:
            return self
        if key in _FREE:
            return Sight(_Level.FREE)
        if key == "value" and isinstance(name := parent.get("name"), str):
            return Sight(_Level.FREE, name)
        return _HIDDEN if _hides(key) else self

    def _free(self, parent: Mapping[str, Any], key: str) -> Sight:
        if key.startswith(_OURS):
            return OPEN
        name = parent.get("name")
        if isinstance(name, str) and not self.name:  # an item of env
            if key == "value":
                return Sight(_Level.FREE, name)
            if key == "name" or (key == "valueFrom" and isinstance(parent.get(key), dict)):
                return OPEN
        return Sight(_Level.FREE, key)

    def items(self, items: list[Any]) -> list[Sight]:
        """Those of a list's items. What follows the flag of a secret is one."""
        if self.level is _Level.HIDDEN:
            return [self] * len(items)
        before = ["", *items][: len(items)]
        if self.level is _Level.FREE and not self.name:
            return [Sight(_Level.FREE, f if is_flag(f) else "") for f in before]
        return [_HIDDEN if is_flag(f) and takes_secret(f) else self for f in before]


OPEN = Sight()
_HIDDEN = Sight(_Level.HIDDEN)

_REFERENCES = frozenset(
    {
        "imagePullSecrets",
        "secret",
        "secretKeyRef",
        "secretName",
        "secretRef",
        "serviceAccountToken",
    }
)
"""Keys of the pod API that speak of Secrets without holding any: their values are names."""
_FREE = frozenset(
    {
        "annotations",
        "args",
        "command",
        "config",
        "env",
        "headers",
        "httpHeaders",
        "podAnnotations",
        "url",
        "volumeAttributes",
        "last-applied-configuration",
    }
)
"""Keys below which people write what they like."""
_OURS = f"{GROUP}/"

_WORDS = (
    r"(?:passw(?:or)?d|passphrase|pwd|secret|token|credential|bearer|authorization|cookie|dsn|jwt"
    r"|webhook|conn(?:ection)?[_.-]?(?:str|string|uri|url)"
    r"|(?:api|access|account|auth|encryption|master|private|session|shared|signing)[_.-]?key)"
)
# "pass", "auth" and "key" are parts of innocent words (bypass, author, topologyKey): whole words
# only, and "key" alone is a field of the pod API.
_SECRETIVE = re.compile(
    rf"{_WORDS}|(?:^|[_.-])(?:pass|auth|pat|creds)(?:$|[_.-])|[_.-]keys?$", re.IGNORECASE
)


@lru_cache(maxsize=8192)
def _hides(key: str) -> bool:
    return _SECRETIVE.search(key) is not None


# --- shapes -----------------------------------------------------------------------------------

_NAME = rf"[\w.-]{{0,64}}{_WORDS}[\w.-]{{0,64}}"  # bounded: the text is untrusted
_QUOTED = r"'[^']*'|\"[^\"]*\""
_TOKENS = (
    r"(?<![A-Za-z0-9])(?:gh[pousr]_\w{8,}|github_pat_\w{8,}"
    r"|gl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas)-[\w.-]{16,}"
    r"|xox[a-z]-[\w-]{8,}|xapp-[\w-]{8,}|xwfp-[\w-]{8,}|sk[-_][\w-]{16,}|[rps]k_(?:live|test)_\w{8,}"
    r"|whsec_\w{8,}|A[KS]IA[0-9A-Z]{12,}|eyJ[\w-]{8,}\.[\w-]{8,}\.?[\w-]*|hf_\w{16,}|npm_\w{16,}"
    r"|pypi-[\w-]{16,}|AIza[\w-]{20,}|ya29\.[\w-]{16,}|GOCSPX-[\w-]{16,}|SG\.[\w-]{10,}\.[\w-]{8,}"
    r"|AT(?:ATT|CTT|BB)[\w=-]{12,}|lin_(?:api|oauth)_\w{12,}|secret_\w{20,}|ntn_\w{16,}"
    r"|hv[sbr]\.[\w-]{16,}|do[opr]_v1_\w{16,}|dckr_(?:pat|oat)_[\w-]{16,}|nvapi-[\w-]{16,}"
    r"|glsa_\w{16,}|glc_[\w=+/-]{16,}|sntry[su]_[\w=+/-]{16,}|figd_[\w-]{16,}"
    r"|pat[A-Za-z0-9]{14}\.\w{16,}|sbp_\w{16,}|r8_\w{16,}|gsk_\w{16,}|pplx-\w{16,}|xai-\w{16,}"
    r"|tvly-[\w-]{12,}|fc-[0-9a-f]{16,}|pcsk_\w{16,}|ph[cx]_\w{16,}|sq0[a-z]{3}-[\w-]{16,}"
    r"|shp(?:at|ca|pa|ss)_\w{16,}|PMAK-[\w-]{16,}|AGE-SECRET-KEY-1\w{16,}|dapi[0-9a-f]{16,}"
    r"|tskey-[\w-]{12,}|rnd_\w{16,}|key-[0-9a-f]{16,}|NRAK-\w{12,}|\d{8,10}:AA[\w-]{24,})"
)
"""Tokens whose issuer gave them a prefix."""
_PEM = (
    r"(?s:-----BEGIN [A-Z0-9 ]{0,64}PRIVATE KEY[A-Z ]{0,64}-----"
    r".*?(?:-----END [A-Z0-9 ]{0,64}-----|\Z))"
)
_SCHEMES = r"Bearer|Basic|Token|ApiKey"

_Replacement = str | Callable[[re.Match[str]], str]
_SHAPES: tuple[tuple[str, _Replacement], ...] = (
    (_PEM, MASK),
    # scheme://user:password@host; the last @ before the path ends the credentials.
    (r"(?<=://)[^/\s?#]*@", f"{MASK}@"),
    (
        r"(?i)(?<=://)((?:hooks\.slack(?:-gov)?\.com|discord(?:app)?\.com/api/webhooks"
        r"|[\w.-]{1,80}webhook\.office\.com|api\.telegram\.org|hooks\.zapier\.com)/)[^\s\"'<>]+",
        rf"\1{MASK}",
    ),
    # user:password@tcp(host)
    (r"(?<![\w/:.])([\w.-]{1,64}):[^\s:@/]{1,128}@(?!sha256:)(?=[\w(\[])", rf"\1:{MASK}@"),
    (rf"(?i)\b({_SCHEMES})\s+(?=\S*[\d=])[\w.~+/=-]{{6,}}", rf"\1 {MASK}"),
    (
        r"(?i)([?&;](?:sig|signature|x-amz-[a-z-]{1,40}|x-goog-[a-z-]{1,40}|key|code|pw|pass|auth)=)"
        r"[^\s&\"']+",
        rf"\1{MASK}",
    ),
    (_TOKENS, MASK),
    # Authorization: Basic …, whatever the credentials look like
    (
        rf"(?i)(authorization['\"]?\s{{0,8}}[:=]\s{{0,8}}['\"]?(?:{_SCHEMES})\s+)[^\s'\",]+",
        rf"\1{MASK}",
    ),
    # spec.config.DB_PASSWORD: Invalid value: "…", as the API server says it
    (rf"(?i)(?<![\w.-])({_NAME}\]?: Invalid value: )(?:{_QUOTED}|\S+)", rf"\1{MASK}"),
    # "--password", "…"
    (rf"(?i)(['\"]--{_NAME}['\"]\s{{0,8}},\s{{0,8}})(?:{_QUOTED})", rf"\1{MASK}"),
    # token=…, --api-key=…, "password": "…"
    (
        rf"(?i)(?<![\w.-])(-{{0,2}}{_NAME}(?:\s*=\s*|['\"]\s*[:=]\s*))"
        rf"(?:{_QUOTED}|[^\s&;,'\"}}]+)",
        rf"\1{MASK}",
    ),
    # password: …, where it is no word of a sentence
    (
        rf"(?i)(?<![\w.-])({_NAME}:\s+)(?![a-z]{{1,20}}(?:[\s.,;:)]|\Z))"
        rf"(?:{_QUOTED}|[^\s&;,'\"}}]+)",
        rf"\1{MASK}",
    ),
    (rf"(?i)(?<![\w-])(--{_NAME}\s+)(?!-)[^\s\]]+", rf"\1{MASK}"),
    (
        r"(?i)\b((?:password|passwd|passphrase|secret|token|api[ _-]?key)\s+is\s+)"
        r"(?![a-z]{1,20}(?:[\s.,;:)]|\Z))\S+",
        rf"\1{MASK}",
    ),
)
"""What gives a secret away in any text, by itself or by what stands before it."""
_SUSPECT = re.compile(r"[@=\s'\"]|://|[\w-]{12}")
"""Without any of these no shape matches: most values are let through by one look."""
_LONG = re.compile(r"(?<![\w/.+-])[A-Za-z0-9_+=.-]{20,512}(?![\w/])")
_RUNS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[_+=.-]+")
_IN_QUOTES = re.compile(r"(?<!\w)(?<!field )(?:\"([^\"\n]{2,512})\"|'([^'\s]{8,512})')(?!\w)")
_SETTING = re.compile(r"(?<![\w.-])([\w.-]{1,128})=([^\s;,'\"&}]+)")
_NAME_OF_POD = re.compile(r"([a-z][a-z0-9.-]{0,200}?)(?:-[bcdfghjklmnpqrstvwxz2456789]{5,10}){1,2}")
"""With the suffixes that Kubernetes makes up."""


def scrub(text: str) -> str:
    """``text`` without the secrets that its shape gives away, e.g. ``https://***@host/path``."""
    if not _SUSPECT.search(text):
        return text
    return _scrubbed_before(text) if len(text) <= _OFTEN else _scrubbed(text)


_OFTEN = 128
"""Characters of a text that may come again: the name of an image, a message."""


def _scrubbed(text: str) -> str:
    for pattern, replacement in _shapes():
        text = pattern.sub(replacement, text)
    text = _LONG.sub(_hide_random, text)
    if "=" in text:
        text = _SETTING.sub(_judge_setting, text)
    if "'" in text or '"' in text:
        text = _IN_QUOTES.sub(_judge_quoted, text)
    return text


_scrubbed_before = lru_cache(maxsize=8192)(_scrubbed)


# Many a run shows nothing: what takes long to compile waits for the first that does.


@cache
def _shapes() -> tuple[tuple[re.Pattern[str], _Replacement], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in _SHAPES)


@cache
def _tokens() -> re.Pattern[str]:
    return re.compile(f"{_PEM}|{_TOKENS}")


def _hide_random(found: re.Match[str]) -> str:
    text = found[0]
    if text.islower() or text.isupper():  # names, uids and hashes, of which messages are full
        return text
    return MASK if _random(text) or _detected(text) else text


def _random(text: str) -> bool:
    """Whether letters of both cases and digits follow each other without any order."""
    kinds = (any(map(kind, text)) for kind in (str.isupper, str.islower, str.isdigit))
    return all(kinds) and len(text) < 2.6 * len(_RUNS.findall(text))


def _judge_setting(found: re.Match[str]) -> str:
    """``name=value``: the value as by this name."""
    from gitops_mcp.base.harmless import reveal

    name, value = found[1], found[2]
    if MASK in value:
        return found[0]
    return f"{name}={reveal(value, name)}"


def _judge_quoted(found: re.Match[str]) -> str:
    """A quoted value; names of objects are what messages quote all the time. The name of a field
    is none, and stays: only what is the shape of a secret anywhere is hidden in it."""
    from gitops_mcp.base.harmless import reveal

    value = found[1] or found[2]
    pod = _NAME_OF_POD.fullmatch(value)
    shown = reveal(pod[1] if pod else value)
    if shown == (pod[1] if pod else value) or MASK in value:
        return found[0]
    return f"{found[0][0]}{shown}{found[0][0]}"


@lru_cache(maxsize=4096)
def token(text: str) -> bool:
    """Whether a text holds a token of a known issuer, or a private key."""
    return _tokens().search(text) is not None or _detected(text)


_DETECTORS = (
    "discord",
    "github_token",
    "gitlab_token",
    "jwt",
    "mailchimp",
    "npm",
    "openai",
    "pypi_token",
    "sendgrid",
    "slack",
    "square_oauth",
    "stripe",
    "telegram_token",
    "twilio",
)
_LONG_ENOUGH = re.compile(r"[\w.:-]{24,512}")


@cache
def _detectors() -> tuple[re.Pattern[str], ...]:
    """The patterns of detect-secrets. Slow to import: only an odd value needs them."""
    from importlib import import_module

    from detect_secrets.plugins.base import RegexBasedDetector

    modules = [import_module(f"detect_secrets.plugins.{name}") for name in _DETECTORS]
    kinds = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, RegexBasedDetector)
    }
    lists = [getattr(kind, "denylist", ()) for kind in kinds]
    return tuple(pattern for found in lists if isinstance(found, list | tuple) for pattern in found)


def _detected(text: str) -> bool:
    from gitops_mcp.base.harmless import reveal

    parts = (part for part in _LONG_ENOUGH.findall(text) if any(map(str.isdigit, part)))
    if all(reveal(part) == part for part in parts):
        return False
    return any(pattern.search(text[:_LONGEST]) for pattern in _detectors())


# --- values -----------------------------------------------------------------------------------


def mask(value: Any, sight: Sight = OPEN) -> Any:
    """``value`` with its secrets hidden."""
    if isinstance(value, dict):
        return {k: mask(v, sight.below(value, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [mask(v, s) for v, s in zip(value, sight.items(value), strict=True)]
    if value is None or isinstance(value, bool) or value == "":
        return value
    if sight.level is _Level.HIDDEN:
        return MASK
    if isinstance(value, str):
        return _free(value, sight.name) if sight.level is _Level.FREE else scrub(value)
    if sight.level is _Level.FREE and not allows(sight.name, str(value)):
        return MASK
    return value


@lru_cache(maxsize=8192)
def _free(text: str, name: str) -> str:
    """A text that somebody wrote as he liked, by the name of its variable or of the flag before."""
    if text[0] in "{[" and (inner := _decoded(text)) is not None and allows(name, text):
        try:
            shown = mask(inner, Sight(_Level.FREE, name if isinstance(inner, list) else ""))
        except RecursionError:  # it holds more brackets than anybody reads
            return MASK
        return text if shown == inner else json.dumps(shown, ensure_ascii=False)
    from gitops_mcp.base import harmless  # slow to import, and many a run shows nothing

    shown = harmless.reveal_argument(text, name) if is_flag(name) else harmless.reveal(text, name)
    if len(shown) < _SHORTEST_TOKEN or not any(map(str.isdigit, shown)):
        return shown
    return _LONG.sub(_hide_random, _tokens().sub(MASK, shown))


_SHORTEST_TOKEN = 12
_LONGEST = 16_384
"""Characters of JSON in a value that are looked into."""


def _decoded(text: str) -> Any:
    try:
        return json.loads(text) if len(text) <= _LONGEST else None
    except (ValueError, RecursionError):
        return None


def masked(body: JsonObject) -> JsonObject:
    """A whole object with its secrets hidden."""
    result: JsonObject = mask(body)
    return result


def stricter(one: Sight, two: Sight) -> Sight:
    """Of two sights of one place the one that shows less."""
    if one.level == two.level and one.name != two.name:
        return one if secretive(one.name) else two
    return max(one, two)


def mask_pair(before: Any, after: Any, sight: Sight = OPEN) -> tuple[Any, Any]:
    """Two states of one value, masked. Where only hidden parts differ, the second says so."""
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = {
            key: mask_pair(
                value, after[key], stricter(sight.below(before, key), sight.below(after, key))
            )
            for key, value in before.items()
            if key in after
        }
        one, two = (
            {
                key: pairs[key][side] if key in pairs else mask(value, sight.below(body, key))
                for key, value in body.items()
            }
            for side, body in enumerate((before, after))
        )
        return one, two
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        sights = map(stricter, sight.items(before), sight.items(after))
        items = [mask_pair(*pair) for pair in zip(before, after, sights, strict=True)]
        return [pair[0] for pair in items], [pair[1] for pair in items]
    left, right = mask(before, sight), mask(after, sight)
    return left, f"{right} (changed)" if before != after and left == right else right
