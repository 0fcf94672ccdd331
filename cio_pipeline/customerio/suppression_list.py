"""CIO_SUPPRESSED_FILE, read properly or refused: what is taken for a list of nobody would have everybody sent.

A list is text in UTF-8, or in UTF-16 with its mark: one person a line, or a table with commas, semicolons or tabs whose first
column names them; quotes as in CSV; lines that begin with `#` are comments. Or it is a JSON array of texts.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from urllib.parse import unquote

import requests
from requests.auth import HTTPBasicAuth
from requests.utils import get_auth_from_url
from upath import UPath

from cio_pipeline.connector.values import is_email
from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.suppressed import Suppressed

SETTING = "CIO_SUPPRESSED_FILE"
MOST_BYTES = 200_000_000
CONNECT_AND_READ_SECONDS = (10, 60)
MOST_SECONDS = 300
PIECE_BYTES = 65_536

EMPTY_ON_PURPOSE = re.compile(r"#\s*empty on purpose\b.*", re.IGNORECASE)
HEADING = re.compile(
    r"(?:hashed|sha256|user|customer|person)?e?-?mail(?:address|hash|sha256|s)?|(?:user|customer|person|external|distinct)?ids?"
    r"|identifiers?|users?|person|people|customers?|name|address|hash|hash(?:ed)?|sha256|uuid|key"
)
"""What a table's first line may call a column that names people: in lower case, without spaces, `_` or `$`."""

CELL = re.compile(r'(?: *"((?:[^"]|"")*)" *|([^\t;,"]*))([\t;,]|$)')
SHA256 = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", re.IGNORECASE)
PLAIN_SHA256 = re.compile(rf"(?:sha-?256 *[:=$ ] *|\\x|0x)?{SHA256.pattern}.*", re.IGNORECASE)
OTHER_HASH = re.compile(
    r"(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{56}|[0-9a-f]{96}|[0-9a-f]{128}|[a-z0-9+/]{22}==|[a-z0-9+/]{27}=|[a-z0-9+/]{43}="
    r"|(?:md[245]|sha-?\d+|hmac|blake\w+|crc32|ripemd\w*|whirlpool|bcrypt|argon\w+|hash)[-_\w]* *[:=$].*|\$\w+\$.*)",
    re.IGNORECASE,
)
PATTERN = re.compile(r"[*%]?@.*|\*|.*@\*.*")
MARKUP = re.compile(r"<\s*(?:!doctype|html|head|body|title|script|div|form|\?xml|\w+ xmlns)", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
ADDRESS = re.compile(r"[^\s<>()\[\],;:|'\"=/\\]+@[^\s<>()\[\],;:|'\"=/\\?]+")
UNSEEN = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
AROUND = " \t'\"`<>(),;\u201c\u201d\u2018\u2019\u00ab\u00bb\u201e\u201a"


class Unusable(Exception):
    """The list cannot be taken; the message says why, without any of its content or its place."""


def read_suppressed(location: str | None) -> Suppressed:
    """The list at a path or URL. Raises `NotDelivered` where it cannot be read, or names nobody and does not say so."""
    if not location:
        return Suppressed()
    try:
        return parse(_content(location))
    except Unusable as unusable:
        why = str(unusable)
    except Exception as trouble:  # whatever a file system raises: it may quote the URL, which may hold a password
        why = f"cannot be read ({type(trouble).__name__})"
    raise NotDelivered(f"{SETTING} {why}: nothing is sent.")


def parse(content: bytes) -> Suppressed:
    """The list's people. Raises `Unusable`."""
    text = _text(content)
    rows = list(_json_rows(text) if text.lstrip()[:1] in ("[", "{") else _table(text))
    headings = [_is_heading(cell) for cell in rows[0][1]] if rows else []
    columns = {0, *(column for column, is_heading in enumerate(headings) if is_heading)}
    found = [(cells, set(_names(cells, columns, number))) for number, cells in rows]
    names = len(found) - (any(headings) and not any(map(is_email, found[0][1])))
    lines = [line.strip() for _, line in _lines(text)]
    if not names and not EMPTY_ON_PURPOSE.fullmatch(next(filter(None, lines), "")):
        raise Unusable("names nobody; if that is meant, its first line must be `# empty on purpose`")
    ids = {name for _, named in found for name in named}.union(lines if found else ()) - {""}
    emails = frozenset(name.lower() for name in ids if "@" in name)
    hashes = frozenset(hash.lower() for name in ids for hash in SHA256.findall(name))
    return Suppressed(frozenset(ids), emails, hashes, names)


def _content(location: str) -> bytes:
    if re.match(r"https?://", location, re.IGNORECASE):
        return _download(location)
    if "http://" in location.lower() or "https://" in location.lower():
        raise Unusable("must be a path, or a URL that begins with its own scheme, such as https://")
    with UPath(location).open("rb") as file:
        return _within_limit(bytes(file.read(MOST_BYTES + 1)))


def _download(url: str) -> bytes:
    """The URL's content. Its own login is used, never one of a netrc; a redirect may lead to a login page, and is refused."""
    login = get_auth_from_url(url)
    auth = HTTPBasicAuth(*login) if any(login) else lambda request: request
    until, pieces, size = time.monotonic() + MOST_SECONDS, list[bytes](), 0
    with requests.get(url, auth=auth, allow_redirects=False, stream=True, timeout=CONNECT_AND_READ_SECONDS) as answer:
        if answer.status_code != 200:
            redirected = "a redirect, which is not followed" if answer.is_redirect else f"status {answer.status_code}"
            raise Unusable(f"was answered by {redirected}")
        if "html" in answer.headers.get("Content-Type", "").lower():
            raise Unusable("is a web page, not a list")
        for piece in answer.iter_content(PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_BYTES or time.monotonic() > until:
                raise Unusable(f"is over {MOST_BYTES:,} bytes, or takes over {MOST_SECONDS} seconds to read")
    return b"".join(pieces)


def _within_limit(content: bytes) -> bytes:
    if len(content) > MOST_BYTES:
        raise Unusable(f"is over {MOST_BYTES:,} bytes")
    return content


def _text(content: bytes) -> str:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise Unusable("is no text in UTF-8") from None
    if CONTROL.search(text):
        raise Unusable("is no text: it holds control characters, as archives and spreadsheets do")
    if MARKUP.search(text) or text.lstrip().startswith("<"):
        raise Unusable("is a web page or XML, not a list")
    return text


def _json_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise Unusable("looks like JSON, but is no array of texts")
    yield from enumerate(([name] for name in found), 1)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return enumerate(re.split(r"\r\n|\r|\n", text), 1)


def _table(text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines that are neither blank nor a comment, with their numbers, in cells: all have as many as the first."""
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


def _names(cells: list[str], columns: set[int], number: int) -> Iterator[str]:
    """Every way to read whom a line names, in these columns or by an email in another. In doubt, one more is not sent."""
    names_somebody = False
    for column, cell in enumerate(cells):
        readings = [reading for reading in _readings(cell) if reading]
        if column not in columns and not any(map(is_email, readings)):
            continue
        if any(OTHER_HASH.fullmatch(reading) and not PLAIN_SHA256.fullmatch(reading) for reading in readings):
            raise Unusable(
                f"has what looks like a hash other than SHA-256 in line {number} (if it is an id, name it by its SHA-256)"
            )
        if any(PATTERN.fullmatch(reading) for reading in readings):
            raise Unusable(f"has a pattern in line {number}: it must name each person")
        names_somebody |= bool(readings)
        yield from readings
    if not names_somebody:
        raise Unusable(f"names nobody in line {number}")


def _readings(cell: str) -> Iterator[str]:
    """As it is; without what stands around it; its first word; each address in it; and these percent-decoded."""
    plain = re.sub(r"^[-*•] +", "", UNSEEN.sub("", cell)).strip(AROUND)
    first = re.split(r"[\s|#]", plain, maxsplit=1)[0]
    for reading in (cell, plain, first, *ADDRESS.findall(cell), *ADDRESS.findall(unquote(plain))):
        yield reading
        yield unquote(reading)


def _is_heading(cell: str) -> bool:
    return HEADING.fullmatch(re.sub(r"[\s_$]", "", cell.strip(AROUND).lower())) is not None
