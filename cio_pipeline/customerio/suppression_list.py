"""CIO_SUPPRESSED_FILE, read correctly or refused, since a list that is mistaken for an empty one would have everybody sent.

A list is text in UTF-8, or in UTF-16 with a byte order mark: one person per line, or a table with commas, semicolons or tabs,
quoted as in CSV, whose first column names people. Lines that begin with `#` are comments. Or it is a JSON array of texts.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import unquote

from upath import UPath

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.http.attempt import Limits
from cio_pipeline.http.retry import RetryPolicy, Unavailable, send
from cio_pipeline.http.session import new_session
from cio_pipeline.rules.distinct_ids import is_valid_distinct_id
from cio_pipeline.rules.values import is_email

SETTING = "CIO_SUPPRESSED_FILE"
MAX_BYTES = 200_000_000
MAX_SECONDS = 300
MAX_WORDS = 2
"""An id may contain a space; more words are a comment, or the message of a server instead of a list."""

TRIES, LONGEST_WAIT_SECONDS = 3, 10
PASSING = (408, 429, 500, 502, 503, 504)

EMPTY_ON_PURPOSE = re.compile(r"#\s*empty on purpose\b.*", re.IGNORECASE)
HEADING = re.compile(
    r"(?:hashed|sha256|user|customer|person)?e?-?mail(?:address|hash|sha256|s)?|(?:user|customer|person|external|distinct)?ids?"
    r"|identifiers?|users?|person|people|customers?|name|address|hash(?:ed)?|sha256|uuid|key"
)
HEADING_WITH_WORDS = re.compile(r".+(?:[\s_$-](?i:ids?|uuids?|guids?|e?mails?)|[a-z](?:Ids?|ID|UUID|Email))")
"""What a table's first line may call a column that names people: in lower case without spaces, `_` or `$`, or as it is."""

CELL = re.compile(r'(?: *"((?:[^"]|"")*)" *|([^\t;,"]*))([\t;,]|$)')
SHA256 = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", re.IGNORECASE)
PLAIN_SHA256 = re.compile(rf"(?:sha-?256 *[:=$ ] *|\\x|0x)?{SHA256.pattern}.*", re.IGNORECASE)
OTHER_HASH = re.compile(
    r"(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{56}|[0-9a-f]{96}|[0-9a-f]{128}|[a-z0-9+/]{22}==|[a-z0-9+/]{27}=|[a-z0-9+/]{43}="
    r"|(?:md[245]|sha-?\d+|hmac|blake\w+|crc32|ripemd\w*|whirlpool|bcrypt|argon\w+|hash)[-_\w]* *[:=$].*|\$\w+\$.*)",
    re.IGNORECASE,
)
PATTERN = re.compile(r"[*%]?@.*|\*|.*@\*.*")
WEB_ADDRESS = re.compile(r"https?://.*", re.IGNORECASE)
MARKUP = re.compile(r"<\s*(?:!doctype|html|head|body|title|script|div|form|\?xml|\w+ xmlns)(?=[\s/>=])", re.IGNORECASE)
NOBODY = re.compile(r"n/?a|nan|nil|null|none|\\n|\W*|errors?|(?:access|permission) denied|log ?in|sign ?in", re.IGNORECASE)
"""How exports write a missing value, and what servers answer instead of a list (besides `HTTPStatus`)."""

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
ADDRESS = re.compile(r"[^\s<>()\[\],;:|'\"=/\\]+@[^\s<>()\[\],;:|'\"=/\\?]+")
UNSEEN = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
AROUND = " \t'\"`<>(),;\u201c\u201d\u2018\u2019\u00ab\u00bb\u201e\u201a"


class Unusable(Exception):
    """The list cannot be used; the message says why, without quoting its content or its address."""


def read_suppressed(location: str | None) -> Suppressed:
    """Returns the list at a path or URL. Raises `NotDelivered` if it cannot be read, or names nobody without saying so."""
    if not location:
        return Suppressed()
    try:
        return parse(_content(location))
    except Unusable as unusable:
        why = f"{SETTING} {unusable}: nothing is sent."
    except Unavailable as unavailable:
        why = f"{unavailable} Nothing is sent."
    except Exception as error:  # whatever a file system raises: it may quote the URL, which may hold a password
        why = f"{SETTING} cannot be read ({type(error).__name__}): nothing is sent."
    raise NotDelivered(why)


def parse(content: bytes) -> Suppressed:
    """Returns the people on the list. Raises `Unusable`."""
    text = _text(content)
    rows = list(_json_rows(text) if text.lstrip()[:1] in ("[", "{") else _table(text))
    columns, has_heading = _columns([cells for _, cells in rows])
    named = [set(_names(cells, columns, number)) for number, cells in rows[has_heading:]]
    lines = [line.strip() for _, line in _lines(text)]
    if not named and not EMPTY_ON_PURPOSE.fullmatch(next(filter(None, lines), "")):
        raise Unusable("names nobody; if that is intended, its first line must be `# empty on purpose`")
    ids = {name for names in named for name in names}.union(lines if named else ()) - {""}
    emails = frozenset(name.lower() for name in ids if "@" in name)
    hashes = frozenset(hash.lower() for name in ids for hash in SHA256.findall(name))
    return Suppressed(frozenset(ids), emails, hashes, len(named))


def _content(location: str) -> bytes:
    if re.match(r"https?://", location, re.IGNORECASE):
        return _download(location)
    if "http://" in location.lower() or "https://" in location.lower():
        raise Unusable("must be a path, or a URL that begins with its own scheme, such as https://")
    with UPath(location).open("rb") as file:
        content = bytes(file.read(MAX_BYTES + 1))
    if len(content) > MAX_BYTES:
        raise Unusable(f"is over {MAX_BYTES:,} bytes")
    return content


def _download(url: str) -> bytes:
    """Returns the content of the URL. A redirect is refused, as it may lead to a login page."""
    answer = send(
        new_session(),
        "GET",
        url,
        service=SETTING,
        retry=RetryPolicy(TRIES, PASSING, pause=lambda seconds, _: time.sleep(min(seconds, LONGEST_WAIT_SECONDS))),
        limits=Limits(MAX_BYTES, MAX_SECONDS),
    )
    if answer.status_code != 200:
        redirected = "a redirect, which is not followed" if answer.is_redirect else f"status {answer.status_code}"
        raise Unusable(f"was answered by {redirected}")
    if "html" in answer.headers.get("Content-Type", "").lower():
        raise Unusable("is a web page, not a list")
    return answer.content


def _text(content: bytes) -> str:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise Unusable("is not text in UTF-8") from None
    if CONTROL.search(text):
        raise Unusable("is not text: it holds control characters, as archives and spreadsheets do")
    if MARKUP.search(text) or text.lstrip().startswith("<"):
        raise Unusable("is a web page or XML, not a list")
    return text


def _json_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise Unusable("looks like JSON, but is not an array of texts")
    yield from enumerate(([name] for name in found), 1)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return enumerate(re.split(r"\r\n|\r|\n", text), 1)


def _table(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the cells of the lines that are neither blank nor a comment, with their numbers. All have as many as the first."""
    wanted = None
    for number, line in _lines(text):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        cells = _cells(line, number)
        wanted = wanted or len(cells)
        if len(cells) != wanted:
            raise Unusable(
                f"has {len(cells)} columns in line {number}, but {wanted} in its first line (put quotes around a text with"
                " a comma, semicolon or tab)"
            )
        if any(cells):
            yield number, cells


def _cells(line: str, number: int) -> list[str]:
    cells, at = list[str](), 0
    while match := CELL.match(line, at):
        quoted, plain, end = match.groups()
        cells.append(plain.strip() if quoted is None else quoted.replace('""', '"'))
        at = match.end()
        if not end:
            return cells
    raise Unusable(f"has a quote in line {number} that is not closed or not at a column's edge")


def _columns(rows: list[list[str]]) -> tuple[set[int], bool]:
    """Returns the columns that name people, and whether the first line is a heading. In a single line all columns may name
    people."""
    if not rows:
        return set(), False
    headings = {column for column, cell in enumerate(rows[0]) if _is_heading(cell)}
    if headings and not any(map(is_email, rows[0])):
        return {0, *headings}, True
    return set(range(len(rows[0]))) if len(rows) == 1 else {0}, False


def _names(cells: list[str], columns: set[int], number: int) -> Iterator[str]:
    """Every reading of whom a line names, in these columns or by an email in another one. In doubt, one person more is not
    sent."""
    names_somebody = False
    for column, cell in enumerate(cells):
        readings = [reading for reading in _readings(cell) if reading]
        if column not in columns and not any(map(is_email, readings)):
            continue
        if any(OTHER_HASH.fullmatch(reading) and not PLAIN_SHA256.fullmatch(reading) for reading in readings):
            raise Unusable(
                f"has what looks like a hash other than SHA-256 in line {number} (if it is an id, name it by its SHA-256)"
            )
        if any(map(PATTERN.fullmatch, readings)):
            raise Unusable(f"has a pattern in line {number}: it must name each person")
        if any(map(WEB_ADDRESS.fullmatch, readings)):
            raise Unusable(f"has a web address in line {number}: it must name each person (an id, by its SHA-256)")
        names_somebody |= _names_somebody(cell, readings)
        yield from readings
    if not names_somebody:
        raise Unusable(f"names nobody in line {number}: it must be one person's id or email, with any remark behind a `#`")


def _readings(cell: str) -> Iterator[str]:
    """Yields the text as it is; without what surrounds it; its words; each address in it; and these percent-decoded."""
    plain = re.sub(r"^[-*•] +", "", UNSEEN.sub("", cell)).strip(AROUND)
    words = (word.strip(AROUND) for word in re.split(r"[\s|=]", plain.partition("#")[0]))
    for reading in (cell, plain, *words, *ADDRESS.findall(cell), *ADDRESS.findall(unquote(plain))):
        yield reading
        yield unquote(reading)


def _names_somebody(cell: str, readings: list[str]) -> bool:
    """Returns whether it has an email or a hash, or an id that R14 accepts and that is neither a missing value nor a
    sentence."""
    if any(is_email(reading) or SHA256.search(reading) for reading in readings):
        return True
    phrase = re.sub(r"^[45]\d\d\s+|[.!]$", "", cell.strip(AROUND)).lower()
    nothing = NOBODY.fullmatch(phrase) or phrase in {status.phrase.lower() for status in HTTPStatus}
    is_sentence = any(len(part.split()) > MAX_WORDS for part in re.split(r"[|=]", cell.partition("#")[0]))
    return not nothing and not is_sentence and any(map(is_valid_distinct_id, readings))


def _is_heading(cell: str) -> bool:
    plain = cell.strip(AROUND)
    return bool(HEADING.fullmatch(re.sub(r"[\s_$]", "", plain.lower())) or HEADING_WITH_WORDS.fullmatch(plain))
