"""R16: once an anonymous visitor is identified, events that were held back until then are sent as that person's.

A *merge* is a `$identify` with `$anon_distinct_id`, where R14 accepts both ids. It takes the events of the anonymous id since
the previous merge, at most CIO_STITCH_ANONYMOUS_DAYS days back.
"""

from __future__ import annotations

import pandas as pd

from cio_pipeline.rules.classify import HELD_BACK, classify
from cio_pipeline.rules.columns import texts
from cio_pipeline.rules.facts import ORDER, merged_ids
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.values import is_uuid

MERGE_COLUMNS = ["anonymous_id", "distinct_id", "timestamp", "uuid"]


def merges(events: pd.DataFrame) -> pd.DataFrame:
    """Returns the merges among the events: the rows of their `$identify`, with anonymous_id as the merge names it."""
    identifies = events[(events["event"] == "$identify").to_numpy(bool)]
    anonymous_ids = [
        anonymous_id if is_uuid(uuid) else None
        for uuid, anonymous_id in zip(texts(identifies["uuid"]), merged_ids(identifies), strict=True)
    ]
    column = pd.Series(anonymous_ids, index=identifies.index, dtype=events["distinct_id"].dtype)
    return identifies.assign(anonymous_id=column).dropna(subset="anonymous_id")


def merge_windows(
    today: pd.DataFrame, earlier: pd.DataFrame, identified_before: set[str], identified_today: pd.DataFrame, options: Options
) -> pd.DataFrame:
    """Returns which events each of the day's merges may take.

    today: the day's merges, as `classify` returns them; earlier: those of the days before (`MERGE_COLUMNS`); identified_before:
    the anonymous ids that were identified themselves before the day; identified_today: each distinct_id's first `$identify` of
    the day (`ORDER`). Returns a row for each merge that may take events, with `since`, the earliest time it may take, and the
    position of the previous merge, after which it takes (timestamp_before, uuid_before, event_before, distinct_id_before; null
    for the first). Meanwhile, `_own` names the `$identify` of the anonymous id itself: from then on it is not anonymous.
    """
    all_merges = pd.concat([earlier[MERGE_COLUMNS].assign(event="$identify"), today], ignore_index=True).sort_values(ORDER)
    windows = all_merges.join(all_merges.groupby("anonymous_id")[ORDER].shift().add_suffix("_before"))
    own_identify = identified_today.assign(anonymous_id=identified_today["distinct_id"]).add_suffix("_own")
    todays = windows[windows["key"].notna()]
    windows = todays.merge(own_identify, how="left", left_on="anonymous_id", right_on="anonymous_id_own")
    is_identified = windows["timestamp_own"].notna() & ~_after(windows, "_own", "")
    may_take = ~is_identified & ~windows["anonymous_id"].isin(identified_before)
    if options.anonymous_users == "emails":
        may_take &= windows["email"].notna()
    if options.anonymous_users == "profiles":
        may_take &= ~windows["personless"].astype(bool)
    windows = windows[may_take]
    return windows.assign(since=windows["timestamp"] - pd.Timedelta(days=options.stitch_anonymous_days))


def stitched(events: pd.DataFrame, earlier: pd.DataFrame, windows: pd.DataFrame, options: Options) -> pd.DataFrame:
    """Returns the events of one day that the windows of `merge_windows` take, with the identifier, key and email of the person.

    events: all events of that day of the windows' anonymous ids; earlier: what the days before it said about these.
    """
    classified = classify(events, earlier, options)
    held_back = classified[classified["outcome"].isin(HELD_BACK)].drop(
        columns=["anonymous_id", "key", "identifier", "email", "email_set_at"]
    )
    both = held_back.merge(windows, left_on="distinct_id", right_on="anonymous_id", suffixes=("", "_merge"))
    follows = both["timestamp_before"].isna() | _after(both, "", "_before")
    return both[follows & _after(both, "_merge", "") & (both["timestamp"] >= both["since"])]


def _after(frame: pd.DataFrame, one: str, other: str) -> pd.Series[bool]:
    """For each row: whether the event in the columns with the suffix `one` comes after that with the suffix `other`."""
    after, same = pd.Series(False, index=frame.index), pd.Series(True, index=frame.index)
    for column in ORDER:
        ours, theirs = frame[column + one], frame[column + other]
        after |= same & (ours > theirs)
        same &= ours == theirs
    return after
