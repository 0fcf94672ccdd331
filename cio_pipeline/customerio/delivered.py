"""Which of a day's events were delivered: with the day itself or, if R16 stitches them, with another.

An `$identify` that comes late may give an anonymous event to somebody else, or to another day. Once delivered, it stays whose
it was.
"""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.customerio.batches import pack_id_column
from cio_pipeline.customerio.selection import DeliveryOptions, ShardPairs, column
from cio_pipeline.packed_ids import are_in, pack_ids
from cio_pipeline.rules.columns import TIME
from cio_pipeline.state.ledger import Ledger


def delivered_ids(day: str, ledger: Ledger, options: DeliveryOptions) -> npt.NDArray[np.bytes_]:
    """Returns the ids of the day's events that were delivered, packed, sorted, each once."""
    with_day, elsewhere = ledger.delivered(day), options.delivered_elsewhere
    return np.union1d(with_day, elsewhere) if len(elsewhere) else with_day


def delivered_elsewhere(day: str, shards: ShardPairs, ledger: Ledger, stitched_days: int) -> npt.NDArray[np.bytes_]:
    """R16: returns the ids of the day's stitched events that were delivered with another day, packed. These are older than the
    day; stitched_days: by how many days at most."""
    this = date.fromisoformat(day)
    start = pa.scalar(np.datetime64(this, "us").astype(int).item(), TIME)
    stitched = pack_ids([])
    for _, events in shards:
        are_older = pc.less(column(events, "timestamp", TIME), start)
        stitched = np.append(stitched, pack_id_column(column(events, "ulid").filter(are_older)))
    found = np.zeros(len(stitched), bool)
    if len(stitched):
        for days in range(-stitched_days, stitched_days + 1):
            found |= are_in(ledger.delivered(str(this + timedelta(days))), stitched) if days else False
    return stitched[found]
