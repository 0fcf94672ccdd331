"""Which events are read from exported files."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.posthog.exports.columns import JSON_COLUMNS
from cio_pipeline.posthog.source import EVENT_SCHEMA, NEEDED
from cio_pipeline.rules.dropped_set import columns_with_emails, reaches_back
from cio_pipeline.rules.options import AttributesFrom

EMAIL = r'"email"|\\u00'
"""What the JSON text of properties contains if there may be an email in it (R1): the name, or escapes, which may hide it."""


class EventFilter(NamedTuple):
    """Selects the events with `start` <= timestamp < `end`, and says which are on the allowlist, or needed by R1 (R3).

    An empty allowlist allows every name. attributes_from: `person` requires the person properties; `auto` uses them if a file
    has them and `$set` may have been dropped (R20).
    """

    start: datetime
    end: datetime
    allowlist: tuple[str, ...]
    attributes_from: AttributesFrom

    @property
    def requires_person_properties(self) -> bool:
        """True if a file without the person properties is an error."""
        return self.attributes_from == "person"

    @property
    def reads_person_properties(self) -> bool:
        """True if the person properties are read when a file has them.

        With `auto`, this depends on the age of the window (R20). With an allowlist, they may have an email that R1 needs.
        """
        may_be_used = self.attributes_from == "auto" and reaches_back(self.start, datetime.now(UTC))
        return self.requires_person_properties or may_be_used or bool(self.allowlist)

    def select(self, events: pa.Table) -> pa.Table:
        """Returns the events, with the column `source.NEEDED` if there is an allowlist: whether they are on it, or R1 needs
        them. With `set`, they have no person properties.

        events: a table of `EVENT_SCHEMA`, with events of the time window only.
        """
        selected = events
        if self.attributes_from == "set":
            index = EVENT_SCHEMA.names.index("person_properties")
            selected = events.set_column(index, EVENT_SCHEMA.field(index), pa.nulls(len(events), pa.string()))
        return selected.append_column(NEEDED, self._are_needed(events)) if self.allowlist else selected

    def _are_needed(self, events: pa.Table) -> pa.ChunkedArray:
        needed = pc.is_in(events["event"], pa.array([*self.allowlist, "$identify"]))
        is_auto = self.attributes_from == "auto"
        for name in JSON_COLUMNS if is_auto else columns_with_emails(self.attributes_from, self.start):
            needed = pc.or_(needed, pc.match_substring_regex(events[name], EMAIL).fill_null(False))
        return needed
