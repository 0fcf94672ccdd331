"""A day's events in shards by customer's key, where several distinct_ids may be one customer (R6), or events of earlier days
are sent with this one's (R16)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from cio_pipeline.pipeline.accounting import DayCounts
from cio_pipeline.pipeline.classification import DerivationInput, classified_shard, earlier_facts, earlier_facts_of_shard
from cio_pipeline.pipeline.events import KEPT_EVENTS, events_of
from cio_pipeline.rules.classify import FILTERED, TO_SEND
from cio_pipeline.rules.facts import ORDER
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.stitching import merge_windows, merges, stitched
from cio_pipeline.state.identities import Identities
from cio_pipeline.tables import shuffle
from cio_pipeline.tables.tables import NotMaterialized, Tables
from cio_pipeline.worker_pool import map_shards

CLASSIFIED = pa.schema(
    [
        *(KEPT_EVENTS.field(name) for name in ("uuid", "event", "distinct_id", "timestamp", "properties", "person_properties")),
        *(KEPT_EVENTS.field(name) for name in ("personless", "canonical", "sent_as_is")),
        *((name, pa.string()) for name in ("key", "identifier", "email")),
        ("email_set_at", pa.int64()),
        ("outcome", pa.string()),
    ]
)
"""The events to send and the refused ones, as `classify` returns them."""


def shards_by_customer(
    day_input: DerivationInput, identities: Identities, folder: Path, workers: int
) -> tuple[list[shuffle.Shard], DayCounts]:
    """Returns the events to send and the refused ones in shards by key (`CLASSIFIED`), spilled to the folder, with those that
    the day's merges take (R16); and what became of the day's events, before any is refused for its content."""
    number = day_input.version.shards
    buckets = shuffle.BUCKETS if number > 1 else 1
    tasks = (
        (day_input, shard, earlier_facts_of_shard(day_input, shard, identities), folder, buckets) for shard in range(number)
    )
    parts = list(map_shards(_classify, tasks, number, workers, f"{day_input.day}: classified"))
    day_counts = DayCounts(sum((part.outcomes for part in parts), Counter()))
    spilled = [part.spilled for part in parts]
    if day_input.options.stitches:
        merged, identified = pd.concat([part.merges for part in parts]), pd.concat([part.identified for part in parts])
        windows = _merge_windows(day_input, identities, merged, identified)
        for at, (day, rows) in enumerate(_stitched(day_input, identities, windows)):
            day_counts.add_stitched(rows["outcome"], of_earlier_day=day != day_input.day)
            spilled.append(_spill(rows.assign(outcome=TO_SEND), folder / f"stitched-{at:05d}.arrow", buckets))
    return shuffle.shards(spilled, CLASSIFIED), day_counts


class _Part(NamedTuple):
    """Of a shard by distinct_id: its events, spilled by key; the outcomes of all; and for R16 its merges, and the first
    `$identify` of each distinct_id."""

    spilled: shuffle.Spilled
    outcomes: Counter[str]
    merges: pd.DataFrame
    identified: pd.DataFrame


def _classify(day_input: DerivationInput, shard: int, earlier: pd.DataFrame, folder: Path, buckets: int) -> _Part:
    classified = classified_shard(day_input, shard, earlier)
    merged = identified = pd.DataFrame()
    if day_input.options.stitches:
        merged = merges(classified).drop(columns=["properties", "person_properties"])
        identified = classified.loc[classified["event"] == "$identify", ORDER].drop_duplicates("distinct_id")
    kept = classified[~classified["outcome"].str.startswith(FILTERED).to_numpy(bool)]
    spilled = _spill(kept, folder / f"{shard:05d}.arrow", buckets)
    return _Part(spilled, Counter(classified["outcome"].tolist()), merged, identified)


def _spill(rows: pd.DataFrame, path: Path, buckets: int) -> shuffle.Spilled:
    table = pa.Table.from_pandas(rows[CLASSIFIED.names], CLASSIFIED, preserve_index=False)
    return shuffle.spill(table, "key", path, buckets)


def _merge_windows(
    day_input: DerivationInput, identities: Identities, merged: pd.DataFrame, identified: pd.DataFrame
) -> pd.DataFrame:
    """Returns what the day's merges may take, as `stitching.merge_windows` does."""
    anonymous_ids = merged["anonymous_id"].unique().tolist()
    first = days_stitched(day_input.day, day_input.options)[0]
    merged_earlier = identities.merges_between(first, day_input.day, anonymous_ids)
    earlier = identities.known_before(day_input.day, anonymous_ids)
    identified_earlier = set(earlier.loc[earlier["identified"], "distinct_id"])
    return merge_windows(
        merged, merged_earlier, identified_earlier, identified.drop_duplicates("distinct_id"), day_input.options
    )


def _stitched(day_input: DerivationInput, identities: Identities, windows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields, by day, the held-back events of this and earlier days that the day's merges take (R16)."""
    if not len(windows):
        return
    anonymous_ids = windows["anonymous_id"].unique().tolist()
    for day in _days_with_events(days_stitched(day_input.day, day_input.options), day_input.tables, identities):
        is_own = day == day_input.day  # then of the version that was classified, even if there is a newer one by now
        version = day_input.version if is_own else day_input.tables.version("posthog_events", day)
        for table in events_of(day_input.tables, day, version, anonymous_ids):
            events = table.to_pandas()
            earlier = earlier_facts(day, events["distinct_id"].unique().tolist(), identities)
            yield day, stitched(events, earlier, windows, day_input.options)


def days_stitched(day: str, options: Options) -> list[str]:
    """Returns the day, last, and those before it whose events it may send (R16)."""
    return [str(date.fromisoformat(day) - timedelta(days=back)) for back in range(options.stitch_anonymous_days, -1, -1)]


def _days_with_events(days: list[str], tables: Tables, identities: Identities) -> list[str]:
    """Returns those of the days that have events. Raises `NotMaterialized` if a day had some that are gone."""
    absent = {day for day in days if tables.find_version("posthog_events", day) is None}
    gone = absent - set(identities.unlearned(sorted(absent)))
    if gone:
        raise NotMaterialized(
            f"posthog_events of {', '.join(sorted(gone))} is not there any more, though it was once, and"
            " CIO_STITCH_ANONYMOUS_DAYS needs it: extract these days again (materialize posthog_events), then this one."
        )
    return [day for day in days if day not in absent]
