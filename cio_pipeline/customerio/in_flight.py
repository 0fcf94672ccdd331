"""What Customer.io may have although the ledger does not record it, as the delivery of a day has to know it (R17)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

from cio_pipeline.attribute_state import State, customer_id, latest_time, merge, unpack


@dataclass(frozen=True)
class InFlight:
    """Upserts that deliveries were sending when they were cut off, for the delivery of `day`.

    Those of other days count as accepted where they are newer: their day sends them again. Those of the day itself say nothing
    about its attributes, but no upsert may have an earlier time.
    """

    day: str = ""
    by_day: Mapping[str, Mapping[bytes, bytes]] = field(default_factory=dict)
    """Packed states, by day and customer's id (`Ledger.in_flight`)."""

    def __contains__(self, key: str) -> bool:
        """Returns whether there is any upsert of this customer."""
        return bool(self._states(key))

    def state(self, key: str) -> State:
        """Returns the attributes in the customer's upserts of other days."""
        others: list[State] = [state for day, state in self._states(key) if day != self.day]
        return reduce(merge, others, {})

    def time(self, key: str) -> int:
        """Returns the latest time in the customer's upserts (Unix seconds), or 0."""
        return max((latest_time(state) for _, state in self._states(key)), default=0)

    def _states(self, key: str) -> list[tuple[str, State]]:
        if not self.by_day:
            return []
        customer = customer_id(key)
        return [(day, unpack(states[customer])) for day, states in self.by_day.items() if customer in states]
