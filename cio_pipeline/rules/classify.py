"""R3 to R6, R14 and R22: which events are sent, filtered or refused, why, and under which customer's key."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa

from cio_pipeline.rules.columns import Bools, Integers, factorize, matches, microseconds, utf8
from cio_pipeline.rules.distinct_ids import is_blank, is_placeholder
from cio_pipeline.rules.facts import Known, known_at_each_event
from cio_pipeline.rules.limits import MAX_EVENT_NAME_BYTES, MAX_ID_BYTES
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.values import UUID, is_email

NEVER_SENT = ("$create_alias", "$groupidentify")
"""R4: they are about ids and groups, and perhaps about no person at all."""

LATEST = 253_402_300_800_000_000
"""The year 10000, in microseconds since 1970."""

TO_SEND = "sent"
"""It says nothing about whether a run has delivered the event yet: the ledger does."""

REFUSED = "refused: "
FILTERED = "filtered: "
NOT_IDENTIFIED = FILTERED + "not identified yet (R5)"
NO_EMAIL = FILTERED + "no email yet (R5)"
PERSONLESS = FILTERED + "PostHog keeps no person for it (R5)"
KEY_NOT_SETTLED = FILTERED + "its email may still come today (R22)"
HELD_BACK = (NOT_IDENTIFIED, NO_EMAIL, PERSONLESS)


def classify(events: pd.DataFrame, earlier: pd.DataFrame, options: Options) -> pd.DataFrame:
    """Returns the events frame (`facts`; also personless) with these columns added.

    outcome: `sent`, `filtered: <reason>` or `refused: <reason>` (R15 counts them); key: the customer's, `id:<distinct_id>` or
    `email:<in lower case>` (R6); identifier: the distinct_id, for the attribute of this name (R7); email, which may be null,
    and email_set_at: the email known by then, and when it was set (R1, `facts.Known`). `earlier` is what all earlier days said,
    as `facts.learn` returns it.
    """
    known = known_at_each_event(events, earlier)
    codes, distinct_ids = factorize(events["distinct_id"])
    return events.assign(
        outcome=_outcomes(events, codes, distinct_ids, known, options),
        key=_texts_of(_keys(distinct_ids, known, options), known.email_codes if options.identify_by_email else codes),
        identifier=events["distinct_id"],
        email=_texts_of(known.emails, known.email_codes),
        email_set_at=known.emails_set_at,
    )


def _texts_of(uniques: list[str | None], codes: Integers) -> pd.api.extensions.ExtensionArray:
    """Returns the text of each code."""
    return pa.array(uniques, pa.large_string()).take(pa.array(codes)).to_pandas().array


def _outcomes(
    events: pd.DataFrame, codes: Integers, distinct_ids: list[str], known: Known, options: Options
) -> pd.api.extensions.ExtensionArray:
    def where_id(is_so: Callable[[str], bool]) -> Bools:
        return np.array([is_so(text) for text in distinct_ids], dtype=bool)[codes]

    name_codes, names = factorize(events["event"])

    def where_name(is_so: Callable[[str], bool]) -> Bools:
        return np.array([is_so(text) for text in names], dtype=bool)[name_codes]

    times = microseconds(events["timestamp"])
    allowed = frozenset(options.event_allowlist)
    has_email = np.array([email is not None for email in known.emails], dtype=bool)
    reasons: dict[str, Bools] = {
        **{FILTERED + f"{never} is never sent (R4)": where_name(never.__eq__) for never in NEVER_SENT},
        FILTERED + "not on the allowlist (R3)": where_name(lambda name: bool(allowed) and name not in allowed),
        REFUSED + "distinct_id is blank (R14)": where_id(is_blank),
        REFUSED + f"distinct_id is over {MAX_ID_BYTES} bytes (R14)": where_id(lambda value: len(value.encode()) > MAX_ID_BYTES),
        REFUSED + "distinct_id is a placeholder (R14)": where_id(is_placeholder),
        REFUSED + "name is blank (R14)": where_name(lambda name: not name.strip()),
        REFUSED + f"name is over {MAX_EVENT_NAME_BYTES} bytes (R14)": where_name(
            lambda name: len(name.strip().encode()) > MAX_EVENT_NAME_BYTES
        ),
        REFUSED + "uuid is not a UUID (R14)": ~matches(utf8(events["uuid"]), rf"\A{UUID.pattern}\z"),
        REFUSED + "time is before 1970 or after 9999 (R14)": (times < 0) | (times >= LATEST),
        NOT_IDENTIFIED: _held_back(known.identified, options, "identified"),
        NO_EMAIL: _held_back(has_email[known.email_codes], options, "emails"),
        PERSONLESS: _held_back(~events["personless"].to_numpy(bool), options, "profiles"),
        KEY_NOT_SETTLED: ~has_email[known.email_codes] & (options.day_is_open and options.identify_by_email),
    }
    # The first reason that applies counts (R15).
    first = np.select(list(reasons.values()), list(range(len(reasons))), default=len(reasons))
    return _texts_of([*reasons, TO_SEND], first)


def _held_back(passes: Bools, options: Options, choice: str) -> Bools:
    return ~passes & (options.anonymous_users == choice)


def _keys(distinct_ids: list[str], known: Known, options: Options) -> list[str | None]:
    """R6: returns one key for each distinct_id or, with identify by email, for each of `known.emails`: there, those without an
    email, which are among the first, have the key of their distinct_id.
    """
    keys = [f"email:{who.lower()}" if is_email(who) else f"id:{who}" for who in distinct_ids]
    if not options.identify_by_email:
        return [*keys]
    emails = [None if email is None else f"email:{email.lower()}" for email in known.emails]
    return [email or key for email, key in zip(emails, [*keys, *emails[len(keys) :]], strict=True)]
