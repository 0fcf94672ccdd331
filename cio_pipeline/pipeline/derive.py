"""From a day's events to what will be sent. It knows the rules and where things are kept, but not Dagster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from hashlib import sha256

import pandas as pd
import pyarrow as pa

from cio_pipeline.pipeline.accounting import DayCounts
from cio_pipeline.pipeline.by_customer import days_stitched, shards_by_customer
from cio_pipeline.pipeline.classification import DerivationInput, classified_shard, earlier_facts_of_shard
from cio_pipeline.pipeline.events import code_hash
from cio_pipeline.rules.classify import REFUSED, TO_SEND
from cio_pipeline.rules.customers import CUSTOMERS
from cio_pipeline.rules.facts import in_order
from cio_pipeline.rules.operations import EVENTS, REJECTS, derived_tables
from cio_pipeline.rules.options import Options
from cio_pipeline.state.identities import Identities
from cio_pipeline.tables.files import temporary_folder
from cio_pipeline.tables.shuffle import Shard
from cio_pipeline.tables.tables import Tables
from cio_pipeline.tables.versions import NewVersion, ShardWriter, WrittenShard
from cio_pipeline.worker_pool import map_shards

SETTINGS, COUNTS = "settings", "counts"
"""What is stored with the derived tables: `settings_of` the options, and what became of the day's events (`DayCounts`)."""

EXTRACTED, EARLIER = "extracted", "earlier"
"""What they were made of: the content hash of `posthog_events`, and the fingerprint of what earlier days contributed."""

DERIVED = {"customers": CUSTOMERS, "events": EVENTS, "rejects": REJECTS}

EMAIL_IN_ANOTHER_CASE = "attributes named email in another case (Email, EMAIL), which do not count as the email (R1)"
STITCHED = "sent: stitched from earlier days (R16)"


def derive_day(
    day: str,
    tables: Tables,
    identities: Identities,
    options: Options,
    *,
    workers: int = 1,
    into: Tables | None = None,
    until: datetime | None = None,
) -> DayCounts:
    """Writes `customers`, `events` and `rejects` of a day. Returns what became of its events (R15).

    Does nothing if events, identities, options and code are unchanged. into: where to write instead of the day's own tables;
    until: leaves out the events from then on, as a run with `hold_recent_events` does, and needs `into`.
    """
    if until is not None and into is None:
        raise ValueError("A part of a day is not stored as the day's tables: `until` needs `into`.")
    earlier = identities.inputs_fingerprint(day, options.stitch_anonymous_days)
    fingerprint = _fingerprint(day, tables, earlier, options)
    day_counts = _derived_before(day, tables, fingerprint) if into is None else None
    if day_counts is None:
        day_input = DerivationInput(day, tables, tables.version("posthog_events", day), options, until)
        with (into or tables).replace(day, DERIVED) as new:
            day_counts = _derive(day_input, identities, new, workers)
            made_of = {EXTRACTED: day_input.version.content_hash, EARLIER: earlier, "fingerprint": fingerprint}
            new.metadata = {**made_of, SETTINGS: settings_of(options), COUNTS: day_counts.to_json()}
    if into is None:
        identities.mark_derived(day, earlier)
    return day_counts


def is_current(day: str, tables: Tables, identities: Identities, options: Options) -> bool:
    """Returns whether the day's tables were made of its current `posthog_events` and, if earlier days affect what is sent or
    under which key, of what these say now. Raises `NotMaterialized`."""
    made_of = tables.version("events", day).metadata
    if made_of.get(EXTRACTED) != tables.version("posthog_events", day).content_hash:
        return False
    stitched_days = options.stitch_anonymous_days
    return not options.needs_earlier_days or made_of.get(EARLIER) == identities.inputs_fingerprint(day, stitched_days)


def settings_of(options: Options) -> str:
    """Returns the settings that must still hold when the tables are delivered: all but CIO_ALLOW_CONSENT, because a delivery
    applies R19 again."""
    return repr(replace(options, allow_consent="No"))


def _fingerprint(day: str, tables: Tables, earlier: str, options: Options) -> str:
    """Returns the hash of all that the day's tables are made of: events, what earlier days said, options and code."""
    events = [tables.version("posthog_events", day)]
    if options.stitches:
        days = days_stitched(day, options)[:-1]
        events += [version for one in days if (version := tables.find_version("posthog_events", one))]
    return sha256(repr(([version.content_hash for version in events], earlier, options, code_hash())).encode()).hexdigest()


def _derived_before(day: str, tables: Tables, fingerprint: str) -> DayCounts | None:
    """Returns what became of the day's events, if its tables have this fingerprint and are intact."""
    version = tables.find_version("customers", day)
    if version is None or version.metadata.get("fingerprint") != fingerprint:
        return None
    are_intact = all(tables.is_intact(name, day) for name in DERIVED)
    return DayCounts.from_json(version.metadata[COUNTS]) if are_intact else None


def _derive(day_input: DerivationInput, identities: Identities, new: NewVersion, workers: int) -> DayCounts:
    """Writes the shards of a new version of the day's tables. Returns what became of its events."""
    what = f"{day_input.day}: derived"
    with temporary_folder() as folder:
        if day_input.options.identify_by_email or day_input.options.stitches:
            shards, day_counts = shards_by_customer(day_input, identities, folder, workers)
            by_customer = ((day_input, new.writer, number, shard) for number, shard in enumerate(shards))
            results = map_shards(_write_shard_by_customer, by_customer, len(shards), workers, what)
        else:
            day_counts, number = DayCounts(), day_input.version.shards
            as_extracted = (
                (day_input, new.writer, at, earlier_facts_of_shard(day_input, at, identities)) for at in range(number)
            )
            results = map_shards(_write_shard_as_extracted, as_extracted, number, workers, what)
        with closing(results):
            for written, of_shard in results:
                new.shards.append(written)
                day_counts.add(of_shard)
    day_counts.notes = +day_counts.notes
    return day_counts


def _write_shard_as_extracted(
    day_input: DerivationInput, writer: ShardWriter, shard: int, earlier: pd.DataFrame
) -> tuple[WrittenShard, DayCounts]:
    """Writes the tables of a shard whose customers are its distinct_ids."""
    return _write(day_input, writer, shard, lambda: classified_shard(day_input, shard, earlier), outcomes_are_counted=False)


def _write_shard_by_customer(
    day_input: DerivationInput, writer: ShardWriter, number: int, shard: Shard
) -> tuple[WrittenShard, DayCounts]:
    """Writes the tables of a shard by customer, whose outcomes are counted already."""
    return _write(day_input, writer, number, lambda: shard.read().to_pandas(), outcomes_are_counted=True)


def _write(
    day_input: DerivationInput,
    writer: ShardWriter,
    number: int,
    read: Callable[[], pd.DataFrame],
    *,
    outcomes_are_counted: bool,
) -> tuple[WrittenShard, DayCounts]:
    """Writes the tables of the events that `read` returns, as `classify` does. Each intermediate table is deleted as soon as
    the next is made: a shard with one very active person is large."""
    classified = read()
    day_counts = DayCounts() if outcomes_are_counted else DayCounts(Counter(classified["outcome"].tolist()))
    refused = _refused(classified)
    to_send = _to_send(classified)
    del classified
    tables = derived_tables(to_send, day_input.options)
    del to_send
    day_counts.notes[EMAIL_IN_ANOTHER_CASE] += tables.emails_in_another_case
    _count_rejects(day_input.day, tables.rejects.to_pandas(), day_counts)
    rejects = pa.concat_tables([pa.Table.from_pandas(refused, REJECTS, preserve_index=False), tables.rejects])
    return writer.write(number, {"customers": tables.customers, "events": tables.events, "rejects": rejects}), day_counts


def _to_send(classified: pd.DataFrame) -> pd.DataFrame:
    """Returns the events to send, by time: taken once, in their order."""
    order = in_order(classified)
    are_sent = (classified["outcome"] == TO_SEND).to_numpy(bool)[order]
    return classified.take(order[are_sent]).reset_index(drop=True)


def _refused(rows: pd.DataFrame) -> pd.DataFrame:
    refused = rows[rows["outcome"].str.startswith(REFUSED)]
    reasons = refused["outcome"].str.removeprefix(REFUSED)
    return refused.assign(what="event", name=refused["event"], reason=reasons)[REJECTS.names]


def _count_rejects(day: str, rejects: pd.DataFrame, day_counts: DayCounts) -> None:
    """Counts events that were to be sent, but were refused for their content, under the reason instead of `sent`."""
    day_counts.left_out.update(rejects.loc[rejects["what"] != "event", "reason"])
    refused = rejects[rejects["what"] == "event"]
    earlier = refused["timestamp"] < pd.Timestamp(day, tz="UTC")
    day_counts.stitched -= int(earlier.sum())
    day_counts.outcomes.update(REFUSED + refused.loc[~earlier, "reason"].astype(object))
    day_counts.outcomes[TO_SEND] -= int((~earlier).sum())
