"""The order of a run's days."""

from __future__ import annotations

from cio_pipeline.customerio.day_order import cut_off_first


def test_days_that_were_cut_off_are_delivered_first_the_last_one_before_earlier_ones() -> None:
    days = ["2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04"]
    assert cut_off_first(days, set()) == days
    assert cut_off_first(days, {"2026-03-02", "2026-03-04", "2026-03-09"}) == [days[3], days[1], days[0], days[2]]
