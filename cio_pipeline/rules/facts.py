"""R1: what events teach about a distinct_id, and what is known of it at each event.

An events frame has the columns uuid, event, distinct_id, properties, person_properties (text; the JSON of the last two may
be absent) and timestamp (UTC, microseconds). It holds all of a distinct_id's events of the day, in their order: `ORDER`.
`person_properties` is there just where the person's properties are to be taken instead of `$set`, which the extraction decides.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cio_pipeline.json_text import may_name, read_leniently
from cio_pipeline.rules.columns import codes_of, microseconds, texts, to_list, utf8
from cio_pipeline.rules.distinct_ids import usable
from cio_pipeline.rules.values import is_email

ORDER = ["timestamp", "uuid", "event", "distinct_id"]
"""The columns that say which of two events comes first."""

Ties = set[tuple[str, str]]
"""R21: what is one person's: an email in lower case or an anonymous id, each with a distinct_id."""


def learn(events: pd.DataFrame) -> pd.DataFrame:
    """What the day teaches, one row per distinct_id that it teaches something about.

    Gives distinct_id (text), identified (bool: a `$identify` was seen), email (text or None: the last valid one set) and
    email_set (its time in microseconds since 1970, or None).
    """
    return learn_with_ties(events)[0]


def learn_with_ties(events: pd.DataFrame) -> tuple[pd.DataFrame, Ties]:
    """What `learn` gives, and the ties of the day: also by emails that were set again later in the day, by a distinct_id that
    is an email, and by a `$identify` that is refused."""
    taught = _taught(events, to_list(utf8(events["properties"])))
    ids, times = taught.distinct_ids, microseconds(events["timestamp"])
    identified: dict[str, bool] = {}
    emails: dict[str, tuple[str, int]] = {}
    ties = {(who.lower(), who) for who in ids if "@" in who and _is_own(who)}
    for row in np.union1d(np.flatnonzero(taught.identifies), list(taught.emails)).astype(int).tolist():
        who, email = ids[taught.codes[row]], taught.emails.get(row)
        identified[who] = bool(taught.identifies[row]) or identified.get(who, False)
        if email:
            emails[who] = (email, int(times[row]))
            ties.add((email.lower(), who))
    rows = [(who, was, *emails.get(who, (None, None))) for who, was in identified.items()]
    columns = ["distinct_id", "identified", "email", "email_set"]
    identifies = events[(events["event"] == "$identify").to_numpy(bool)]
    for who, anonymous_id in zip(texts(identifies["distinct_id"]), merged_ids(identifies), strict=True):
        if anonymous_id is not None:
            ties.add((anonymous_id, who))
            ties.update({(anonymous_id.lower(), anonymous_id)} if is_email(anonymous_id) else ())
    return pd.DataFrame(rows, columns=columns, dtype=object).astype({"identified": bool}), ties


def merged_ids(identifies: pd.DataFrame) -> list[str | None]:
    """The anonymous id that each `$identify` names, or None, also where R14 takes not both ids."""
    properties = to_list(utf8(identifies["properties"]))
    return [_merged_id(*one) for one in zip(texts(identifies["distinct_id"]), properties, strict=True)]


def _merged_id(distinct_id: str, properties: bytes | None) -> str | None:
    if not (properties and may_name(properties, b'"$anon_distinct_id"') and usable(distinct_id)):
        return None
    named = read_leniently(properties).get("$anon_distinct_id")
    return named if isinstance(named, str) and usable(named) else None


def _is_own(distinct_id: str) -> bool:
    return usable(distinct_id) and is_email(distinct_id)


def known_at_each_event(events: pd.DataFrame, properties: list[bytes | None], known: pd.DataFrame) -> pd.DataFrame:
    """What is known up to and including each event, on the index of `events`: identified (bool), email (text or None) and
    email_set (when it was set, microseconds since 1970; None where nobody set it, for the distinct_id is the email).

    `properties` are the events' in UTF-8. `known` is what all earlier days taught: columns as `learn` gives them, one row per
    distinct_id.
    """
    taught = _taught(events, properties)
    codes, ids, rows = taught.codes, taught.distinct_ids, np.arange(len(events))
    before = set(known.loc[known["identified"], "distinct_id"])
    first_identify = np.full(len(ids), len(events))
    np.minimum.at(first_identify, codes[taught.identifies], rows[taught.identifies])
    identified = np.array([who in before for who in ids], dtype=bool)[codes] | (rows >= first_identify[codes])
    told = known[known["email"].notna()]
    emails = dict(zip(told["distinct_id"], zip(told["email"], told["email_set"], strict=True), strict=True))
    at_first = [emails.get(who, (who if is_email(who) else None, None)) for who in ids]
    email = np.array([one for one, _ in at_first], dtype=object)[codes]
    email_set = np.array([time for _, time in at_first], dtype=object)[codes]
    setting = list(taught.emails)
    last_set = pd.Series(np.nan, index=rows)
    last_set[setting] = setting
    last_set = last_set.groupby(codes).ffill().dropna().astype(int)
    email[last_set.index] = [taught.emails[row] for row in last_set.tolist()]
    email_set[last_set.index] = microseconds(events["timestamp"])[last_set]
    known_emails = {"email": pd.Series(email, dtype=object), "email_set": pd.Series(email_set, dtype=object)}
    return pd.DataFrame({"identified": identified, **known_emails}).set_index(events.index)


class _Taught(NamedTuple):
    """What events teach by themselves.

    codes: each event's place in `distinct_ids`; identifies: whether it identifies (bool); emails: row to the email it sets.
    """

    codes: Any
    distinct_ids: list[str]
    identifies: Any
    emails: dict[int, str]


def _taught(events: pd.DataFrame, properties: list[bytes | None]) -> _Taught:
    codes, ids = codes_of(events["distinct_id"])
    are_usable = np.array([usable(who) for who in ids], dtype=bool)[codes]
    identifies = are_usable & (events["event"] == "$identify").to_numpy(bool)
    rows = zip(are_usable.tolist(), properties, to_list(utf8(events["person_properties"])), strict=True)
    emails = {}
    for row, (is_usable, content, person) in enumerate(rows):
        given = content if person is None else person
        if is_usable and given and (b"@" in given or b"\\" in given) and (email := _email(given, person is not None)):
            emails[row] = email
    return _Taught(codes, ids, identifies, emails)


def _email(content: bytes, is_of_person: bool) -> str | None:
    """The valid email among a person's properties or, else, in an event's `$set`."""
    if not may_name(content, b'"email"'):
        return None
    found = read_leniently(content)
    given = found if is_of_person else found.get("$set")
    email = given.get("email") if isinstance(given, dict) else None
    return email if is_email(email) else None
