"""R20: the events whose `$set` PostHog has dropped, and what an earlier extraction still knows of it.

PostHog keeps `$set` and `$set_once` of a stored event for 60 days, the person's properties for ever.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pandas as pd

from cio_pipeline.json_text import loads
from cio_pipeline.posthog.source import EVER, AttributesFrom
from cio_pipeline.rules.facts import ORDER
from cio_pipeline.rules.values import is_uuid

KEPT = timedelta(days=59)
"""An event that is no older still has its `$set`, if it ever had one."""

DROPPED = timedelta(days=61)
"""An event that is older and still has its `$set` shows that this PostHog drops none."""

SETS = ("$set", "$set_once")
REMEMBERED = (*SETS, "$unset")
IDENTITY = ["event", "distinct_id", "uuid"]
"""What tells an event from others of its day."""

Moment = tuple[Any, ...]
"""An event's place in the order of `facts.ORDER`."""


def reaches_back(start: datetime, now: datetime) -> bool:
    """Whether a window that begins then may hold events whose `$set` was dropped."""
    return start < now - KEPT


def may_teach(attributes_from: AttributesFrom, start: datetime) -> tuple[str, ...]:
    """The columns of a window's events that may hold an email to learn (R1): for an old window, the person's properties, too.

    So it is with `set` as well: an event that had its `$set` when the day was extracted before is to be found again.
    """
    if attributes_from == "person":
        return ("person_properties",)
    return ("properties", "person_properties") if reaches_back(start, datetime.now(timezone.utc)) else ("properties",)


def first_with_set(events: pd.DataFrame) -> Moment | None:
    """The place of the first event that has a `$set` or `$set_once`, or None. One whose time could not be read says nothing."""
    timed = events.loc[events["timestamp"] >= EVER, [*ORDER, "properties"]]
    may = timed.loc[[_names(text, SETS) for text in timed["properties"]]]
    for *moment, text in may.sort_values(ORDER).itertuples(index=False):
        if has_set(text):
            return tuple(moment)
    return None


def has_set(properties: Any) -> bool:
    """Whether properties (JSON text) have a `$set` or `$set_once` that is an object and not empty."""
    return _names(properties, SETS) and any(_is_given(name, _object(properties).get(name)) for name in SETS)


def lost_of_a_day(events: pd.DataFrame, first: Moment | None, now: datetime) -> list[bool]:
    """Which of a day's events have lost their `$set`; `first` is the day's first event that has one (R20).

    `first` is by what PostHog gives now. Lost are the old ones before it, unless it is so old that this PostHog cannot drop
    any. What an earlier extraction decided stays: an event that took the person's properties (the column `took`) does so
    again, one that it had when `$set` was still there (the column `stays`) does not.
    """
    drops_none = first is not None and first[0] < now - DROPPED
    places = zip(*(events[name] for name in ORDER), strict=True)
    before = [not drops_none and (first is None or place < first) for place in places]
    old = (events["timestamp"] < now - KEPT).tolist()
    classified = zip(events["took"].tolist(), events["stays"].tolist(), events["properties"].tolist(), strict=True)
    lost = [
        (took and not has_set(text)) or (is_before and not stays)
        for is_before, (took, stays, text) in zip(before, classified, strict=True)
    ]
    return [is_old and is_lost for is_old, is_lost in zip(old, lost, strict=True)]


def lost_of_the_history(events: pd.DataFrame, now: datetime) -> list[bool]:
    """Which events of the history have lost their `$set`: each old one that has none (R18)."""
    old = (events["timestamp"] < now - KEPT).tolist()
    return [is_old and not has_set(text) for is_old, text in zip(old, events["properties"].tolist(), strict=True)]


def known(events: pd.DataFrame) -> pd.DataFrame:
    """The events of an earlier extraction, with the properties of those alone that a later one may lack: a `$set`."""
    texts = [text if _names(text, REMEMBERED) else None for text in events["properties"].tolist()]
    return events.assign(properties=pd.Series(texts, events.index, dtype=object))


def any_has_set(events: pd.DataFrame) -> bool:
    """Whether any of the events has a `$set` or `$set_once`: PostHog had not dropped all of theirs when they were extracted."""
    return any(has_set(text) for text in events["properties"].tolist())


def took_all(events: pd.DataFrame) -> bool:
    """Whether an earlier extraction took the person's properties whatever the event's `$set`, as `person` has it."""
    taken = events.loc[events["person_properties"].notna(), "properties"]
    return any(has_set(text) for text in taken)


def remembered(events: pd.DataFrame, before: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The events with the `$set`, `$set_once` and `$unset` that they had in `before` and lack now, and how many got any.

    `before` has `IDENTITY`, timestamp, properties and person_properties of an earlier extraction. The result has two columns
    more: whether the event was there (`was_there`), and whether it had taken the person's properties (`took`), which it keeps
    where there are none now.
    """
    keys = ["day", *IDENTITY]
    old = before.assign(day=_days(before), was_there=True).drop(columns="timestamp").drop_duplicates(keys)
    both = events.assign(day=_days(events))[keys].merge(old, on=keys, how="left")
    texts, counted = [], 0
    for new, then in zip(events["properties"].tolist(), both["properties"].tolist(), strict=True):
        text = new if new == then or not _names(then, REMEMBERED) else _with(new, then)
        counted += text is not new
        texts.append(text)
    took = both["person_properties"].notna()
    persons = events["person_properties"].astype(object).where(events["person_properties"].notna(), both["person_properties"])
    had = {"took": took, "was_there": both["was_there"].notna()}
    return events.assign(properties=pd.Series(texts, dtype=object), person_properties=persons, **had), counted


def _days(events: pd.DataFrame) -> pd.Series[Any]:
    """Each event's day; its time where its uuid is none, and so does not tell it from others of the day."""
    have_uuids = pd.Series([is_uuid(text) for text in events["uuid"].tolist()], events.index, dtype=bool)
    days: pd.Series[Any] = events["timestamp"].dt.floor("D").where(have_uuids, events["timestamp"])
    return days


def gives_any(events: pd.DataFrame) -> bool:
    """Whether any event gives an attribute: by the person's properties where it has them, else by its `$set`."""
    for properties, person in zip(events["properties"].tolist(), events["person_properties"].tolist(), strict=True):
        if isinstance(person, str):
            if len(person) > 2 and _object(person):
                return True
        elif _names(properties, ("$set",)) and _is_given("$set", _object(properties).get("$set")):
            return True
    return False


def taking(events: pd.DataFrame, taken: list[bool] | bool) -> pd.DataFrame:
    """The events with the person's properties where they are to be taken, and null elsewhere."""
    persons = events["person_properties"].astype(object)
    return events.assign(person_properties=persons.where(persons.notna() & pd.Series(taken, index=events.index), None))


def _with(new: Any, old: str) -> Any:
    """The new text with what the old one had and it lacks; as it is where it is no object."""
    text = new if isinstance(new, str) and new.strip() else "{}"
    now, had = _object(text), _object(old)
    missing = {name: had[name] for name in REMEMBERED if _is_given(name, had.get(name)) and not _is_given(name, now.get(name))}
    if not missing or not text.lstrip().startswith("{") or (not now and text.strip().strip("{} \t\r\n")):
        return new
    if now.keys() & missing.keys():
        return json.dumps({**now, **missing})
    return f"{text.rstrip()[:-1]}{',' if now else ''}{json.dumps(missing)[1:]}"


def _is_given(name: str, value: Any) -> bool:
    return bool(value) and isinstance(value, (dict, list) if name == "$unset" else dict)


def _names(text: Any, names: tuple[str, ...]) -> bool:
    """Parsing is dear: only text that names one of them is parsed."""
    return isinstance(text, str) and any(name in text for name in names)


def _object(text: str) -> dict[str, Any]:
    try:
        found = loads(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
