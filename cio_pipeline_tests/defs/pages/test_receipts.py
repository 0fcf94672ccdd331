"""A receipt in one line."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.defs.pages.charts import DayEvents
from cio_pipeline.defs.pages.receipts import COUNTS_SHOWN_IF_ANY, MEANING, day_events, in_one_line, receipt
from cio_pipeline.pipeline.accounting import DayCounts
from cio_pipeline.settings.places import PROJECT
from cio_pipeline.state.ledger import DayTotals

COUNTS = {
    "events sent": 3000,
    "upserts sent": 2,
    "events delivered before": 0,
    "upserts with nothing new": 1,
    "refused": 4,
    "requests": 5,
}
LINE = (
    "3,000 events sent, 2 upserts sent, 0 events delivered before, 1 upsert with nothing new, 4 refused by Customer.io,"
    " 5 requests"
)


def test_the_picture_in_the_readme_has_the_entries_of_a_receipt() -> None:
    """Where it has not, it is old: `make screenshots` takes it anew."""
    entries = receipt(DayTotals(), {}, [], [DayEvents("2026-03-02")], "")
    assert [*entries] == [*MEANING, "dagster/partition_row_count"]
    assert (PROJECT / "docs" / "img" / "receipt.txt").read_text().splitlines() == [*entries]


def test_what_was_left_out_on_purpose_is_named_where_there_is_any() -> None:
    assert in_one_line({**COUNTS, **dict.fromkeys(COUNTS_SHOWN_IF_ANY, 0), "seconds": 1.5}) == LINE
    assert in_one_line({**COUNTS, "events suppressed": 2}) == f"{LINE}, 2 events suppressed"


@given(*(st.integers(0, 9) for _ in range(6)))
def test_a_days_picture_has_every_event_once(
    sent: int, stitched: int, filtered: int, refused: int, delivered: int, open_: int
) -> None:
    outcomes = Counter({"sent": sent, "filtered: x": filtered, "refused: y": refused})
    found = day_events("2026-03-02", DayCounts(outcomes, stitched), delivered, open_)
    assert found.total == outcomes.total() + stitched
    assert found.sent == min(delivered, sent + stitched)
    assert min(found.parts.values()) >= 0
