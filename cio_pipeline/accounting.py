"""R15: whether a day's tables, as they are on disk, hold every event that was extracted, once and by its reason."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from cio_pipeline.pipeline import Account
from cio_pipeline.rules.classify import FILTERED, REFUSED, SENT
from cio_pipeline.tables.tables import Tables

EPOCH = pd.Timestamp(0, tz="UTC")
"""Before it is the time of events whose own cannot be read; they are refused, and never stitched."""


def discrepancies(day: str, account: Account, tables: Tables) -> list[str]:
    """What of the day's tables does not add up, or is not as it was counted when they were made: a clause each."""
    start = pd.Timestamp(day, tz="UTC")
    extracted = sum(len(shard) for shard in tables.read_arrow("posthog_events", day, ["timestamp"]))
    sent = stitched = 0
    for shard in tables.read("events", day, columns=["timestamp"]):
        sent += int((shard["timestamp"] >= start).sum())
        stitched += int((shard["timestamp"] < start).sum())
    refused: Counter[str] = Counter()
    for shard in tables.read("rejects", day, columns=["timestamp", "what", "reason"]):
        is_of_the_day = (shard["timestamp"] >= start) | (shard["timestamp"] < EPOCH)
        own = (shard["what"] == "event") & is_of_the_day
        refused.update(shard.loc[own, "reason"].astype(object))
    counted = Counter({name.removeprefix(REFUSED): n for name, n in account.outcomes.items() if name.startswith(REFUSED)})
    filtered = sum(count for name, count in account.outcomes.items() if name.startswith(FILTERED))
    pairs = {
        "events are extracted, but so many are sent, filtered or refused": (extracted, sent + filtered + refused.total()),
        "events are sent, but so many were counted": (sent, account.outcomes[SENT]),
        "events of earlier days are sent, but so many were counted": (stitched, account.stitched),
        **{
            f"events are refused as '{reason}', but so many were counted": (refused[reason], counted[reason])
            for reason in refused | counted
        },
    }
    return [f"{found:,} {what}: {expected:,}" for what, (found, expected) in pairs.items() if found != expected]
