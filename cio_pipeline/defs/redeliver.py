"""What Customer.io refused, sent again after the cause was mended."""

import time
from collections import Counter

import dagster as dg
from pydantic import Field

from cio_pipeline.customerio.delivery import redeliver
from cio_pipeline.customerio.items import Item
from cio_pipeline.defs.deliver import one_at_a_time, receipt_of
from cio_pipeline.defs.resources import CustomerIo, Store


class Redelivery(dg.Config):
    """Which refusals to send again; all, unless something is said."""

    partition: str | None = Field(default=None, description="Only those of this day, YYYY-MM-DD.")
    reason: str | None = Field(
        default=None, description="Only those refused for this reason, as the check nothing_refused and the ledger have it."
    )


@dg.op(pool="customerio", out=dg.Out(dg.Nothing))
def send_refused_again(context: dg.OpExecutionContext, config: Redelivery, customerio: CustomerIo, store: Store) -> None:
    """Sends what was refused, but no attribute that has been set since; what Customer.io accepts now is closed."""
    started, before, counts = time.monotonic(), customerio.traffic(), Counter[str]()
    lines: list[str] = []
    with one_at_a_time(store, context.log.warning):
        for day, refused in store.ledger.refusals(config.partition, config.reason).items():
            keys = _suppressed_keys(customerio, store, day)

            def is_suppressed(item: Item, keys: set[str] = keys) -> bool:
                return item.key in keys or customerio.suppressed.is_of(item)

            report = redeliver(day, refused, store.ledger, customerio.client, is_suppressed)
            counts, lines = counts + report.counts, lines or report.sample
            context.log.info(f"{day}: {len(refused):,} refusals were taken up.")
    receipt = receipt_of(counts, lines, customerio.traffic() - before, time.monotonic() - started)
    context.add_output_metadata({**receipt, "refused still, of all days": sum(store.ledger.refused_by_reason().values())})


def _suppressed_keys(customerio: CustomerIo, store: Store, day: str) -> set[str]:
    """Whom the day's table knows by an email that a refused event does not tell."""
    if not customerio.suppressed or store.tables.current("customers", day) is None:
        return set()
    return {key for shard in store.tables.read("customers", day) for key in customerio.suppressed.keys(shard)}


@dg.job(executor_def=dg.in_process_executor)
def redeliver_refused() -> None:
    """Sends again what Customer.io refused, chosen by partition and reason."""
    send_refused_again()
