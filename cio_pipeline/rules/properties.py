"""Reads what the rules need from an event's JSON, once, when the event is extracted.

Most JSON is only scanned: msgspec finds the members that matter, and validates the rest without building values, in a sixth of
the time. JSON that msgspec might read differently from orjson is parsed in full, with the same result.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.json_text import read_leniently
from cio_pipeline.rules.columns import Bools, are_deep, matches, to_list
from cio_pipeline.rules.values import is_email

PARSED_COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in ("given_email", "anonymous_id")),
        *((name, pa.bool_()) for name in ("personless", "canonical", "sent_as_is")),
    ]
)
"""given_email: the valid email among the given attributes (R1, R2); anonymous_id: the `$anon_distinct_id` of a `$identify`
(R16, R21); personless: whether `$process_person_profile` is `false` (R5); canonical: whether the properties are JSON exactly as
orjson writes it, without anything that R13 may leave out, so that members can be cut out of it; sent_as_is: whether they are
canonical and have no `$set`, `$set_once` or `$unset`, so that they are the event's data as they are (R12)."""

SPACE = r'(?:\A|[{\[,:])[ \t\r\n]+(?:["{}\[\]0-9-]|true|false|null)|[ \t\r\n](?:[}\],:]|\z)'
"""Spaces around JSON's tokens. It also matches inside strings, which only means that such JSON is parsed in full."""

NUMBER = r"[:,\[]-?(?:[0-9]+(?:\.[0-9]+0[,}\]]|[.0-9]*[eE])|[0-9.]{17}|0\.0000)|-0[,}\]]"
"""Numbers that orjson may write differently: with an exponent, trailing zeros, or more than 15 digits."""

ESCAPE = r"\\[/u]"
"""Escapes of characters that need no escape, and unpaired surrogates."""

OVERRIDE = '(?i:"(?:recipient|from_address|reply_to)")'
"""Properties that R13 may leave out."""

NEEDS_PARSING = "|".join((SPACE, NUMBER, ESCAPE, OVERRIDE))

CHUNK = 20_000
"""The number of events whose JSON is taken out of Arrow at once."""

ABSENT = msgspec.Raw()
COMMA = ord(",")


class Members(msgspec.Struct):
    """The members of an event's properties that the rules read, as JSON."""

    given: msgspec.Raw = msgspec.field(name="$set", default=ABSENT)
    set_once: msgspec.Raw = msgspec.field(name="$set_once", default=ABSENT)
    unset: msgspec.Raw = msgspec.field(name="$unset", default=ABSENT)
    anonymous_id: msgspec.Raw = msgspec.field(name="$anon_distinct_id", default=ABSENT)
    profile: msgspec.Raw = msgspec.field(name="$process_person_profile", default=ABSENT)


NO_MEMBERS = Members()

_decode = msgspec.json.Decoder(Members).decode


def parse_properties(names: pa.LargeBinaryArray, properties: pa.LargeBinaryArray, persons: pa.LargeBinaryArray) -> pa.Table:
    """Returns the columns `PARSED_COLUMNS` of events, given in UTF-8: their names, their properties and, where these are to be
    used instead of `$set`, their persons' properties. JSON may be null."""
    identifies = pc.equal(names, pa.scalar(b"$identify", names.type)).to_numpy(zero_copy_only=False)
    pieces = [PARSED_COLUMNS.empty_table()]
    for start in range(0, len(names), CHUNK):
        contents, persons_contents = properties.slice(start, CHUNK), persons.slice(start, CHUNK)
        pieces.append(_parse_chunk(identifies[start : start + CHUNK], contents, persons_contents))
    return pa.concat_tables(pieces)


def _parse_chunk(identifies: Bools, contents: pa.LargeBinaryArray, persons: pa.LargeBinaryArray) -> pa.Table:
    rows = len(contents)
    emails: list[str | None] = [None] * rows
    anonymous_ids: list[str | None] = [None] * rows
    personless, canonical, sent_as_is = [False] * rows, [True] * rows, [True] * rows
    need_parsing = matches(contents, NEEDS_PARSING) | are_deep(contents)
    events = zip(to_list(contents), to_list(persons), need_parsing.tolist(), strict=True)
    for row, (content, person, needs_parsing) in enumerate(events):
        members = None if needs_parsing or content is None else members_of(content)
        if members is None:
            whole = read_leniently(content)
            given, anonymous, profile = whole.get("$set"), whole.get("$anon_distinct_id"), whole.get("$process_person_profile")
            canonical[row] = sent_as_is[row] = False
        elif members == NO_MEMBERS and person is None:
            continue
        else:
            given, anonymous, profile = value_of(members.given), value_of(members.anonymous_id), value_of(members.profile)
            sent_as_is[row] = members.given is members.set_once is members.unset is ABSENT
        if person is not None:
            given = read_leniently(person)
        email = given.get("email") if isinstance(given, dict) else None
        emails[row] = email if email is not None and is_email(email) else None
        anonymous_ids[row] = anonymous if isinstance(anonymous, str) and identifies[row] else None
        personless[row] = profile is False
    columns = zip((emails, anonymous_ids, personless, canonical, sent_as_is), PARSED_COLUMNS, strict=True)
    return pa.table([pa.array(column, field.type) for column, field in columns], PARSED_COLUMNS)


def members_of(content: bytes) -> Members | None:
    """Returns the members of JSON that need not be parsed in full; None if it is not an object."""
    try:
        return _decode(content)
    except msgspec.DecodeError:
        return None


def without_members(content: bytes, members: Members) -> bytes | None:
    """Canonical JSON without its `$set`, `$set_once` and `$unset` (R12); None if it is not certain where these are."""
    for name, member in ((b'"$set":', members.given), (b'"$set_once":', members.set_once), (b'"$unset":', members.unset)):
        if member is not ABSENT:
            if content.count(name) != 1:
                return None
            start = content.index(name)
            end = start + len(name) + len(member)
            if content[start - 1] == COMMA:
                start -= 1
            elif content[end] == COMMA:
                end += 1
            content = content[:start] + content[end:]
    return content


def value_of(member: msgspec.Raw) -> Any:
    """Returns the value of a member, None if it is absent."""
    return None if member is ABSENT else orjson.loads(bytes(member))
