"""A day's way from PostHog's events to what will be sent. It knows the rules and where things are kept, but not Dagster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import pandas as pd
import pyarrow as pa

from cio_pipeline.posthog.source import EVENT_SCHEMA
from cio_pipeline.rules.classify import REFUSED, SENT, classify
from cio_pipeline.rules.distinct_ids import usable
from cio_pipeline.rules.facts import ORDER, learn_with_ties
from cio_pipeline.rules.operations import build, emails_in_another_case
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.stitching import merge_windows, merges, stitched
from cio_pipeline.state.identities import HISTORY, Identities, Learned
from cio_pipeline.tables.files import temporary_folder
from cio_pipeline.tables.tables import NotMaterialized, Tables

TEXT, TIME = pa.string(), pa.timestamp("us", "UTC")
TO_SEND = pa.schema(
    [
        *EVENT_SCHEMA,
        *((name, TEXT) for name in ("key", "identifier", "email")),
        ("email_set", pa.int64()),
        ("personless", pa.bool_()),
    ]
)
CUSTOMERS = pa.schema(
    [
        *(("key", TEXT), ("part", pa.int32()), ("attributes", pa.int32()), ("timestamp", TIME), ("times", TEXT)),
        *(("operation", TEXT), ("state", pa.binary()), ("identifier", TEXT), ("email", TEXT), ("consent", pa.bool_())),
    ]
)
EVENTS = pa.schema(
    [
        *((name, TEXT) for name in ("uuid", "ulid", "key", "distinct_id", "name", "type")),
        ("timestamp", TIME),
        *((name, TEXT) for name in ("call", "operation")),
        ("personless", pa.bool_()),
    ]
)
REJECTS = pa.schema(
    [
        *((name, TEXT) for name in ("uuid", "distinct_id", "event")),
        ("timestamp", TIME),
        *((name, TEXT) for name in ("what", "name", "reason")),
    ]
)

DERIVED = {"customers": CUSTOMERS, "events": EVENTS, "rejects": REJECTS}

EMAIL_IN_ANOTHER_CASE = "attributes whose name is email in another case: they are no email (R1)"
STITCHED = "sent: stitched from earlier days (R16)"


@dataclass
class Account:
    """What became of a day. outcomes: events by outcome; stitched: events of earlier days that are sent with this day's;
    left_out: attributes and properties by reason; notes: what else to know of what is sent."""

    outcomes: Counter[str] = field(default_factory=Counter)
    stitched: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


def learned_under(attributes_from: str) -> str:
    """The setting that what is learned depends on, by its value."""
    return f"CIO_ATTRIBUTES_FROM={attributes_from}"


def learn_day(day: str, setting: str, tables: Tables, identities: Identities) -> Counter[str]:
    """Keeps what the day's `posthog_events` teach (R1), under a setting; gives how many people, identified ones, emails and
    merges."""
    return _learn(day, setting, "posthog_events", tables, identities)


def learn_history(setting: str, tables: Tables, identities: Identities) -> Counter[str]:
    """Keeps what the events of `identity_history` teach (R18), under a setting; counts as `learn_day`."""
    return _learn(HISTORY, setting, "identity_history", tables, identities)


def _learn(day: str, setting: str, table: str, tables: Tables, identities: Identities) -> Counter[str]:
    counts: Counter[str] = Counter()
    events = tables.version(table, day).rows

    def learned() -> Iterator[Learned]:
        for shard in tables.read(table, day):
            facts, ties = learn_with_ties(shard)
            part = Learned(facts, merges(shard), ties)
            counts["people"] += len(part.facts)
            counts["identified"] += int(part.facts["identified"].sum())
            counts["emails"] += int(part.facts["email"].notna().sum())
            counts["anonymous ids named"] += len(part.merges)
            yield part

    identities.replace(day, setting, events, learned())
    return counts


def derive_day(
    day: str,
    tables: Tables,
    identities: Identities,
    options: Options,
    until: datetime | None = None,
    into: Tables | None = None,
) -> Account:
    """Writes the day's tables `customers`, `events` and `rejects`; gives what became of its events (R15).

    `until` and `into` write them elsewhere, as if the day had ended then: what a delivery sends that holds recent events.
    """
    account, to = Account(), into or tables
    shards = tables.version("posthog_events", day).shards
    known = identities.fingerprint_before(day, options.stitch_anonymous_days)
    with ExitStack() as stack:
        sent = Tables(str(stack.enter_context(temporary_folder())), temporary=True)
        writers = stack.enter_context(to.replace_together(day, DERIVED, shards))
        customers, events, rejects = writers["customers"], writers["events"], writers["rejects"]
        with sent.replace("sent", day, TO_SEND, shards) as to_send:
            for rows in _to_send(day, tables, identities, options, account, until):
                rejects.add(_refused(rows), by="uuid")
                to_send.add(rows[rows["outcome"] == SENT], by="key")
            to_send.finish_each(lambda shard: shard.sort_values(ORDER, ignore_index=True))
        for shard in sent.read("sent", day):
            made = build(shard, options)
            customers.add(made.customers, by="key")
            events.add(made.events, by="key")
            rejects.add(made.rejects, by="uuid")
            account.notes[EMAIL_IN_ANOTHER_CASE] += emails_in_another_case(made.customers)
            _count_rejects(day, made.rejects, account)
    account.notes = +account.notes
    if into is None:
        identities.mark_derived(day, known)
    return account


def _to_send(
    day: str, tables: Tables, identities: Identities, options: Options, account: Account, until: datetime | None
) -> Iterator[pd.DataFrame]:
    """The day's events with their outcomes, then those that its merges take (R16), whose outcome is `sent`."""
    named: list[pd.DataFrame] = []
    identified: list[pd.DataFrame] = []
    for whole in tables.read("posthog_events", day):
        shard = whole if until is None else whole[whole["timestamp"] < until]
        classified = classify(shard, _known(day, shard, identities), options)
        account.outcomes.update(classified["outcome"])
        if options.stitches:
            named.append(merges(classified).drop(columns=["properties", "person_properties"]))
            own = classified.loc[classified["event"] == "$identify", ORDER]
            identified.append(own.drop_duplicates("distinct_id"))
        yield classified
    if options.stitches:
        yield from _stitched(day, tables, identities, options, account, pd.concat(named), pd.concat(identified))


def _known(day: str, events: pd.DataFrame, identities: Identities) -> pd.DataFrame:
    """What earlier days taught of whom these events are. Of ids that R14 refuses there is nothing, and they may be too long
    for an index of the database."""
    return identities.before(day, [who for who in events["distinct_id"].unique().tolist() if usable(who)])


def _stitched(
    day: str,
    tables: Tables,
    identities: Identities,
    options: Options,
    account: Account,
    named: pd.DataFrame,
    identified: pd.DataFrame,
) -> Iterator[pd.DataFrame]:
    """R16: the held-back events of this and the days before that the day's merges take."""
    anonymous_ids = named["anonymous_id"].unique().tolist()
    days = [str(date.fromisoformat(day) - timedelta(days=back)) for back in range(options.stitch_anonymous_days, -1, -1)]
    earlier = identities.merges_between(days[0], day, anonymous_ids)
    known = identities.before(day, anonymous_ids)
    before = set(known.loc[known["identified"], "distinct_id"])
    found = merge_windows(named, earlier, before, identified.drop_duplicates("distinct_id"), options)
    for one in _there(days, tables, identities) if len(found) else []:
        for events in tables.rows("posthog_events", one, "distinct_id", found["anonymous_id"].unique().tolist()):
            rows = stitched(events, _known(one, events, identities), found, options)
            if one == day:
                account.outcomes.subtract(rows["outcome"])
                account.outcomes[SENT] += len(rows)
            else:
                account.stitched += len(rows)
            yield rows.assign(outcome=SENT)


def _there(days: list[str], tables: Tables, identities: Identities) -> list[str]:
    """Those of the days that have events. Raises `NotMaterialized` where a day had some that are gone."""
    absent = {day for day in days if tables.current("posthog_events", day) is None}
    gone = absent - set(identities.unlearned(sorted(absent)))
    if gone:
        raise NotMaterialized(
            f"posthog_events of {', '.join(sorted(gone))} is not there any more, though it was once, and"
            " CIO_STITCH_ANONYMOUS_DAYS needs it: extract these days again (materialize posthog_events), then this one."
        )
    return [day for day in days if day not in absent]


def _refused(rows: pd.DataFrame) -> pd.DataFrame:
    refused = rows[rows["outcome"].str.startswith(REFUSED)]
    reasons = refused["outcome"].str.removeprefix(REFUSED)
    return refused.assign(what="event", name=refused["event"], reason=reasons)[REJECTS.names]


def _count_rejects(day: str, rejects: pd.DataFrame, account: Account) -> None:
    """What was to be sent and was refused after all moves from `sent` to its reason."""
    account.left_out.update(rejects.loc[rejects["what"] != "event", "reason"])
    refused = rejects[rejects["what"] == "event"]
    earlier = refused["timestamp"] < pd.Timestamp(day, tz="UTC")
    account.stitched -= int(earlier.sum())
    account.outcomes.update(REFUSED + refused.loc[~earlier, "reason"].astype(object))
    account.outcomes[SENT] -= int((~earlier).sum())
