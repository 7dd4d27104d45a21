"""The corpora of values that masking is judged by."""

from __future__ import annotations

import json
import random
import re
import string
from typing import NamedTuple

from paths import DATA

from gitops_mcp.base.names import JsonObject

ALPHABETS = {
    "alnum": string.ascii_letters + string.digits,
    "base32": "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
    "base64": string.ascii_letters + string.digits + "+/",
    "digit": string.digits,
    "hex": "0123456789abcdef",
    "lower": string.ascii_lowercase,
    "pass": string.ascii_letters + string.digits + "!$%^*+",
    "token": string.ascii_letters + string.digits + "-_",
    "upper": string.ascii_uppercase + string.digits,
}
MADE = re.compile(r"\{(?:=(?P<text>[^}]+)|(?P<kind>[a-z0-9]+)(?::(?P<length>\d+))?)\}")


class Value(NamedTuple):
    """A value of a corpus. ``secrets``: the parts of it that nobody may see;
    ``made``: those of them that are random."""

    place: str
    name: str
    text: str
    secrets: tuple[str, ...] = ()
    made: tuple[str, ...] = ()

    @property
    def spec(self) -> JsonObject:
        if self.place == "env":
            return {"env": [{"name": self.name, "value": self.text}]}
        if self.place == "args":
            return {"args": self.arguments}
        return {self.place: {self.name: self.text}}

    @property
    def arguments(self) -> list[str]:
        given = json.loads(self.text) if self.text.startswith("[") else self.text.split(" ")
        assert isinstance(given, list)
        return given


def corpus(file: str, seed: int = 0) -> list[Value]:
    """The values of a file, its secrets made by this seed."""
    made = random.Random(seed)
    values = []
    for line in (DATA / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        place, name, text = line.split("\t")
        secrets: list[str] = []
        words: list[str] = []

        def expand(
            found: re.Match[str], secrets: list[str] = secrets, words: list[str] = words
        ) -> str:
            if found["text"]:
                secrets.append(found["text"])
                words.append(found["text"])
            elif found["kind"] == "uuid":
                sizes = (8, 4, 4, 4, 12)
                secrets.append("-".join(_some(made, "hex", size) for size in sizes))
            else:
                secrets.append(_some(made, found["kind"], int(found["length"])))
            return secrets[-1]

        text = MADE.sub(expand, text) if file.startswith("secret") else text
        if place != "args":
            text = text.replace("\\\\n", "\0").replace("\\n", "\n").replace("\0", "\\n")
        made_up = tuple(secret for secret in secrets if secret not in words)
        values.append(Value(place, name, text, tuple(secrets), made_up))
    return values


def _some(made: random.Random, kind: str, length: int) -> str:
    return "".join(made.choices(ALPHABETS[kind], k=length))


SECRETS = corpus("secret-values.tsv")
ORDINARY = corpus("ordinary-values.tsv")
