"""The values of settings: each function returns a text's value, or raises `ValueError` with what is wrong, in our own words.

No error quotes the text, as it may be a secret in the wrong line.
"""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import UTC, date, datetime
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

QUOTES = "\"'`\u00b4\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2032\u2033\u00ab\u00bb\u2039\u203a\uff02\uff07"
APOSTROPHES = "'\u2019"
SEPARATORS = ";|\\\uff0c\u060c\u3001\uff1b\n\r\t"
"""Characters that could be meant to separate names, as commas do, or to keep one together."""

BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of invisible characters."""

LISTED = 'must be names separated by commas or, if a name has special characters, a JSON list: ["signed up", "paid, in full"]'
ELEMENT = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^,]*?))\s*(?:,|$)""")

COMMENT = re.compile(r"\s#(\s|$)")

KEY = re.compile(r"[0-9A-Za-z._~+/=-]+")
PLACEHOLDER = re.compile(
    r"your.*|(?:my|the|insert|enter|put|paste|replace)[-_.].*|change[-_.]?me.*|.*[-_.](?:here|placeholder|example)"
    r"|(?:ph[xc]_)?(?:x{3,}|\.{3,}|0{3,})|todo|tbd|none|null|nil|undefined|placeholder|example",
    re.IGNORECASE,
)

EARLIEST = date(2000, 1, 1)


def clean(text: str) -> str:
    """Returns the text without surrounding blanks, and without a pair of quotes around all of it, which Docker's `--env-file`
    keeps."""
    text = text.strip()
    is_quoted = len(text) >= 2 and text[0] in "\"'" and text.find(text[0], 1) == len(text) - 1
    return text[1:-1].strip() if is_quoted else text


def value_of(text: str, field: FieldInfo) -> Any:
    """Returns the value of a setting's text by the field's type and limits; the text itself if the field has its own
    validator."""
    if COMMENT.search(text) and not text.startswith("["):
        raise ValueError("it ends with a comment, which Docker and systemd would keep: put that on a line of its own")
    if field.annotation != tuple[str, ...]:
        _refuse_unseen(text)
    if any(isinstance(one, BeforeValidator) for one in field.metadata):
        return text
    kinds = get_args(field.annotation)
    if get_origin(field.annotation) is Literal:
        return next((choice for choice in kinds if choice.lower() == text.lower()), text)
    if int in (field.annotation, *kinds):
        return _number(text, r"[0-9]{1,12}", int, field)
    if float in (field.annotation, *kinds):
        return _number(text, r"[0-9]{1,12}(\.[0-9]{1,12})?", float, field)
    return text


def must_be(field: FieldInfo) -> str:
    """Returns the field's possible values, as the rest of a sentence that begins with its name."""
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
    if get_origin(field.annotation) is Literal:
        return f"must be {', '.join(kinds[:-1])} or {kinds[-1]}"
    if kinds[0] not in (int, float):
        return "must be text"
    bounds = {type(bound): bound for bound in field.metadata}
    lowest = f"above {bounds[Gt].gt:,}" if Gt in bounds else f"from {bounds[Ge].ge:,}" if Ge in bounds else ""
    highest = f"to {bounds[Le].le:,}" if Le in bounds else "on" if Ge in bounds else ""
    example = f", such as {field.default}" if field.default is not None else ""
    return " ".join(["must be a", *(["whole"] if kinds[0] is int else []), "number", lowest, highest]).rstrip() + example


def parse_names(text: Any) -> Any:
    """Returns (a, b, c) for `a, b,,c ` (R3: allowlist). A name may be in quotes, or all in a JSON list. What is ambiguous is
    refused."""
    if not isinstance(text, str):
        return text
    found = _json_list(text) if text.startswith(("[", "{")) else [_name(*parts) for parts in ELEMENT.findall(text)]
    listed = tuple(dict.fromkeys(name for one in found if (name := one.strip())))
    if not listed:
        raise ValueError("it names nothing: leave it out if there is nothing to name")
    return listed


def parse_yes_no(text: Any) -> Any:
    """Returns True for `Yes` and False for `No`, in any case."""
    if isinstance(text, bool):
        return text
    choices = {"yes": True, "no": False}
    if str(text).lower() not in choices:
        raise ValueError("must be Yes or No")
    return choices[str(text).lower()]


def parse_share(text: Any) -> Any:
    """Returns 0.01 for `1%`. A bare 1 is ambiguous, and refused."""
    if not isinstance(text, str):
        return text
    number = re.fullmatch(r"([0-9]{0,3}(?:\.[0-9]{1,12})?)( ?%)?", text)
    given = float(number[1]) / (100 if number[2] else 1) if number and number[1] else -1.0
    if number is None or not 0 <= given <= 1 or (given == 1 and not number[2]):
        raise ValueError("must be a share of the extracted events, such as 1% or 0.01")
    return given


def parse_service_key(text: Any) -> Any:
    """Returns a key or site ID, as the service shows it."""
    if not isinstance(text, str):
        return text
    if text.lower().startswith(("bearer", "basic")) and not KEY.fullmatch(text):
        raise ValueError("must be only the key, without the word Bearer or Basic before it")
    if "<" in text or "{" in text or PLACEHOLDER.fullmatch(text):
        raise ValueError("it is a placeholder, not a key: use what the service shows where the key was created")
    if not KEY.fullmatch(text):
        raise ValueError("must be only the key, as the service shows it: letters, digits and ._~+/=- without spaces or quotes")
    return text


def parse_personal_key(text: Any) -> Any:
    """Returns PostHog's personal API key."""
    if isinstance(text, str) and text.startswith("phc_"):
        raise ValueError("must be a personal API key (phx_...), not the project's own (phc_...), which can only send events")
    return parse_service_key(text)


def parse_project_id(text: Any) -> Any:
    """Returns PostHog's number of a project, or its UUID."""
    if (
        isinstance(text, str)
        and text
        and not re.fullmatch(r"[0-9]{1,12}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", text)
    ):
        raise ValueError("must be the project's number, such as 12345: it is in the address of its pages in PostHog")
    return text


def parse_day(text: Any) -> Any:
    """Returns a day in the past, or today, `YYYY-MM-DD`."""
    if not isinstance(text, str):
        return text
    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise ValueError  # noqa: TRY301 - the same as one that is not in the calendar
        given = date.fromisoformat(text)
    except ValueError:
        given = None
    if given is None:
        raise ValueError("must be a date, YYYY-MM-DD, such as 2025-01-01")
    if not EARLIEST <= given <= datetime.now(UTC).date():
        raise ValueError(f"must be a day from {EARLIEST} to today, such as 2025-01-01")
    return given


def _refuse_unseen(text: str) -> None:
    """Refuses what no setting contains: line ends, invisible characters, and one quote of a pair."""
    if any(unicodedata.category(letter) in UNSEEN for letter in text):
        raise ValueError("it contains a line end or an invisible character")
    if text[0] in QUOTES or text[-1] in QUOTES:
        raise ValueError("must have no quotes, or one pair of straight ones around it")


def _number(text: str, form: str, kind: type[int] | type[float], field: FieldInfo) -> int | float:
    if not re.fullmatch(form, text):
        raise ValueError(must_be(field))
    return kind(text)


def _json_list(text: str) -> list[str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(LISTED)
    return value


def _name(double: str, single: str, bare: str) -> str:
    """Returns one name of a list that is not JSON. What is ambiguous is refused."""
    name = double or single or bare
    inside = re.sub(rf"(?<=\w)[{APOSTROPHES}](?=\w)", "", name)
    if any(
        letter in QUOTES or letter in SEPARATORS or unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp")
        for letter in inside
    ):
        raise ValueError(LISTED)
    if any(name.count(opening) != name.count(closing) for opening, closing in BRACKETS):
        raise ValueError(LISTED)
    return name
