"""R1: what events say about a distinct_id, and what is known about it at the time of each event.

An events frame has the columns uuid, event, distinct_id, timestamp (UTC, microseconds), and given_email and anonymous_id of
`properties.PARSED_COLUMNS`. It holds all of the day's events of each distinct_id, and these are sorted by `ORDER`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from cio_pipeline.rules.columns import Bools, Factorized, Integers, factorize, microseconds, texts
from cio_pipeline.rules.distinct_ids import is_valid_distinct_id
from cio_pipeline.rules.values import is_email

ORDER = ["timestamp", "uuid", "event", "distinct_id"]
"""The columns that say which of two events comes first."""

NEVER = 2**62
"""A time later than any other, in microseconds."""

Links = set[tuple[str, str]]
"""R21: pairs of an email in lower case, or an anonymous id, and a distinct_id that belong to the same person."""


def in_order(events: pd.DataFrame) -> Integers:
    """Returns the events' row numbers sorted by `ORDER`. Only rows with equal times are compared as text."""
    times = microseconds(events["timestamp"])
    order = np.argsort(times, kind="stable")
    same = times[order][1:] == times[order][:-1]
    equal = np.flatnonzero(np.append(same, False) | np.append(False, same)) if len(order) else order
    rows = events[ORDER].take(order[equal]).set_axis(order[equal])
    order[equal] = rows.sort_values(ORDER).index.to_numpy()
    return order


def learn(events: pd.DataFrame) -> tuple[pd.DataFrame, Links]:
    """Returns what the day says about people (R1), and which ids and emails belong to the same person (R21).

    The frame has one row for each distinct_id that the day says anything about: distinct_id (text), identified (bool: it had a
    `$identify`), email (text or None: the last valid one that was set) and email_set_at (when, in microseconds since 1970, or
    None). The links include emails that another replaced later in the day, distinct_ids that are emails themselves, and a
    `$identify` that is refused.
    """
    observed = _observe(events)
    ids, emails = observed.distinct_ids, observed.emails.uniques
    identified = np.zeros(len(ids), dtype=bool)
    identified[observed.codes[observed.identifies]] = True
    last = np.full(len(ids), -1)
    last[observed.codes[observed.email_rows]] = np.arange(len(observed.email_rows))
    people = pd.unique(observed.codes[np.union1d(np.flatnonzero(observed.identifies), observed.email_rows)])
    times = microseconds(events["timestamp"])[observed.email_rows]
    rows = []
    for code in people.tolist():
        place = last[code]  # of the last email that was set; -1 if none was
        email = (observed.emails.at(place), int(times[place])) if place >= 0 else (None, None)
        rows.append((ids[code], bool(identified[code]), *email))
    columns = ["distinct_id", "identified", "email", "email_set_at"]
    links = {(who.lower(), who) for who in ids if "@" in who and is_valid_distinct_id(who) and is_email(who)}
    # each pair of a distinct_id and an email once, as a single number
    pairs = np.unique(observed.codes[observed.email_rows] * max(1, len(emails)) + observed.emails.codes)
    links.update((emails[pair % len(emails)].lower(), ids[pair // len(emails)]) for pair in pairs.tolist())
    identifies = events[(events["event"] == "$identify").to_numpy(bool)]
    for who, anonymous_id in zip(texts(identifies["distinct_id"]), merged_ids(identifies), strict=True):
        if anonymous_id is not None:
            links.add((anonymous_id, who))
            links.update({(anonymous_id.lower(), anonymous_id)} if is_email(anonymous_id) else ())
    return pd.DataFrame(rows, columns=columns, dtype=object).astype({"identified": bool}), links


def merged_ids(identifies: pd.DataFrame) -> list[str | None]:
    """Returns the anonymous id that each `$identify` names; None if it names none, or where R14 refuses either of the two
    ids."""
    pairs = zip(texts(identifies["distinct_id"]), texts(identifies["anonymous_id"]), strict=True)
    return [
        anonymous if isinstance(anonymous, str) and is_valid_distinct_id(who) and is_valid_distinct_id(anonymous) else None
        for who, anonymous in pairs
    ]


class Known(NamedTuple):
    """What is known about each event's person, up to and including that event. The arrays have one entry per event.

    identified; emails: first the email that each distinct_id has before its first event, in their order, None for none, then
    those that the day's events set; email_codes: the place of the event's email in `emails`; emails_set_at: when it was set
    (microseconds since 1970), or `NEVER` if there is none or the distinct_id itself is the email.
    """

    identified: Bools
    emails: list[str | None]
    email_codes: Integers
    emails_set_at: Integers


def known_at_each_event(events: pd.DataFrame, earlier: pd.DataFrame) -> Known:
    """Returns what is known at each event.

    earlier: what all earlier days said, as `learn` returns it, with one row per distinct_id.
    """
    observed = _observe(events)
    codes, ids, rows = observed.codes, observed.distinct_ids, np.arange(len(events))
    before = set(earlier.loc[earlier["identified"], "distinct_id"])
    first_identify = np.full(len(ids), len(events))
    np.minimum.at(first_identify, codes[observed.identifies], rows[observed.identifies])
    identified = np.array([who in before for who in ids], dtype=bool)[codes] | (rows >= first_identify[codes])
    with_email = earlier[earlier["email"].notna()]
    emails = dict(
        zip(with_email["distinct_id"], zip(with_email["email"], with_email["email_set_at"], strict=True), strict=True)
    )
    at_first = [emails.get(who, (who if is_email(who) else None, NEVER)) for who in ids]
    set_at_first = np.array([NEVER if time is None else time for _, time in at_first], dtype=np.int64)
    last = _last_set(codes, observed.email_rows)
    is_set = last >= 0
    email, email_set_at = codes.copy(), set_at_first[codes]
    email[is_set] = len(ids) + observed.emails.codes[last[is_set]]
    email_set_at[is_set] = microseconds(events["timestamp"])[observed.email_rows[last[is_set]]]
    return Known(identified, [*(one for one, _ in at_first), *observed.emails.uniques], email, email_set_at)


def _last_set(codes: Integers, email_rows: Integers) -> Integers:
    """For each event, the last event of its distinct_id that has set an email by then, as a place in `email_rows`; -1 where
    there is none. `codes` are the distinct_ids' codes."""
    places = np.full(len(codes), np.nan)
    places[email_rows] = np.arange(len(email_rows))
    last: Integers = pd.Series(places).groupby(codes).ffill().fillna(-1).astype(np.int64).to_numpy()
    return last


class _Observed(NamedTuple):
    """What the events themselves say.

    codes: each event's place in `distinct_ids`; identifies: whether it is a `$identify`; email_rows: the rows of the
    events that set an email; emails: the email of each of these rows.
    """

    codes: Integers
    distinct_ids: list[str]
    identifies: Bools
    email_rows: Integers
    emails: Factorized


def _observe(events: pd.DataFrame) -> _Observed:
    codes, ids = factorize(events["distinct_id"])
    are_valid = np.array([is_valid_distinct_id(who) for who in ids], dtype=bool)[codes]
    identifies = are_valid & (events["event"] == "$identify").to_numpy(bool)
    email_rows = np.flatnonzero(are_valid & events["given_email"].notna().to_numpy(bool))
    return _Observed(codes, ids, identifies, email_rows, factorize(events["given_email"].take(email_rows)))
