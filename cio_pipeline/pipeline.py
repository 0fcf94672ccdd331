"""From a day's events to what will be sent. It knows the rules and where things are kept, but not Dagster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.accounting import Account
from cio_pipeline.events import KEPT_EVENTS, code_hash, events_of, shard_of_events
from cio_pipeline.rules.classify import FILTERED, REFUSED, SENT, classify
from cio_pipeline.rules.customers import CUSTOMERS
from cio_pipeline.rules.distinct_ids import usable
from cio_pipeline.rules.facts import ORDER, in_order
from cio_pipeline.rules.operations import EVENTS, REJECTS, build
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.stitching import merge_windows, merges, stitched
from cio_pipeline.state.identities import Identities
from cio_pipeline.tables import shuffle
from cio_pipeline.tables.files import temporary_folder
from cio_pipeline.tables.shuffle import Shard
from cio_pipeline.tables.tables import NotMaterialized, ShardWriter, Tables, Version, Written
from cio_pipeline.worker_pool import map_shards

TEXT, TIME = pa.string(), pa.timestamp("us", "UTC")
CLASSIFIED = [name for name in KEPT_EVENTS.names if name != "created_at"]
TO_SEND = pa.schema(
    [
        *(KEPT_EVENTS.field(name) for name in ("uuid", "event", "distinct_id", "timestamp", "properties", "person_properties")),
        *(KEPT_EVENTS.field(name) for name in ("personless", "plain")),
        *((name, TEXT) for name in ("key", "identifier", "email")),
        ("email_set", pa.int64()),
        ("outcome", TEXT),
    ]
)
DERIVED = {"customers": CUSTOMERS, "events": EVENTS, "rejects": REJECTS}

EMAIL_IN_ANOTHER_CASE = "attributes whose name is email in another case: they are no email (R1)"
STITCHED = "sent: stitched from earlier days (R16)"


def derive_day(
    day: str,
    tables: Tables,
    identities: Identities,
    options: Options,
    until: datetime | None = None,
    into: Tables | None = None,
    workers: int = 1,
) -> Account:
    """Writes the day's tables `customers`, `events` and `rejects`; gives what became of its events (R15).

    Where the tables were made of the same, they stay. `until` and `into` write them elsewhere, as if the day had ended then:
    what a delivery sends that holds recent events.
    """
    known = identities.fingerprint_before(day, options.stitch_anonymous_days)
    fingerprint = _fingerprint(day, tables, known, options)
    account = _derived_before(day, tables, fingerprint) if into is None else None
    if account is None:
        account = _derive(day, tables, identities, options, until, into or tables, workers, fingerprint)
    if into is None:
        identities.mark_derived(day, known)
    return account


def _fingerprint(day: str, tables: Tables, known: str, options: Options) -> str:
    """The hash of all that the day's tables are made of: events, identities, options and code."""
    events = [tables.version("posthog_events", day)]
    if options.stitches:
        events += [found for one in _days_stitched(day, options)[:-1] if (found := tables.current("posthog_events", one))]
    return sha256(repr(([version.content for version in events], known, options, code_hash())).encode()).hexdigest()


def _derived_before(day: str, tables: Tables, fingerprint: str) -> Account | None:
    """What became of the day's events, where its tables were made of the same and are whole."""
    version = tables.current("customers", day)
    if (
        version is None
        or version.about.get("made_of") != fingerprint
        or not all(tables.is_whole(name, day) for name in DERIVED)
    ):
        return None
    return Account.of_json(version.about["account"])


@dataclass(frozen=True)
class Derivation:
    """What is the same for all shards of a day that is derived."""

    day: str
    tables: Tables = field(repr=False)
    version: Version
    options: Options = field(repr=False)
    until: datetime | None
    writer: ShardWriter


def _derive(
    day: str,
    tables: Tables,
    identities: Identities,
    options: Options,
    until: datetime | None,
    into: Tables,
    workers: int,
    fingerprint: str,
) -> Account:
    account, version = Account(), tables.version("posthog_events", day)
    with into.replace(day, DERIVED) as new, temporary_folder() as folder:
        derivation = Derivation(day, tables, version, options, until, new.writer)
        known = ((derivation, shard, _known_in(derivation, shard, identities)) for shard in range(version.shards))
        if options.identify_by_email or options.stitches:
            shards = _shuffle_by_key(derivation, known, identities, account, folder, workers)
            by_number = ((derivation, *shard) for shard in enumerate(shards))
            made = map_shards(_write_shuffled_shard, by_number, len(shards), workers, f"{day}: derived")
        else:
            made = map_shards(_write_whole_shard, known, version.shards, workers, f"{day}: derived")
        with closing(made):
            for written, of_shard in made:
                new.shards.append(written)
                account.add(of_shard)
        account.notes = +account.notes
        new.about = {"made_of": fingerprint, "account": account.to_json()}
    return account


def _known_in(derivation: Derivation, shard: int, identities: Identities) -> pd.DataFrame:
    """What was learned on earlier days about the people of a shard's events."""
    events = derivation.tables.shard("posthog_events", derivation.day, derivation.version, shard, ["distinct_id"])
    return _known(derivation.day, pc.unique(events["distinct_id"]).to_pylist(), identities)


def _known(day: str, distinct_ids: list[str], identities: Identities) -> pd.DataFrame:
    """What was learned on earlier days about these distinct_ids. Those that R14 refuses are not looked up: nothing is learned
    about them, and they may be too long for the database's index."""
    return identities.before(day, [who for who in distinct_ids if usable(who)])


def _classified(derivation: Derivation, shard: int, known: pd.DataFrame) -> pd.DataFrame:
    day, version = derivation.day, derivation.version
    events = shard_of_events(derivation.tables, "posthog_events", day, version, shard, CLASSIFIED)
    if derivation.until is not None:
        events = events.filter(pc.less(events["timestamp"], pa.scalar(derivation.until, TIME)))
    return classify(events.to_pandas(), known, derivation.options)


def _write_whole_shard(derivation: Derivation, shard: int, known: pd.DataFrame) -> tuple[Written, Account]:
    """Writes the tables of a shard whose events' keys follow from their distinct_ids, so that it holds whole customers."""
    return _write(derivation, shard, lambda: _classified(derivation, shard, known), are_counted=False)


def _write_shuffled_shard(derivation: Derivation, number: int, shard: Shard) -> tuple[Written, Account]:
    """Writes the tables of a shard by key, whose outcomes are counted already."""
    return _write(derivation, number, lambda: shard.read().to_pandas(), are_counted=True)


def _write(
    derivation: Derivation, number: int, read: Callable[[], pd.DataFrame], *, are_counted: bool
) -> tuple[Written, Account]:
    """Writes the tables of the events that `read` gives as `classify` does; each is let go as soon as the next is made of it,
    for one person's events may be many."""
    classified = read()
    account = Account() if are_counted else Account(Counter(classified["outcome"].tolist()))
    refused = _refused(classified)
    sent = _sent(classified)
    del classified
    made = build(sent, derivation.options)
    del sent
    account.notes[EMAIL_IN_ANOTHER_CASE] += made.emails_in_another_case
    _count_rejects(derivation.day, made.rejects.to_pandas(), account)
    rejects = pa.concat_tables([pa.Table.from_pandas(refused, REJECTS, preserve_index=False), made.rejects])
    tables = {"customers": made.customers, "events": made.events, "rejects": rejects}
    return derivation.writer.write(number, tables), account


def _sent(classified: pd.DataFrame) -> pd.DataFrame:
    """The events to send, by time: taken once, in their order."""
    order = in_order(classified)
    are_sent = (classified["outcome"] == SENT).to_numpy(bool)[order]
    return classified.take(order[are_sent]).reset_index(drop=True)


class ClassifiedShard(NamedTuple):
    """A shard whose events are classified: those sent or refused, spilled to disk by key; the outcomes of all; and for R16 the
    anonymous ids that each `$identify` names, and the first `$identify` of each distinct_id."""

    spilled: shuffle.Spilled
    outcomes: Counter[str]
    named: pd.DataFrame
    identified: pd.DataFrame


def _shuffle_by_key(
    derivation: Derivation,
    known: Iterable[tuple[Any, ...]],
    identities: Identities,
    account: Account,
    folder: Path,
    workers: int,
) -> list[Shard]:
    """The events to send and the refused ones in shards by key, with those that the day's merges take (R16)."""
    number = derivation.version.shards
    buckets = shuffle.BUCKETS if number > 1 else 1
    tasks = ((*shard, folder, buckets) for shard in known)
    found = list(map_shards(_classify_shard, tasks, number, workers, f"{derivation.day}: classified"))
    spilled = [shard.spilled for shard in found]
    for shard in found:
        account.outcomes.update(shard.outcomes)
    if derivation.options.stitches:
        named, identified = (pd.concat([getattr(shard, name) for shard in found]) for name in ("named", "identified"))
        rows = _stitched(derivation, identities, account, named, identified)
        for at, stitched_rows in enumerate(rows):
            spilled.append(shuffle.spill(_to_send(stitched_rows), "key", folder / f"stitched-{at:05d}.arrow", buckets))
    return shuffle.shards(spilled, TO_SEND)


def _classify_shard(derivation: Derivation, shard: int, known: pd.DataFrame, folder: Path, buckets: int) -> ClassifiedShard:
    classified = _classified(derivation, shard, known)
    outcomes = Counter(classified["outcome"].tolist())
    named = identified = pd.DataFrame()
    if derivation.options.stitches:
        named = merges(classified).drop(columns=["properties", "person_properties"])
        identified = classified.loc[classified["event"] == "$identify", ORDER].drop_duplicates("distinct_id")
    kept = classified[~classified["outcome"].str.startswith(FILTERED).to_numpy(bool)]
    spilled = shuffle.spill(_to_send(kept), "key", folder / f"{shard:05d}.arrow", buckets)
    return ClassifiedShard(spilled, outcomes, named, identified)


def _to_send(rows: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(rows[TO_SEND.names], TO_SEND, preserve_index=False)


def _stitched(
    derivation: Derivation, identities: Identities, account: Account, named: pd.DataFrame, identified: pd.DataFrame
) -> Iterator[pd.DataFrame]:
    """R16: the held-back events of this and the days before that the day's merges take."""
    day, tables, options = derivation.day, derivation.tables, derivation.options
    anonymous_ids = named["anonymous_id"].unique().tolist()
    days = _days_stitched(day, options)
    earlier = identities.merges_between(days[0], day, anonymous_ids)
    known = identities.before(day, anonymous_ids)
    before = set(known.loc[known["identified"], "distinct_id"])
    found = merge_windows(named, earlier, before, identified.drop_duplicates("distinct_id"), options)
    for one in _days_with_events(days, tables, identities) if len(found) else []:
        for table in events_of(tables, one, found["anonymous_id"].unique().tolist()):
            events = table.to_pandas()
            rows = stitched(events, _known(one, events["distinct_id"].unique().tolist(), identities), found, options)
            if one == day:
                account.outcomes.subtract(rows["outcome"])
                account.outcomes[SENT] += len(rows)
            else:
                account.stitched += len(rows)
            yield rows.assign(outcome=SENT)


def _days_stitched(day: str, options: Options) -> list[str]:
    """The day, last, and those before it whose events it may send (R16)."""
    return [str(date.fromisoformat(day) - timedelta(days=back)) for back in range(options.stitch_anonymous_days, -1, -1)]


def _days_with_events(days: list[str], tables: Tables, identities: Identities) -> list[str]:
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
