"""Makes text from outside safe for logs and messages: without keys, email addresses and escape sequences."""

from __future__ import annotations

import base64
import html
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

LONGEST = 2000
"""Only this many characters of a text are read; no message shows more."""

NOT_IN_A_NAME = r"\s@\"'<>()\[\],;:/="
EMAIL = re.compile(
    rf"(?<![^{NOT_IN_A_NAME}])([^{NOT_IN_A_NAME}])[^{NOT_IN_A_NAME}]*@([^\s@.])[^\s@.]*(?:\.[\w-]+)*\.([\w-]+)",
)
ANY_AT = re.compile(r"(?<![^\s*])[^\s*]+?(?:@|%40)[^\s*]+", re.IGNORECASE)
"""Both look behind, so that they match from the start of a word, and not again from each of its letters."""

AROUND = "\"'`<>()[]{},;:.!?"

ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]+")
"""Control characters, line ends, characters that reorder or hide text, and unpaired surrogates."""

WITHIN_A_WORD = re.compile(rf"(?![\t-\r\x85\u2028\u2029]){INVISIBLE.pattern[:-1]}")
"""Those of the invisible characters that do not separate words."""

CODE = re.compile(r"\\(?:u\{?0{0,4}|x)([0-9a-f]{2})\}?", re.IGNORECASE)
ESCAPED_LETTER = re.compile(r"\\[abefnrtv0]")
ENCODED = re.compile(r"[0-9A-Za-z+/_-]{8,}")
HEX = re.compile(r"(?:[0-9A-Fa-f]{2}){6,}")

TIMES_ENCODED = 3

WORD = re.compile(r"\w+")

QUOTES_A_KEY = "words that quote a key"
KEY_CHARACTERS = 8
"""This many consecutive characters of a key count as a part of it."""

ID_CHARACTERS = 6
"""At most this many characters of an id are shown."""


def mask(text: str) -> str:
    """Masks email addresses anywhere in the text: `jane@mail.example.com` -> `j***@m***.com`.

    Any other `@` hides the text around it, even one that appears only when the word is decoded. The text is made `printable`.
    """
    seen = printable(WITHIN_A_WORD.sub("", ESCAPE.sub("", _cut(text)))).split(" ")
    hidden = _beside_a_lone_at(seen) | {number for number, word in enumerate(seen) if _only_decoded_has_an_at(word)}
    words = ["***@***" if number in hidden else word for number, word in enumerate(seen)]
    return ANY_AT.sub("***@***", EMAIL.sub(r"\1***@\2***.\3", " ".join(words)))


def mask_key(key: str) -> str:
    """Returns a customer's key with its email or id masked."""
    kind, _, value = key.partition(":")
    return f"{kind} {mask_id(value)}"


def mask_id(distinct_id: str) -> str:
    """Returns a masked email; or the first and last characters of another id, at most half of it: `user-000017` -> `us***017`.

    Those who know the person recognise them by it.
    """
    if "@" in distinct_id:
        return mask(distinct_id)
    shown = min(ID_CHARACTERS, len(distinct_id) // 2)
    last = (shown + 1) // 2
    return printable(f"{distinct_id[: shown - last]}***{distinct_id[len(distinct_id) - last :]}")


def printable(text: str) -> str:
    """Returns the text on one line, without control characters and escape sequences; a very long one is cut at a word."""
    return INVISIBLE.sub(" ", ESCAPE.sub(" ", _cut(text)))


def without_keys(text: str, *keys: str) -> str:
    """Returns the text, or only `QUOTES_A_KEY` if it contains a part of a key, however it is written, encoded or divided."""
    parts = {part for key in keys for form in _forms(key) for part in _parts(_squeezed(form))}
    read = [_squeezed(reading) for reading in _readings(WITHIN_A_WORD.sub("", ESCAPE.sub("", text)))]
    return QUOTES_A_KEY if any(part in reading for reading in read for part in parts) else text


def without_values(text: str, content: Any) -> str:
    """Masks the text, and replaces by `***` each word that is a word of the content's values, or the start of one, in any case.

    content: parsed JSON. The names of its members are not replaced.
    """
    names, values = set[str](), set[str]()
    _gather(content, names, values)
    words = sorted(values - names)

    def hidden(word: re.Match[str]) -> str:
        at = bisect_left(words, found := word[0].casefold())
        return "***" if found not in names and at < len(words) and words[at].startswith(found) else word[0]

    return WORD.sub(hidden, mask(text))


def _gather(content: Any, names: set[str], values: set[str]) -> None:
    """Adds the words of the content to `names` and `values`."""
    if isinstance(content, dict):
        for name, value in content.items():
            names |= _words(name)
            _gather(value, names, values)
    elif isinstance(content, list):
        for value in content:
            _gather(value, names, values)
    else:
        values |= _words(str(content)) | _words(WITHIN_A_WORD.sub("", ESCAPE.sub("", str(content))))


def _words(text: str) -> set[str]:
    return {word.casefold() for word in WORD.findall(text)}


def _cut(text: str) -> str:
    return re.sub(r"\S+\Z", "", text[:LONGEST]) + "…" if len(text) > LONGEST else text


def _only_decoded_has_an_at(word: str) -> bool:
    return "@" not in word and any("@" in reading for reading in _readings(word))


def _beside_a_lone_at(words: list[str]) -> set[int]:
    """Returns the indices of words with an `@` at their edge, and of those next to them, as an address may be broken over two
    lines."""
    hidden = set[int]()
    for number, word in enumerate(words):
        bare = word.strip(AROUND)
        hidden |= {number - 1, number} if bare.startswith("@") else set()
        hidden |= {number, number + 1} if bare.endswith("@") else set()
    return hidden


def _readings(text: str) -> Iterator[str]:
    """Yields the text as it is, and decoded in the usual ways."""
    yield text
    plain = text
    for _ in range(TIMES_ENCODED):
        plain = unquote(html.unescape(CODE.sub(lambda code: chr(int(code[1], 16)), plain)))
    plain = ESCAPED_LETTER.sub(" ", ESCAPE.sub("", plain))
    yield unicodedata.normalize("NFKC", plain)
    for encoded in ENCODED.findall(plain):
        whole = encoded[: len(encoded) - (len(encoded) % 4 == 1)].translate(str.maketrans("-_", "+/"))
        yield from _text(base64.b64decode(whole + "=" * (-len(whole) % 4)))
    for digits in HEX.findall(plain):
        yield from _text(bytes.fromhex(digits))


def _text(content: bytes) -> Iterator[str]:
    """Yields the bytes as text, if they are text."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return
    if text.isprintable():
        yield text


def _forms(key: str) -> Iterator[str]:
    """Yields the key as it is, in hexadecimal, and in base64, which depends on how many bytes precede it."""
    yield key
    if len(key) < KEY_CHARACTERS:
        return
    yield key.encode().hex()
    for before in range(3):
        encoded = base64.b64encode(b" " * before + key.encode()).decode().rstrip("=")
        yield encoded[before + (before > 0) : -1]


def _parts(form: str) -> Iterator[str]:
    last = len(form) - KEY_CHARACTERS
    yield from (form[at : at + KEY_CHARACTERS] for at in range(last + 1)) if last >= 0 else filter(None, [form])


def _squeezed(text: str) -> str:
    return re.sub(r"[\W_]", "", text.casefold())
