"""Which texts are words that people speak, and so nobody's secret."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

from gitops_mcp.base.secretnames import words

LONGEST_WORD = 2048
"""Characters without a space between them."""


_FOLLOWS = {
    letters[0]: frozenset(letters[1:])
    for letters in words(
        "aabcdefghiklmnprstuvwxyz babcdefijlmnoprstuy cabcdefghiklmnoprstuy dabcdefgijlmnoprstuvy "
        "eabcdefghiklmnopqrstuvwxyz fabcdefgilmnoprstuy gaceghilmnoprstu hadeilmnorstuy "
        "iabcdefgklmnopqrstuvxz jaeosu kaegilnorstuwy labcdefgiklmnoprstuvy mabcdeilmopstuy "
        "nabcdefghijklmnoprstuvy oabcdefgijklmnoprstuvwxy pacdefghiklmnoprstuwy qlsu "
        "rabcdefgiklmnoprstuvwy sabcdefghiklmnopqrstuvwy tabcdefghiklmnoprstuvwyz "
        "uabcdefgilmnoprst vaceios wadehilnors xacdefimopstx yacefilmnopstw zaeio"
    )
}
"""Which letters follow which in words of English and of programs."""


_ACRONYMS = re.compile(
    "https?|grpc|mysql|sqlite|sql|ssh|ssl|tls|mcp|xml|html|kube|ctl|json|ldap|smtp|rpc|s?ftp|jdbc"
    "|mqtt|amqp|dns|npm|nginx|tmp|cmd|src|pkg|jwt|yml|aws|gcp|gpt|llm|str|fmt|vscode|svc|github"
    "|gitlab|vpc|sdk|cdn|csv|pdf|crd|rbac|mtls|wss|ngx|pvc|hpa|oidc"
)


_UNSPOKEN = re.compile(r"[^aeiouy]{5}|[aeiou]{4}|(.)\1\1")


_HUMPS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


_SEGMENT = re.compile(
    r"(?P<letters>[A-Za-z]+)|(?P<digits>\d{1,20})|(?P<mixed>"
    r"[A-Za-z]{1,20}\d{1,4}|\d{1,6}[A-Za-z]{1,3}|[A-Za-z]{1,5}\d{1,3}[A-Za-z]{1,7}|\d{1,5}x\d{1,5}[A-Z]?|\d[a-z]\d)"
)


_SEPARATORS = re.compile(r"[-_.+~]+")


_LICENSE = re.compile(r"(?=[^0-9]*[0-9])[A-Z0-9]{4,8}(?:-[A-Z0-9]{4,8}){2,}")


CONTRACTED = re.compile("([^\\W\\d_]{1,24})['\u2019]([a-z]{1,2})?", re.I)


@lru_cache(maxsize=8192)
def _spoken(letters: str) -> bool:
    """Whether a run of letters is a word, an acronym, or some of them in camel case."""
    if len(letters) > 32:
        return False
    humps = _HUMPS.findall(letters)
    if len(letters) > 4 and len(letters) < 2.5 * len(humps):
        return False
    if len(letters) <= 4:
        return len(humps) <= 2
    if len(humps) > 1 and not _camel(humps):
        return False
    return all(_pronounced(hump.lower()) for hump in humps)


def _camel(humps: list[str]) -> bool:
    """Whether the parts of a run in camel case are words, and not letters thrown together."""
    if any(len(hump) == 1 for hump in humps[1:]):
        return False
    if len(humps) == 2:
        return True
    acronyms = sum(hump.isupper() for hump in humps)
    short = (hump.lower() for hump in humps if len(hump) <= 4 and not hump.isupper())
    return acronyms <= 2 and all(any(letter in "aeiouy" for letter in hump) for hump in short)


def _pronounced(word: str) -> bool:
    if len(word) <= 4:
        return True
    word = _ACRONYMS.sub("a", word)
    if len(word) <= 4:
        return True
    if _UNSPOKEN.search(word) or len(word) > 24:
        return False
    vowels = sum(letter in "aeiouy" for letter in word)
    if not 0.16 <= vowels / len(word) <= 0.75:
        return False
    rare = sum(after not in _FOLLOWS[before] for before, after in pairwise(word))
    return rare <= 1


@lru_cache(maxsize=16384)
def is_word(text: str) -> bool:
    """Whether a text without spaces is made of words and numbers: ``gpt-4o``, ``en_US.UTF-8``."""
    if not text.isascii():
        contracted = CONTRACTED.fullmatch(text)
        return len(text) <= 32 and (text.isalpha() or contracted is not None)
    if len(text) > 80 or _LICENSE.fullmatch(text):
        return False
    mixed = 0
    for segment in _SEPARATORS.split(text):
        found = _SEGMENT.fullmatch(segment) if segment else None
        if found is None:
            if segment:
                return False
            continue
        if found["digits"]:
            continue
        mixed += found["mixed"] is not None
        if not all(_spoken(run) for run in re.findall("[A-Za-z]+", segment)):
            return False
    return mixed <= 2
