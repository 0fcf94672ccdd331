"""The job `redeliver_refused`: sends again what Customer.io has refused, once the cause is fixed."""

import logging
import time
from collections import Counter
from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.day_order import deliver_each
from cio_pipeline.customerio.delivery import Report
from cio_pipeline.customerio.forecast import Forecast
from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.defs.checks.deliver import refusals_evaluated
from cio_pipeline.defs.delivery.preconditions import RunLimitsConfig, check_derived
from cio_pipeline.defs.delivery.run_delivery import RunCounts, prepare_delivery, receipt_of, wait_for_delivery_lock
from cio_pipeline.defs.failures import with_readable_failures
from cio_pipeline.defs.pages.receipts import in_one_line, run_counts
from cio_pipeline.defs.resources import CustomerIo
from cio_pipeline.defs.store import Store
from cio_pipeline.errors import PipelineError
from cio_pipeline.state.refusals import Refusal

logger = logging.getLogger(__name__)


class RedeliveryConfig(RunLimitsConfig):
    """The refusals to send again, by default all."""

    partition: str | None = Field(default=None, description="Only those of this day, YYYY-MM-DD.")
    reason: str | None = Field(default=None, description="Only those with this reason, as the check nothing_refused shows it.")


@dg.op(out=dg.Out(dg.Nothing))
@with_readable_failures
def send_refused_again(
    context: dg.OpExecutionContext,
    config: RedeliveryConfig,
    customerio: dg.ResourceParam[CustomerIo],
    store: dg.ResourceParam[Store],
) -> Iterator["dg.AssetObservation | dg.AssetCheckEvaluation | dg.Output[None]"]:
    """Sends what was refused and is still in the days' tables, except attributes that have been set since. What Customer.io
    accepts now is closed.

    Refusals are read one day at a time: once to count what they would create, and again when the day is sent. As soon as a day
    is done, an observation says what was sent again and what is still open. The check `nothing_refused` is evaluated at the
    end, even if a day fails.
    """
    counts, began, before = Counter[str](), time.monotonic(), customerio.traffic()
    with wait_for_delivery_lock(context, store):
        store = store.pinned()  # what is checked is what is sent
        delivery = prepare_delivery(config, store, customerio, context.instance, is_backfill=True)
        days, forecast = _days_to_send(config, store), Forecast()
        for day in days:
            forecast.add_refusals(delivery.compare(day, _refusals(day, config, store)).unchanged, store.ledger)
        delivery.check_forecast(forecast)

        def redeliver_day(day: str) -> tuple[Report, RunCounts]:
            return delivery.redeliver(day, _refusals(day, config, store))

        try:
            for day, (report, day_counts), _ in deliver_each(days, redeliver_day):
                counts += report.counts
                logger.info("%s: %s.", day, in_one_line(day_counts))
                receipt = receipt_of(store, day, day_counts, report.sample)
                yield dg.AssetObservation(DELIVERY, partition=day, metadata={**receipt, "redelivery": True})
        except PipelineError:
            yield refusals_evaluated(store)
            raise
        yield refusals_evaluated(store)
    total = run_counts(counts, customerio.traffic() - before, time.monotonic() - began)
    still = sum(store.ledger.refused_by_reason().values())
    logger.info("%s; %s still refused, of all days.", in_one_line(total), f"{still:,}")
    context.add_output_metadata({**total, "refused still, of all days": still})
    yield dg.Output(None)


def _days_to_send(config: RedeliveryConfig, store: Store) -> list[str]:
    """Returns the days with refusals to send again, but for days that are not derived: an hourly run leaves no tables.

    Raises `NotDelivered` if refusals are open, but none can be sent, or the days' tables cannot be (`check_derived`).
    """
    chosen = store.ledger.days_refused(config.partition, config.reason)
    days = [day for day in chosen if store.tables.find_version("events", day) is not None]
    if not chosen and (others := store.ledger.open_refusals()):
        still = "; ".join(f"{one.number} for {one.reason} ({one.first} to {one.last})" for one in others)
        raise NotDelivered(f"No refusal has this partition and reason. Still refused: {still}.")
    if len(days) < len(chosen):
        waiting = ", ".join(day for day in chosen if day not in days)
        why = f"What was refused of {waiting} cannot be sent again before customers, events and rejects of it are materialized."
        if not days:
            raise NotDelivered(why)
        logger.warning(why)
    check_derived(store, days)
    return days


def _refusals(day: str, config: RedeliveryConfig, store: Store) -> list[Refusal]:
    return store.ledger.refusals(day, config.reason).get(day, [])


@dg.job(config={"ops": {"send_refused_again": {"config": {}}}}, executor_def=dg.in_process_executor)
def redeliver_refused() -> None:
    """Sends again what Customer.io has refused, optionally only for a partition or a reason."""
    send_refused_again()
