"""R16: held-back events of an anonymous id that became somebody are sent as that person's.

A *merge* is a `$identify` that carries `$anon_distinct_id`, both ids being such that R14 takes them. It takes the
events of that anonymous id which lie after the merge before it, and at most so many days back.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from cio_pipeline.rules.classify import HELD_BACK, classify
from cio_pipeline.rules.columns import texts
from cio_pipeline.rules.facts import ORDER, merged_ids
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.values import is_uuid

MERGE_COLUMNS = ["anonymous_id", "distinct_id", "timestamp", "uuid"]


def merges(events: pd.DataFrame) -> pd.DataFrame:
    """The merges among the events: anonymous_id, and the columns of `events` of the `$identify`."""
    identifies = events[(events["event"] == "$identify").to_numpy(bool)]
    named = [
        anonymous_id if is_uuid(uuid) else None
        for uuid, anonymous_id in zip(texts(identifies["uuid"]), merged_ids(identifies), strict=True)
    ]
    same = events["distinct_id"].dtype
    found = identifies.assign(anonymous_id=pd.Series(named, index=identifies.index, dtype=same))
    return found.dropna(subset="anonymous_id")


def merge_windows(
    today: pd.DataFrame, earlier: pd.DataFrame, identified_before: set[str], identified_today: pd.DataFrame, options: Options
) -> pd.DataFrame:
    """What each of the day's merges may take.

    `today` are the day's merges as `classify` gives them, `earlier` those of the days before; `identified_before` are
    the anonymous ids that were identified themselves before the day, `identified_today` each distinct_id's first `$identify`
    of the day (the columns of `ORDER`). Gives the merges that may take something, with since (the earliest time) and the
    merge before (timestamp_before, uuid_before, distinct_id_before), after which the events lie.
    """
    every = pd.concat([earlier[MERGE_COLUMNS].assign(event="$identify"), today], ignore_index=True).sort_values(ORDER)
    found = every.join(every.groupby("anonymous_id")[ORDER].shift().add_suffix("_before"))
    own = identified_today.assign(anonymous_id=identified_today["distinct_id"]).add_suffix("_own")
    found = found[found["key"].notna()].merge(own, how="left", left_on="anonymous_id", right_on="anonymous_id_own")
    by_then = found["timestamp_own"].notna() & ~_after(found, "_own", "")
    may = ~by_then & ~found["anonymous_id"].isin(identified_before)
    if options.anonymous_users == "emails":
        may &= found["email"].notna()
    if options.anonymous_users == "profiles":
        may &= ~found["personless"].astype(bool)
    found = found[may]
    return found.assign(since=found["timestamp"] - pd.Timedelta(days=options.stitch_anonymous_days))


def stitched(events: pd.DataFrame, known: pd.DataFrame, found: pd.DataFrame, options: Options) -> pd.DataFrame:
    """The events of one day that the merge_windows take, as the person's: with its identifier, key and email.

    `events` are all events of that day of the anonymous ids in `found`, `known` what the days before it said about them.
    """
    classified = classify(events, known, options)
    held_back = classified[classified["outcome"].isin(HELD_BACK)].drop(
        columns=["anonymous_id", "key", "identifier", "email", "email_set"]
    )
    both = held_back.merge(found, left_on="distinct_id", right_on="anonymous_id", suffixes=("", "_merge"))
    follows = both["timestamp_before"].isna() | _after(both, "", "_before")
    return both[follows & _after(both, "_merge", "") & (both["timestamp"] >= both["since"])]


def _after(frame: pd.DataFrame, one: str, other: str) -> Any:
    """Whether the event in the columns with the suffix `one` comes after that with the suffix `other`, row by row."""
    after, same = pd.Series(False, index=frame.index), pd.Series(True, index=frame.index)
    for column in ORDER:
        ours, theirs = frame[column + one], frame[column + other]
        after |= same & (ours > theirs)
        same &= ours == theirs
    return after
