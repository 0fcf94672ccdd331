"""The job `redeliver_refused`: sends again what Customer.io refused, after the cause was fixed."""

import logging
import time
from collections import Counter
from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from cio_pipeline.customerio.delivery import Report, redeliver
from cio_pipeline.customerio.forecast import Forecast
from cio_pipeline.customerio.shards import DeliveryOptions, suppressed_keys
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.customerio.undecided import retry_undecided
from cio_pipeline.defs.assets.before_delivery import RunLimitsConfig, shards
from cio_pipeline.defs.assets.deliver import one_delivery_at_a_time, receipt_of, suppressed
from cio_pipeline.defs.checks.deliver import refusals_evaluated
from cio_pipeline.defs.checks.yesterday import DELIVERY
from cio_pipeline.defs.failures import with_readable_failures
from cio_pipeline.defs.pages.receipts import in_one_line, run_counts
from cio_pipeline.defs.resources import CustomerIo, Store
from cio_pipeline.errors import PipelineError
from cio_pipeline.state.refusals import Refusal

logger = logging.getLogger(__name__)


class RedeliveryConfig(RunLimitsConfig):
    """Which refusals to send again; by default all."""

    partition: str | None = Field(default=None, description="Only those of this day, YYYY-MM-DD.")
    reason: str | None = Field(
        default=None, description="Only those refused for this reason, as the check nothing_refused and the ledger have it."
    )


@dg.op(out=dg.Out(dg.Nothing))
@with_readable_failures
def send_refused_again(
    context: dg.OpExecutionContext, config: RedeliveryConfig, customerio: CustomerIo, store: Store
) -> Iterator["dg.AssetObservation | dg.AssetCheckEvaluation | dg.Output[None]"]:
    """Sends what was refused, but no attribute that has been set since; what Customer.io accepts now is closed.

    Refusals are read a day at a time: once to count what they would make, and again when the day is sent. As soon as a day is
    done, an observation of it says what was sent again and what is still open of it; the check `nothing_refused` is evaluated
    at the end, also where a day fails.
    """
    counts, began, before = Counter[str](), time.monotonic(), customerio.traffic()
    with one_delivery_at_a_time(context, store):
        options = DeliveryOptions(suppressed(customerio, store), allow_consent=store.options.allow_consent)
        days, forecast = _days_to_send(config, store), Forecast()
        for day in days:
            forecast.add_refusals(_to_send(day, config, options, store)[0], store.ledger)
        forecast.refuse_beyond(config.run_limits(store, is_backfill=True))

        def redeliver_day(day: str) -> tuple[Report, dict[str, int | float]]:
            started, sent_before = time.monotonic(), customerio.traffic()
            refused, suppressed_items = _to_send(day, config, options, store)
            report = redeliver(day, refused, store.ledger, customerio.client, options)
            report.counts["refusals suppressed"] += suppressed_items
            return report, run_counts(report.counts, customerio.traffic() - sent_before, time.monotonic() - started)

        try:
            for day, (report, run), _ in retry_undecided(days, redeliver_day):
                counts += report.counts
                logger.info("%s: %s.", day, in_one_line(run))
                receipt = receipt_of(store, day, run, report.sample)
                yield dg.AssetObservation(DELIVERY, partition=day, metadata={**receipt, "redelivery": True})
        except PipelineError:
            yield refusals_evaluated(store)
            raise
        yield refusals_evaluated(store)
    total = run_counts(counts, customerio.traffic() - before, time.monotonic() - began)
    still = sum(store.ledger.refused_by_reason().values())
    logger.info("%s; %s refused still, of all days.", in_one_line(total), f"{still:,}")
    context.add_output_metadata({**total, "refused still, of all days": still})
    yield dg.Output(None)


def _days_to_send(config: RedeliveryConfig, store: Store) -> list[str]:
    """The days that have refusals to send again. Raises `dagster.Failure` where some are open, but none of those that are
    meant."""
    meant = store.ledger.days_refused(config.partition, config.reason)
    if not meant and (others := store.ledger.open_refusals()):
        still = "; ".join(f"{one.items} for {one.reason} ({one.first} to {one.last})" for one in others)
        raise dg.Failure(f"Nothing refused has this partition and reason. Still refused: {still}.", allow_retries=False)
    return meant


def _to_send(day: str, config: RedeliveryConfig, options: DeliveryOptions, store: Store) -> tuple[list[Refusal], int]:
    """The day's refusals to send again, and how many are left out as of somebody who is suppressed."""
    refused = store.ledger.refusals(day, config.reason).get(day, [])
    allowed = _not_suppressed(refused, options.suppressed, store, day)
    return allowed, len(refused) - len(allowed)


def _not_suppressed(refused: list[Refusal], listed: Suppressed, store: Store, day: str) -> list[Refusal]:
    """Without who is suppressed: the day's tables know emails and distinct_ids of people that a refused event does not hold."""
    if not listed:
        return refused
    written = store.tables.find_version("customers", day) is not None
    keys = {key for shard in shards(store.tables, day) for key in suppressed_keys(listed, *shard)} if written else set()
    return [one for one in refused if one.key not in keys and not listed.has_customer(one.key, one.operation)]


@dg.job(config={"ops": {"send_refused_again": {"config": {}}}}, executor_def=dg.in_process_executor)
def redeliver_refused() -> None:
    """Sends again what Customer.io refused, chosen by partition and reason."""
    send_refused_again()
