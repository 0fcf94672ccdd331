"""R3 to R6, R14 and R22: which events are sent, which are held back or refused and why, and whose they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cio_pipeline.rules.columns import codes_of, matches, microseconds, utf8
from cio_pipeline.rules.distinct_ids import is_blank, is_placeholder
from cio_pipeline.rules.facts import Known, known_at_each_event
from cio_pipeline.rules.limits import MAX_EVENT_NAME_BYTES, MAX_ID_BYTES
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.values import UUID, is_email

NEVER_SENT = ("$create_alias", "$groupidentify")
"""R4: they are about ids and groups, and may be of no person at all."""

LATEST = 253_402_300_800_000_000
"""The year 10000, in microseconds since 1970."""

SENT = "sent"
REFUSED = "refused: "
FILTERED = "filtered: "
NOT_IDENTIFIED = FILTERED + "not identified yet (R5)"
NO_EMAIL = FILTERED + "no email yet (R5)"
PERSONLESS = FILTERED + "PostHog keeps no person for it (R5)"
KEY_NOT_SETTLED = FILTERED + "its email may still come today (R22)"
HELD_BACK = (NOT_IDENTIFIED, NO_EMAIL, PERSONLESS)


def classify(events: pd.DataFrame, known: pd.DataFrame, options: Options) -> pd.DataFrame:
    """The events frame with more columns.

    outcome: `sent`, `filtered: <reason>` or `refused: <reason>` (R15 counts by it); key: `id:<distinct_id>` or
    `email:<lower case>` (R6); identifier: as whose it is sent; email and email_set: the email that is known then or null, and
    when it was set (R1), as `facts.Known` has it. `known` is what earlier days said (`facts`).
    """
    facts = known_at_each_event(events, known)
    codes, distinct_ids = codes_of(events["distinct_id"])
    return events.assign(
        outcome=_outcomes(events, codes, distinct_ids, facts, options),
        key=_chosen(_keys(distinct_ids, facts, options), facts.emails if options.identify_by_email else codes),
        identifier=events["distinct_id"],
        email=_chosen(facts.texts, facts.emails),
        email_set=facts.emails_set,
    )


def _chosen(of: list[str | None], numbers: Any) -> Any:
    """The text of each number: numpy, or pandas' own kind of text."""
    return pa.array(of, pa.large_string()).take(pa.array(numbers)).to_pandas().array


def _outcomes(events: pd.DataFrame, codes: Any, distinct_ids: list[str], facts: Known, options: Options) -> Any:
    def of_ids(is_so: Callable[[str], bool]) -> Any:
        return np.array([is_so(text) for text in distinct_ids], dtype=bool)[codes]

    name_codes, names = codes_of(events["event"])

    def of_names(is_so: Callable[[str], bool]) -> Any:
        return np.array([is_so(text) for text in names], dtype=bool)[name_codes]

    times = microseconds(events["timestamp"])
    allowed = frozenset(options.event_allowlist)
    has_email = np.array([email is not None for email in facts.texts], dtype=bool)
    reasons: dict[str, Any] = {
        **{FILTERED + f"{never} is never sent (R4)": of_names(never.__eq__) for never in NEVER_SENT},
        FILTERED + "not on the allowlist (R3)": of_names(lambda name: bool(allowed) and name not in allowed),
        REFUSED + "distinct_id is blank (R14)": of_ids(is_blank),
        REFUSED + f"distinct_id is over {MAX_ID_BYTES} bytes (R14)": of_ids(lambda value: len(value.encode()) > MAX_ID_BYTES),
        REFUSED + "distinct_id is a placeholder (R14)": of_ids(is_placeholder),
        REFUSED + "name is blank (R14)": of_names(lambda name: not name.strip()),
        REFUSED + f"name is over {MAX_EVENT_NAME_BYTES} bytes (R14)": of_names(
            lambda name: len(name.strip().encode()) > MAX_EVENT_NAME_BYTES
        ),
        REFUSED + "uuid is no UUID (R14)": ~matches(utf8(events["uuid"]), rf"\A{UUID.pattern}\z"),
        REFUSED + "time is before 1970 or after 9999 (R14)": (times < 0) | (times >= LATEST),
        NOT_IDENTIFIED: _held_back(facts.identified, options, "identified"),
        NO_EMAIL: _held_back(has_email[facts.emails], options, "emails"),
        PERSONLESS: _held_back(~events["personless"].to_numpy(bool), options, "profiles"),
        KEY_NOT_SETTLED: ~has_email[facts.emails] & (options.day_is_open and options.identify_by_email),
    }
    first = np.select(list(reasons.values()), list(range(len(reasons))), default=len(reasons))
    return _chosen([*reasons, SENT], first)


def _held_back(passes: Any, options: Options, choice: str) -> Any:
    return ~passes & (options.anonymous_users == choice)


def _keys(distinct_ids: list[str], facts: Known, options: Options) -> list[str | None]:
    """R6: the keys by the numbers of the distinct_ids; and by those of the emails, where emails are keys. These begin with what
    is known of each distinct_id before its first event, which always is the email where the distinct_id is one."""
    keys = [f"email:{who.lower()}" if is_email(who) else f"id:{who}" for who in distinct_ids]
    if not options.identify_by_email:
        return [*keys]
    emails = [None if email is None else f"email:{email.lower()}" for email in facts.texts]
    return [email or key for email, key in zip(emails, [*keys, *emails[len(keys) :]], strict=True)]
