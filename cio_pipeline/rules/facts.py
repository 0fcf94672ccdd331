"""R1: what events say about a distinct_id, and what is known of it at each event.

An events frame has the columns uuid, event, distinct_id, timestamp (UTC, microseconds) and, of what `properties.FACTS` has,
given_email and anonymous_id. It holds all of a distinct_id's events of the day, in their order: `ORDER`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cio_pipeline.rules.columns import Coded, codes_of, microseconds, texts
from cio_pipeline.rules.distinct_ids import usable
from cio_pipeline.rules.values import is_email

ORDER = ["timestamp", "uuid", "event", "distinct_id"]
"""The columns that say which of two events comes first."""

NEVER = 2**62
"""A time after all others, in microseconds."""

Links = set[tuple[str, str]]
"""R21: what is one person's: an email in lower case or an anonymous id, each with a distinct_id."""


def in_order(events: pd.DataFrame) -> Any:
    """The numbers of the events' rows in the order of `ORDER`: only those of equal times have to be compared as text."""
    times = microseconds(events["timestamp"])
    order = np.argsort(times, kind="stable")
    same = times[order][1:] == times[order][:-1]
    equal = np.flatnonzero(np.append(same, False) | np.append(False, same)) if len(order) else order
    rows = events[ORDER].take(order[equal]).set_axis(order[equal])
    order[equal] = rows.sort_values(ORDER).index.to_numpy()
    return order


def learn(events: pd.DataFrame) -> pd.DataFrame:
    """What the day says, one row per distinct_id that it says something about.

    Gives distinct_id (text), identified (bool: a `$identify` was seen), email (text or None: the last valid one set) and
    email_set (its time in microseconds since 1970, or None).
    """
    return learn_with_links(events)[0]


def learn_with_links(events: pd.DataFrame) -> tuple[pd.DataFrame, Links]:
    """What `learn` gives, and the links of the day: also by emails that were set again later in the day, by a distinct_id that
    is an email, and by a `$identify` that is refused."""
    observed = _observe(events)
    ids, emails = observed.distinct_ids, observed.emails.different
    identified = np.zeros(len(ids), dtype=bool)
    identified[observed.codes[observed.identifies]] = True
    last = np.full(len(ids), -1)
    last[observed.codes[observed.setting]] = np.arange(len(observed.setting))
    people = pd.unique(observed.codes[np.union1d(np.flatnonzero(observed.identifies), observed.setting)])
    times = microseconds(events["timestamp"])[observed.setting]
    rows = [
        (
            ids[who],
            bool(identified[who]),
            *((observed.emails.at(at), int(times[at])) if (at := last[who]) >= 0 else (None, None)),
        )
        for who in people.tolist()
    ]
    columns = ["distinct_id", "identified", "email", "email_set"]
    links = {(who.lower(), who) for who in ids if "@" in who and _is_own(who)}
    pairs = np.unique(observed.codes[observed.setting] * max(1, len(emails)) + observed.emails.codes)
    links.update((emails[pair % len(emails)].lower(), ids[pair // len(emails)]) for pair in pairs.tolist())
    identifies = events[(events["event"] == "$identify").to_numpy(bool)]
    for who, anonymous_id in zip(texts(identifies["distinct_id"]), merged_ids(identifies), strict=True):
        if anonymous_id is not None:
            links.add((anonymous_id, who))
            links.update({(anonymous_id.lower(), anonymous_id)} if is_email(anonymous_id) else ())
    return pd.DataFrame(rows, columns=columns, dtype=object).astype({"identified": bool}), links


def merged_ids(identifies: pd.DataFrame) -> list[str | None]:
    """The anonymous id that each `$identify` names, or None, also where R14 takes not both ids."""
    pairs = zip(texts(identifies["distinct_id"]), texts(identifies["anonymous_id"]), strict=True)
    return [named if isinstance(named, str) and usable(who) and usable(named) else None for who, named in pairs]


def _is_own(distinct_id: str) -> bool:
    return usable(distinct_id) and is_email(distinct_id)


class Known(NamedTuple):
    """What is known up to and including each event: numpy arrays.

    identified (bool); emails: each event's email by its number in `texts`, None where there is none; emails_set: when it was
    set (microseconds since 1970), `NEVER` where nobody set it, for there is none or the distinct_id is the email.
    """

    identified: Any
    texts: list[str | None]
    emails: Any
    emails_set: Any


def known_at_each_event(events: pd.DataFrame, known: pd.DataFrame) -> Known:
    """What is known at each event. `known` is what all earlier days said: columns as `learn` gives them, one row per
    distinct_id."""
    observed = _observe(events)
    codes, ids, rows = observed.codes, observed.distinct_ids, np.arange(len(events))
    before = set(known.loc[known["identified"], "distinct_id"])
    first_identify = np.full(len(ids), len(events))
    np.minimum.at(first_identify, codes[observed.identifies], rows[observed.identifies])
    identified = np.array([who in before for who in ids], dtype=bool)[codes] | (rows >= first_identify[codes])
    with_email = known[known["email"].notna()]
    emails = dict(zip(with_email["distinct_id"], zip(with_email["email"], with_email["email_set"], strict=True), strict=True))
    at_first = [emails.get(who, (who if is_email(who) else None, NEVER)) for who in ids]
    set_at_first = np.array([NEVER if time is None else time for _, time in at_first], dtype=np.int64)
    last = _last_set(codes, observed.setting)
    is_set = last >= 0
    email, email_set = codes.copy(), set_at_first[codes]
    email[is_set] = len(ids) + observed.emails.codes[last[is_set]]
    email_set[is_set] = microseconds(events["timestamp"])[observed.setting[last[is_set]]]
    return Known(identified, [*(one for one, _ in at_first), *observed.emails.different], email, email_set)


def _last_set(codes: Any, setting: Any) -> Any:
    """For each event, which of the events that set an email, given by their rows, is the last of its distinct_id up to then; -1
    where there is none."""
    order = np.argsort(codes, kind="stable")
    number = np.full(len(codes), -1)
    number[setting] = np.arange(len(setting))
    of_row, places = number[order], np.arange(len(codes))
    latest = np.maximum.accumulate(np.where(of_row >= 0, places, -1))
    first = np.searchsorted(codes[order], codes[order])
    found = np.empty(len(codes), dtype=np.int64)
    found[order] = np.where(latest >= first, of_row[latest], -1)
    return found


class _Observed(NamedTuple):
    """What events say by themselves.

    codes: each event's place in `distinct_ids`; identifies: whether it identifies (bool); setting: the rows of the events that
    set an email, and emails: these, row by row.
    """

    codes: Any
    distinct_ids: list[str]
    identifies: Any
    setting: Any
    emails: Coded


def _observe(events: pd.DataFrame) -> _Observed:
    codes, ids = codes_of(events["distinct_id"])
    are_usable = np.array([usable(who) for who in ids], dtype=bool)[codes]
    identifies = are_usable & (events["event"] == "$identify").to_numpy(bool)
    setting = np.flatnonzero(are_usable & events["given_email"].notna().to_numpy(bool))
    return _Observed(codes, ids, identifies, setting, codes_of(events["given_email"].take(setting)))
