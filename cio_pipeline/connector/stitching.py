"""R16: held-back events of an anonymous id that became somebody are sent as that person's.

A *naming* is a `$identify` that carries `$anon_distinct_id`, both ids being such that PostHog would merge them. It takes the
events of that anonymous id which lie after the naming before it, and at most so many days back.
"""

from __future__ import annotations

import re
from typing import Any, TypeGuard

import pandas as pd

from cio_pipeline.connector.facts import usable
from cio_pipeline.connector.jsontext import peek_object
from cio_pipeline.connector.options import Options
from cio_pipeline.connector.outcomes import HELD_BACK, decide


def _quoted_too(*names: str) -> frozenset[str]:
    return frozenset(quote + name + quote for quote in ("", "'", '"') for name in names)


ILLEGAL_IN_ANY_CASE = _quoted_too(
    "anonymous", "guest", "distinctid", "distinct_id", "id", "not_authenticated", "email", "undefined", "true", "false"
)
ILLEGAL = _quoted_too("[object Object]", "NaN", "None", "none", "null", "0")
"""Ids that PostHog does not merge, on either side (its person-merge code): what a faulty client sends where it knows nobody."""

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
NAMING_COLUMNS = ["anonymous_id", "distinct_id", "timestamp", "uuid"]


def namings(events: pd.DataFrame) -> pd.DataFrame:
    """The namings among the events: anonymous_id, and the columns of `events` of the `$identify`."""
    identifies = events[(events["event"] == "$identify").to_numpy(bool)]
    named = [_named(*row) for row in identifies[["distinct_id", "properties"]].itertuples(index=False)]
    same = events["distinct_id"].dtype
    found = identifies.assign(anonymous_id=pd.Series(named, index=identifies.index, dtype=same))
    return found.dropna(subset="anonymous_id")


def _named(distinct_id: str, properties: Any) -> str | None:
    """The anonymous id that a `$identify` of this distinct_id names."""
    if not (usable(distinct_id) and is_legal(distinct_id)):
        return None
    named = peek_object(properties).get("$anon_distinct_id")
    return named if is_legal(named) and usable(named) else None


def is_legal(distinct_id: object) -> TypeGuard[str]:
    """Whether PostHog would merge this id. No id that it stores has half a surrogate pair."""
    if not isinstance(distinct_id, str) or not distinct_id.strip() or LONE_SURROGATE.search(distinct_id):
        return False
    return distinct_id.lower() not in ILLEGAL_IN_ANY_CASE and distinct_id not in ILLEGAL


def spans(
    today: pd.DataFrame, earlier: pd.DataFrame, identified_before: set[str], identified_today: pd.DataFrame, options: Options
) -> pd.DataFrame:
    """What each of the day's namings may take.

    `today` are the day's namings with key and email as `outcomes.decide` gives them, `earlier` those of the days before;
    `identified_before` are the anonymous ids that were identified themselves before the day, `identified_today` each
    distinct_id's first `$identify` of the day (distinct_id, timestamp, uuid). Gives the namings that may take something, with
    since (the earliest time) and the naming before (timestamp_before, uuid_before), after which the events lie.
    """
    every = pd.concat([earlier[NAMING_COLUMNS], today], ignore_index=True).sort_values(["timestamp", "uuid"])
    before = every.groupby("anonymous_id")[["timestamp", "uuid"]].shift().add_suffix("_before")
    found = every.join(before)
    own = identified_today.rename(columns={"distinct_id": "anonymous_id"})
    found = found[found["key"].notna()].merge(own, how="left", on="anonymous_id", suffixes=("", "_own"))
    by_then = found["timestamp_own"].notna() & ~_after(_order(found, "_own"), found)
    may = ~by_then & ~found["anonymous_id"].isin(identified_before)
    if options.anonymous_users == "emails":
        may &= found["email"].notna()
    found = found[may]
    return found.assign(since=found["timestamp"] - pd.Timedelta(days=options.stitch_anonymous_days))


def taken(events: pd.DataFrame, known: pd.DataFrame, found: pd.DataFrame, options: Options) -> pd.DataFrame:
    """The events of one day that the spans take, as the person's: with its identifier, key and email.

    `events` are all events of that day of the anonymous ids in `found`, `known` what the days before it taught about them.
    """
    decided = decide(events, known, options)
    held_back = decided[decided["outcome"].isin(HELD_BACK)].drop(columns=["key", "identifier", "email", "email_set"])
    both = held_back.merge(found, left_on="distinct_id", right_on="anonymous_id", suffixes=("", "_naming"))
    follows = both["timestamp_before"].isna() | _after(both, _order(both, "_before"))
    return both[follows & _after(_order(both, "_naming"), both) & (both["timestamp"] >= both["since"])]


def _order(frame: pd.DataFrame, suffix: str) -> pd.DataFrame:
    """The columns timestamp and uuid out of those with the suffix."""
    return pd.DataFrame({"timestamp": frame["timestamp" + suffix], "uuid": frame["uuid" + suffix]})


def _after(one: pd.DataFrame, other: pd.DataFrame) -> Any:
    """Whether one comes after the other in the order (timestamp, uuid), row by row."""
    same = one["timestamp"] == other["timestamp"]
    return (one["timestamp"] > other["timestamp"]) | (same & (one["uuid"] > other["uuid"]))
