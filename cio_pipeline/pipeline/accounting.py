"""The accounting of a day's events (R15: nothing is dropped silently): their outcomes, compared with the tables on disk."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from cio_pipeline.rules.classify import FILTERED, REFUSED, TO_SEND
from cio_pipeline.rules.values import EPOCH
from cio_pipeline.tables.tables import Tables


@dataclass
class DayCounts:
    """How many of a day's events had which outcome.

    outcomes: events by outcome; stitched: events of earlier days that are sent with this day's; left_out: attributes and
    properties by reason; notes: other facts about what is sent.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    stitched: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def filtered(self) -> int:
        """The number of the day's events that are filtered."""
        return self._count(FILTERED)

    @property
    def refused(self) -> int:
        """The number of the day's events that the rules refuse."""
        return self._count(REFUSED)

    def refused_by_reason(self) -> Counter[str]:
        """Returns the number of the day's refused events by reason."""
        return Counter({name.removeprefix(REFUSED): n for name, n in self.outcomes.items() if name.startswith(REFUSED)})

    def add(self, other: DayCounts) -> None:
        """Adds the counts of another shard."""
        self.outcomes.update(other.outcomes)
        self.stitched += other.stitched
        self.left_out.update(other.left_out)
        self.notes.update(other.notes)

    def add_stitched(self, outcomes: pd.Series[str], *, of_earlier_day: bool) -> None:
        """Counts stitched events (R16) as sent: the day's own instead of their previous outcomes, those of earlier days
        separately."""
        if of_earlier_day:
            self.stitched += len(outcomes)
        else:
            self.outcomes.subtract(outcomes)
            self.outcomes[TO_SEND] += len(outcomes)

    def to_json(self) -> dict[str, Any]:
        """Returns the counts as they are stored with the day's tables."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> DayCounts:
        """Returns the counts from what `to_json` has returned."""
        return cls(Counter(kept["outcomes"]), kept["stitched"], Counter(kept["left_out"]), Counter(kept["notes"]))

    def _count(self, kind: str) -> int:
        return sum(count for name, count in self.outcomes.items() if name.startswith(kind))


def discrepancies(day: str, day_counts: DayCounts, tables: Tables) -> list[str]:
    """Returns a clause for each sum of the day's tables that does not add up, or differs from the counts when they were
    written."""
    start = pd.Timestamp(day, tz="UTC")
    extracted = sum(len(shard) for shard in tables.read_arrow("posthog_events", day, ["timestamp"]))
    sent = stitched = 0
    for shard in tables.read("events", day, columns=["timestamp"]):
        sent += int((shard["timestamp"] >= start).sum())
        stitched += int((shard["timestamp"] < start).sum())
    refused: Counter[str] = Counter()
    for shard in tables.read("rejects", day, columns=["timestamp", "what", "reason"]):
        # An event whose time cannot be read is stored with one before 1970. It is refused, and never stitched.
        is_of_the_day = (shard["timestamp"] >= start) | (shard["timestamp"] < EPOCH)
        own = (shard["what"] == "event") & is_of_the_day
        refused.update(shard.loc[own, "reason"].astype(object))
    counted = day_counts.refused_by_reason()
    pairs = {
        "events were extracted, but this many are sent, filtered or refused": (
            extracted,
            sent + day_counts.filtered + refused.total(),
        ),
        "events are sent, but this many were counted": (sent, day_counts.outcomes[TO_SEND]),
        "events of earlier days are sent, but this many were counted": (stitched, day_counts.stitched),
        **{
            f"events are refused as '{reason}', but this many were counted": (refused[reason], counted[reason])
            for reason in refused | counted
        },
    }
    negative = [f"{count:,} events are counted as '{what}'" for what, count in day_counts.outcomes.items() if count < 0]
    return negative + [f"{found:,} {what}: {expected:,}" for what, (found, expected) in pairs.items() if found != expected]
