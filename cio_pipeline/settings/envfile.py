"""Reads `.env` strictly: an ambiguous line is refused, with its number, and never quoted.

Dagster, Docker, shells and python-dotenv each read quotes, backslashes, `${...}` and `#` in their own way, and skip what they
cannot read. Here a line is `NAME=value` or `export NAME=value`, and the value is taken literally, with or without one pair of
quotes.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from cio_pipeline.settings.errors import SettingsError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
BLANKS = " \t"
LOW_QUOTES = ("\u201a", "\u201e")
COMMENT = re.compile(r"[ \t]+#")
IN_SINGLE_QUOTES = "write the value in single quotes if it is meant literally"


def read_env_file(path: Path) -> dict[str, str]:
    """Returns the names and values in the file; none if there is no file.

    Raises `SettingsError` with the file and the line, but never its content, if a line is ambiguous.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            return {}
        raise SettingsError(f"{path} cannot be read ({error.strerror}).") from None
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(content.removeprefix(BYTE_ORDER_MARK).split(b"\n"), 1):
        try:
            binding = _binding(line.removesuffix(b"\r"))
        except ValueError as why:
            raise SettingsError(f"{path}, line {number} cannot be read with certainty: {why}.") from None
        if binding is not None:
            name, value = binding
            if name in lines:
                raise SettingsError(f"{path}, line {number}: {name} is already set in line {lines[name]}.")
            values[name], lines[name] = value, number
    return values


def _binding(line: bytes) -> tuple[str, str] | None:
    """Returns the line's name and value, or None for a blank line or a comment. Raises `ValueError` with what is wrong."""
    try:
        text = line.decode().strip(BLANKS)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text if letter != "\t"):
        raise ValueError("it has a control character")
    if not text or text.startswith("#"):
        return None
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("it has no =, and is neither NAME=value nor a comment")
    name = re.sub(r"^export[ \t]+", "", name).rstrip(BLANKS)
    if not NAME.fullmatch(name):
        raise ValueError("what is before the = is not a name of letters, digits and underscores")
    return name, _value(value)


def _value(text: str) -> str:
    bare = text.lstrip(BLANKS)
    if bare.startswith("#"):
        if bare == text:
            raise ValueError("a # right after the = may begin a comment or the value: " + IN_SINGLE_QUOTES)
        return ""
    return _quoted(bare) if bare[:1] in ("'", '"') else _unquoted(bare)


def _quoted(text: str) -> str:
    quote = text[0]
    value, closing, rest = text[1:].partition(quote)
    if not closing:
        raise ValueError("its quote is not closed on the same line")
    if rest.strip(BLANKS) and not COMMENT.match(rest):
        raise ValueError("something follows the closing quote: one pair of quotes goes around the whole value")
    if quote == '"':
        _refuse_what_a_shell_reads(value)
    return value


def _unquoted(text: str) -> str:
    comment = COMMENT.search(text)
    if comment and text[comment.end() :].strip("#")[:1] not in ("", *BLANKS):
        raise ValueError("a # after a blank may begin a comment or not: put the value in quotes, or a blank after the #")
    value = text[: comment.start()] if comment else text
    if value.startswith("="):
        raise ValueError("it has two =: " + IN_SINGLE_QUOTES)
    if value.endswith(";"):
        raise ValueError("it ends with a semicolon: leave that out, or put the value in quotes")
    if any(unicodedata.category(letter) in ("Pi", "Pf") or letter in LOW_QUOTES for letter in value[:1] + value[-1:]):
        raise ValueError("typographic quotes do not count as quotes: use \" or '")
    if value.count('"') % 2 or value.count("'") % 2:
        raise ValueError("a quote is not closed: put the whole value in a pair of the other kind")
    _refuse_what_a_shell_reads(value)
    return value


def _refuse_what_a_shell_reads(value: str) -> None:
    if "${" in value or "$(" in value or "`" in value:
        raise ValueError(
            "${...}, $(...) and backticks are not expanded: write the value itself, or put it in single quotes to mean it"
            " literally"
        )
    if "\\" in value:
        raise ValueError("a backslash is read in several ways: " + IN_SINGLE_QUOTES)
