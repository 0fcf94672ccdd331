"""R1: what events teach about a distinct_id, and what is known of it at each event.

An events frame has the columns uuid, event, distinct_id, properties, person_properties (text; the JSON of the last two may
be absent) and timestamp (UTC, microseconds). It holds all of a distinct_id's events of the day, in their order: `ORDER`.
`person_properties` is there just where the person's properties are to be taken instead of `$set`, which the extraction decides.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from cio_pipeline.json_text import read_leniently
from cio_pipeline.rules.columns import codes_of, may_name, microseconds, texts, to_list, utf8
from cio_pipeline.rules.distinct_ids import usable
from cio_pipeline.rules.values import is_email

ORDER = ["timestamp", "uuid", "event", "distinct_id"]
"""The columns that say which of two events comes first."""

Ties = set[tuple[str, str]]
"""R21: what is one person's: an email in lower case or an anonymous id, each with a distinct_id."""


def in_order(events: pd.DataFrame) -> Any:
    """The numbers of the events' rows in the order of `ORDER`: only those of equal times have to be compared as text."""
    times = microseconds(events["timestamp"])
    order = np.argsort(times, kind="stable")
    same = times[order][1:] == times[order][:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same)) if len(order) else order
    rows = events[ORDER].take(order[tied]).set_axis(order[tied])
    order[tied] = rows.sort_values(ORDER).index.to_numpy()
    return order


def learn(events: pd.DataFrame) -> pd.DataFrame:
    """What the day teaches, one row per distinct_id that it teaches something about.

    Gives distinct_id (text), identified (bool: a `$identify` was seen), email (text or None: the last valid one set) and
    email_set (its time in microseconds since 1970, or None).
    """
    return learn_with_ties(events)[0]


def learn_with_ties(events: pd.DataFrame) -> tuple[pd.DataFrame, Ties]:
    """What `learn` gives, and the ties of the day: also by emails that were set again later in the day, by a distinct_id that
    is an email, and by a `$identify` that is refused."""
    taught = _taught(events)
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
    contents = utf8(identifies["properties"])
    rows = may_name(contents, b'"$anon_distinct_id"')
    merged: list[str | None] = [None] * len(contents)
    distinct_ids = texts(identifies["distinct_id"].take(rows))
    for row, who, content in zip(rows.tolist(), distinct_ids, to_list(contents.take(pa.array(rows))), strict=True):
        named = read_leniently(content).get("$anon_distinct_id") if usable(who) else None
        merged[row] = named if isinstance(named, str) and usable(named) else None
    return merged


def _is_own(distinct_id: str) -> bool:
    return usable(distinct_id) and is_email(distinct_id)


def known_at_each_event(events: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """What is known up to and including each event, on the index of `events`: identified (bool), email (text or None) and
    email_set (when it was set, microseconds since 1970; None where nobody set it, for the distinct_id is the email).

    `known` is what all earlier days taught: columns as `learn` gives them, one row per distinct_id.
    """
    taught = _taught(events)
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
    last_set = pd.Series(rows).where(np.isin(rows, setting)).groupby(codes).ffill().dropna()
    at, source = last_set.index.to_numpy(), last_set.to_numpy(int)
    email[at] = [taught.emails[row] for row in source.tolist()]
    email_set[at] = microseconds(events["timestamp"])[source]
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


def _taught(events: pd.DataFrame) -> _Taught:
    codes, ids = codes_of(events["distinct_id"])
    are_usable = np.array([usable(who) for who in ids], dtype=bool)[codes]
    identifies = are_usable & (events["event"] == "$identify").to_numpy(bool)
    emails: dict[int, str] = {}
    contents, persons = utf8(events["properties"]), utf8(events["person_properties"])
    are_of_persons = persons.is_valid().to_numpy(zero_copy_only=False)
    for array, is_of_person, are_meant in ((contents, False, ~are_of_persons), (persons, True, are_of_persons)):
        rows = may_name(array, b'"email"')
        rows = rows[(are_usable & are_meant)[rows]]
        for row, content in zip(rows.tolist(), to_list(array.take(pa.array(rows))), strict=True):
            if (b"@" in content or b"\\" in content) and (email := _email(content, is_of_person)):
                emails[row] = email
    return _Taught(codes, ids, identifies, emails)


def _email(content: bytes, is_of_person: bool) -> str | None:
    """The valid email among a person's properties or, else, in an event's `$set`."""
    found = read_leniently(content)
    given = found if is_of_person else found.get("$set")
    email = given.get("email") if isinstance(given, dict) else None
    return email if is_email(email) else None
