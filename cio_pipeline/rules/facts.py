"""R1: what events teach about a distinct_id, and what is known of it at each event.

An events frame has the columns uuid, event, distinct_id, properties, person_properties (text; the JSON of the last two may
be absent) and timestamp (UTC, microseconds). It holds all of a distinct_id's events of the day, in their order: `ORDER`.
`person_properties` is there just where the person's properties are to be taken instead of `$set`, which the extraction decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cio_pipeline.json_text import read_leniently
from cio_pipeline.rules.distinct_ids import usable
from cio_pipeline.rules.values import is_email

ORDER = ["timestamp", "uuid", "event", "distinct_id"]
"""The columns that say which of two events comes first."""

NO_EMAIL = (None, None)

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
    identified: dict[str, bool] = {}
    emails: dict[str, tuple[str, int]] = {}
    ties = {(who.lower(), who) for who in events["distinct_id"].unique().tolist() if "@" in who and _is_own(who)}
    for who, is_identify, email, time in _taught(events):
        if is_identify or email:
            identified[who] = is_identify or identified.get(who, False)
        if email:
            emails[who] = (email, time)
            ties.add((email.lower(), who))
    rows = [(who, was, *emails.get(who, NO_EMAIL)) for who, was in identified.items()]
    columns = ["distinct_id", "identified", "email", "email_set"]
    identifies = events[(events["event"] == "$identify").to_numpy(bool)]
    for who, properties in zip(identifies["distinct_id"].tolist(), identifies["properties"].tolist(), strict=True):
        if (anonymous_id := merged_id(who, properties)) is not None:
            ties.add((anonymous_id, who))
            ties.update({(anonymous_id.lower(), anonymous_id)} if is_email(anonymous_id) else ())
    return pd.DataFrame(rows, columns=columns, dtype=object).astype({"identified": bool}), ties


def merged_id(distinct_id: str, properties: Any) -> str | None:
    """The anonymous id that a `$identify` of this distinct_id names, where R14 takes both."""
    named = read_leniently(properties).get("$anon_distinct_id") if usable(distinct_id) else None
    return named if isinstance(named, str) and usable(named) else None


def _is_own(distinct_id: str) -> bool:
    return usable(distinct_id) and is_email(distinct_id)


def known_at_each_event(events: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """What is known up to and including each event, on the index of `events`: identified (bool), email (text or None) and
    email_set (when it was set, microseconds since 1970; None where nobody set it, for the distinct_id is the email).

    `known` is what all earlier days taught: columns as `learn` gives them, one row per distinct_id.
    """
    identified = set(known.loc[known["identified"], "distinct_id"])
    told = known[known["email"].notna()]
    emails = dict(zip(told["distinct_id"], zip(told["email"], told["email_set"], strict=True), strict=True))
    own = {who: (who if is_email(who) else None, None) for who in events["distinct_id"].unique().tolist()}
    rows = []
    for who, is_identify, email, time in _taught(events):
        if is_identify:
            identified.add(who)
        if email:
            emails[who] = (email, time)
        rows.append((who in identified, *emails.get(who, own[who])))
    columns = ["identified", "email", "email_set"]
    return pd.DataFrame(rows, columns=columns, index=events.index, dtype=object).astype({"identified": bool})


def is_given(person_properties: Any) -> bool:
    """Whether the person's properties are to be taken instead of `$set`: they are text then, and else null."""
    return isinstance(person_properties, str)


def _taught(events: pd.DataFrame) -> Iterator[tuple[str, bool, str | None, int]]:
    """What each event teaches by itself: distinct_id, whether it identifies, the email it sets (None: none), and its time."""
    times = events["timestamp"].astype("datetime64[us, UTC]").astype("int64")
    columns = (events["distinct_id"], events["event"], events["properties"], events["person_properties"], times)
    usables = {who: usable(who) for who in events["distinct_id"].unique().tolist()}
    for who, name, properties, person, time in zip(*(column.tolist() for column in columns), strict=True):
        can = usables[who]
        yield who, can and name == "$identify", _email(properties, person) if can else None, time


def _email(properties: Any, person: Any) -> str | None:
    """The email that an event gives, where it is valid."""
    text = person if is_given(person) else properties
    if not isinstance(text, str) or not _may_hold_email(text):
        return None
    found = read_leniently(text)
    given = found if is_given(person) else found.get("$set")
    email = given.get("email") if isinstance(given, dict) else None
    return email if is_email(email) else None


def _may_hold_email(text: str) -> bool:
    """Parsing is dear: only text that names an `email`, plainly or by escapes, is parsed for one."""
    return '"email"' in text or "\\u00" in text
