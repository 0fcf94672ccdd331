"""A receipt in one line."""

from __future__ import annotations

from cio_pipeline.defs.receipts import WHERE_ANY, in_one_line

COUNTS = {
    "events sent": 3000,
    "customers sent": 2,
    "events delivered before": 0,
    "customers with nothing new": 1,
    "refused": 4,
    "requests": 5,
}
LINE = (
    "3,000 events sent, 2 customers sent, 0 events delivered before, 1 customers with nothing new, 4 refused by Customer.io,"
    " 5 requests"
)


def test_what_was_left_out_on_purpose_is_named_where_there_is_any() -> None:
    assert in_one_line({**COUNTS, **dict.fromkeys(WHERE_ANY, 0), "seconds": 1.5}) == LINE
    assert in_one_line({**COUNTS, "events suppressed": 2}) == f"{LINE}, 2 events suppressed"
