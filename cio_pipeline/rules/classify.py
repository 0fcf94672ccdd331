"""R3 to R6 and R14: which events are sent, which are held back or refused and why, and whose they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cio_pipeline.json_text import read_leniently
from cio_pipeline.rules.columns import ESCAPE, codes_of, matches, may_name, microseconds, to_list, utf8
from cio_pipeline.rules.distinct_ids import is_blank, is_placeholder
from cio_pipeline.rules.facts import known_at_each_event
from cio_pipeline.rules.limits import EVENT_NAME_BYTES, ID_BYTES
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.values import UUID, is_email

NEVER_SENT = ("$create_alias", "$groupidentify")
"""R4: they tell of ids and groups, and may be of no person at all."""

LATEST = 253_402_300_800_000_000
"""The year 10000, in microseconds since 1970."""

PERSONLESS_NAME = b'"$process_person_profile"'
PERSONLESS_TEXT = re.compile(re.escape(PERSONLESS_NAME) + rb"\s*:\s*false")

SENT = "sent"
REFUSED = "refused: "
FILTERED = "filtered: "
NOT_IDENTIFIED = FILTERED + "not identified yet (R5)"
NO_EMAIL = FILTERED + "no email yet (R5)"
PERSONLESS = FILTERED + "PostHog keeps no person for it (R5)"
HELD_BACK = (NOT_IDENTIFIED, NO_EMAIL, PERSONLESS)


def classify(events: pd.DataFrame, known: pd.DataFrame, options: Options) -> pd.DataFrame:
    """The events frame with more columns.

    outcome: `sent`, `filtered: <reason>` or `refused: <reason>` (R15 counts by it); key: `id:<distinct_id>` or
    `email:<lower case>` (R6); identifier: as whose it is sent; email and email_set: the email so far or None, and when it was
    set (R1); personless: whether PostHog keeps no person for it (R5). `known` is what earlier days taught (`facts`).
    """
    facts = known_at_each_event(events, known)
    facts["personless"] = _are_personless(events["properties"])
    codes, distinct_ids = codes_of(events["distinct_id"])
    return events.assign(
        outcome=_outcomes(events, codes, distinct_ids, facts, options),
        key=pd.Series(_keys(codes, distinct_ids, facts, options), index=events.index, dtype=object),
        identifier=events["distinct_id"],
        email=facts["email"],
        email_set=facts["email_set"],
        personless=facts["personless"],
    )


def _are_personless(properties: pd.Series[Any]) -> Any:
    """R5: which events say that PostHog is to keep no person for them: a numpy array of bool."""
    contents = utf8(properties)
    rows = may_name(contents, PERSONLESS_NAME)
    found = np.zeros(len(contents), dtype=bool)
    found[rows] = [_is_personless(content) for content in to_list(contents.take(pa.array(rows)))]
    return found


def _is_personless(content: bytes) -> bool:
    """Of JSON that may have the name. Only what says so anywhere, or has escapes, is parsed."""
    if not PERSONLESS_TEXT.search(content, max(0, content.find(PERSONLESS_NAME))) and ESCAPE not in content:
        return False
    return read_leniently(content).get("$process_person_profile") is False


def _outcomes(events: pd.DataFrame, codes: Any, distinct_ids: list[str], facts: pd.DataFrame, options: Options) -> Any:
    def of_ids(is_so: Callable[[str], bool]) -> Any:
        return np.array([is_so(text) for text in distinct_ids], dtype=bool)[codes]

    name_codes, names = codes_of(events["event"])

    def of_names(is_so: Callable[[str], bool]) -> Any:
        return np.array([is_so(text) for text in names], dtype=bool)[name_codes]

    times = microseconds(events["timestamp"])
    allowed = frozenset(options.event_allowlist)
    reasons: dict[str, Any] = {
        **{FILTERED + f"{never} is never sent (R4)": of_names(never.__eq__) for never in NEVER_SENT},
        FILTERED + "not on the allowlist (R3)": of_names(lambda name: bool(allowed) and name not in allowed),
        REFUSED + "distinct_id is blank (R14)": of_ids(is_blank),
        REFUSED + f"distinct_id is over {ID_BYTES} bytes (R14)": of_ids(lambda value: len(value.encode()) > ID_BYTES),
        REFUSED + "distinct_id is a placeholder (R14)": of_ids(is_placeholder),
        REFUSED + "name is blank (R14)": of_names(lambda name: not name.strip()),
        REFUSED + f"name is over {EVENT_NAME_BYTES} bytes (R14)": of_names(
            lambda name: len(name.strip().encode()) > EVENT_NAME_BYTES
        ),
        REFUSED + "uuid is no UUID (R14)": ~matches(utf8(events["uuid"]), rf"\A{UUID.pattern}\z"),
        REFUSED + "time is before 1970 or after 9999 (R14)": (times < 0) | (times >= LATEST),
        NOT_IDENTIFIED: _held_back(facts["identified"], options, "identified"),
        NO_EMAIL: _held_back(facts["email"].notna(), options, "emails"),
        PERSONLESS: _held_back(~facts["personless"], options, "profiles"),
    }
    first = np.select(list(reasons.values()), list(range(len(reasons))), default=len(reasons))
    return np.array([*reasons, SENT], dtype=object)[first]


def _held_back(passes: pd.Series[Any], options: Options, choice: str) -> Any:
    return ~passes.to_numpy(bool) & (options.anonymous_users == choice)


def _keys(codes: Any, distinct_ids: list[str], facts: pd.DataFrame, options: Options) -> Any:
    """R6. The email known at an event is always there where the distinct_id is an email."""
    keys = np.array([f"email:{who.lower()}" if is_email(who) else f"id:{who}" for who in distinct_ids], dtype=object)[codes]
    if options.identify_by_email:
        emails = facts["email"].to_numpy(object)
        known = facts["email"].notna().to_numpy(bool)
        keys[known] = [f"email:{email.lower()}" for email in emails[known]]
    return keys
