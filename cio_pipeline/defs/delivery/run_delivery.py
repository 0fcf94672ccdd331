"""One run's delivery: one at a time, without suppressed people, within its limits; and the receipt of a day."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import dagster as dg

from cio_pipeline.customerio import delivery
from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.counts import (
    EVENTS_TOO_RECENT,
    LEFT_FOR_ANOTHER_RUN,
    PEOPLE_LISTED,
    REFUSALS_CHANGED,
    REFUSALS_GONE,
    REFUSALS_SUPPRESSED,
)
from cio_pipeline.customerio.delivered import delivered_elsewhere
from cio_pipeline.customerio.delivery import Report
from cio_pipeline.customerio.forecast import Forecast, RunLimits, unsent_events
from cio_pipeline.customerio.redelivery import ComparedRefusals, compare_with_tables
from cio_pipeline.customerio.selection import DeliveryOptions
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.defs import connections
from cio_pipeline.defs.delivery import ledger_checkpoint
from cio_pipeline.defs.delivery.preconditions import STALE_LEDGER, RunLimitsConfig, TablesByDay
from cio_pipeline.defs.pages.receipts import last_days, receipt, run_counts
from cio_pipeline.defs.partitions import day_bounds
from cio_pipeline.defs.resources import CustomerIo
from cio_pipeline.defs.store import Store
from cio_pipeline.http.retry import Unavailable
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.database import DatabaseError
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.refusals import Refusal
from cio_pipeline.tables.columns import customers_and_events
from cio_pipeline.tables.files import temporary_folder
from cio_pipeline.tables.tables import Tables

logger = logging.getLogger(__name__)

RETRY_SECONDS = 30

RunCounts = dict[str, int | float]
"""The counts of what a run did for a day, by name: `receipts.run_counts`."""


@dataclass(frozen=True)
class RunDelivery:
    """A run's delivery, to be used while it holds the ledger's lock."""

    store: Store
    customerio: CustomerIo
    options: DeliveryOptions
    """Who and what is left out, and what is sent again."""
    limits: RunLimits
    ledger_is_stale: bool
    """The ledger lacks earlier deliveries (`ledger_checkpoint`)."""
    accepts_stale_ledger: bool
    """The run config has `max_campaign_events`, so the run may send with a stale ledger, up to that."""

    def check_limits(self, to_send: TablesByDay) -> None:
        """Raises `NotDelivered` if the tables of all the days together would exceed the run's limits.

        The ledger is not asked if the tables have no more rows than the limits allow.
        """
        customer_rows, event_rows = (
            sum(tables.version(table, day).rows for day, tables in to_send.items()) for table in ("customers", "events")
        )
        limits, forecast = self.limits, Forecast()
        most_created = customer_rows + limits.created_earlier_today
        cannot_exceed_customers = limits.max_new_customers is None or most_created <= limits.max_new_customers
        cannot_exceed_events = limits.max_campaign_events is None or event_rows <= limits.max_campaign_events
        if cannot_exceed_customers and cannot_exceed_events:
            return
        for day, tables in to_send.items():
            options = options_of_day(day, tables, self.store, self.options)
            forecast.add_day(day, customers_and_events(tables, day), self.store.ledger, options)
        self.check_forecast(forecast)

    def check_forecast(self, forecast: Forecast) -> None:
        """Raises `NotDelivered` if the forecast exceeds the run's limits."""
        try:
            forecast.check(self.limits)
        except NotDelivered as error:
            raise NotDelivered(f"{STALE_LEDGER} {error}" if self.ledger_is_stale else str(error)) from None

    def deliver(self, day: str, tables: Tables, whole_day: Tables | None = None) -> tuple[Report, RunCounts]:
        """Sends what the ledger does not have of the day.

        whole_day: the day's tables with the events that are too recent to be sent, only to count what is left for another run.
        """

        def send() -> Report:
            events, ledger = tables.version("events", day).rows, self.store.ledger
            all_of_it = self.options.limit is None and (whole_day is None or tables.root == whole_day.root)
            with _delivered_count_in_errors(ledger, day, events), ledger.sending(day, all_of_it=all_of_it):
                shards, options = customers_and_events(tables, day), options_of_day(day, tables, self.store, self.options)
                report = delivery.deliver(day, shards, ledger, self.customerio.client, options, events)
            if whole_day is not None:
                report.counts[EVENTS_TOO_RECENT] += events_too_recent(day, whole_day, tables, self.store, self.options)
                report.counts[LEFT_FOR_ANOTHER_RUN] += left_for_another_run(day, whole_day, tables, self.store, self.options)
            report.counts[PEOPLE_LISTED] += self.options.suppressed.people_listed
            return report

        return self._counted(send)

    def compare(self, day: str, refused: list[Refusal]) -> ComparedRefusals:
        """Returns a day's refused items by what its tables say of them now."""
        return compare_with_tables(refused, customers_and_events(self.store.tables, day), self.options)

    def redeliver(self, day: str, refused: list[Refusal]) -> tuple[Report, RunCounts]:
        """Sends a day's refused items again that its tables still have. Closes those of suppressed people, and of what is no
        longer to be sent: should it be again one day, a run of the day sends it."""
        compared = self.compare(day, refused)
        closed = [refusal.item_id for refusal in compared.suppressed + compared.gone]
        if compared.changed:
            logger.warning("%s: %s refused items have changed since. A run of the day sends them.", day, len(compared.changed))

        def send() -> Report:
            ledger = self.store.ledger
            ledger.acknowledge(day, Acknowledgement(ids_to_close=lambda: closed))
            with ledger.sending(day, all_of_it=False):
                report = delivery.redeliver(day, compared.unchanged, ledger, self.customerio.client, self.options)
            report.counts[REFUSALS_SUPPRESSED] += len(compared.suppressed)
            report.counts[REFUSALS_GONE] += len(compared.gone)
            report.counts[REFUSALS_CHANGED] += len(compared.changed)
            return report

        return self._counted(send)

    def _counted(self, send: Callable[[], Report]) -> tuple[Report, RunCounts]:
        """Sends, and returns what was done. The checkpoint then names the ledger's newest entry.

        A stale ledger counts as current only once the run config has said how many campaign events may be sent with it.
        """
        began, before = time.monotonic(), self.customerio.traffic()
        report = send()
        if not self.ledger_is_stale or self.accepts_stale_ledger:
            ledger_checkpoint.save(self.store)
        counts = run_counts(report.counts, self.customerio.traffic() - before, time.monotonic() - began)
        return report, counts


@contextmanager
def _delivered_count_in_errors(ledger: Ledger, day: str, events: int) -> Iterator[None]:
    """Adds to the error of a delivery how many of the day's events are delivered, and that a rerun sends the rest."""
    try:
        yield
    except (Unavailable, NotDelivered) as error:
        kept = f"{len(ledger.delivered(day)):,} of {events:,} events of {day} are delivered and kept"
        raise type(error)(f"{error} {kept}: run the day again for the rest.") from None


def prepare_delivery(
    config: RunLimitsConfig,
    store: Store,
    customerio: CustomerIo,
    instance: dg.DagsterInstance,
    *,
    is_backfill: bool,
    identities: Identities | None = None,
    created_earlier_today: int = 0,
) -> RunDelivery:
    """Returns the delivery of a run with this config.

    identities: those whose links complete the suppression list (R21: suppression), by default the store's;
    created_earlier_today: the number of customers that earlier runs of the day have created. Raises `StorageError`.
    """
    is_stale = ledger_checkpoint.ledger_is_stale(store, instance)
    limits = config.run_limits(store, is_backfill=is_backfill, is_ledger_stale=is_stale)
    options = config.delivery_options(load_suppressed(customerio, identities or store.identities), store.options.allow_consent)
    accepts_stale = config.max_campaign_events is not None
    return RunDelivery(
        store, customerio, options, replace(limits, created_earlier_today=created_earlier_today), is_stale, accepts_stale
    )


def load_suppressed(customerio: CustomerIo, identities: Identities) -> Suppressed:
    """Returns the people on the suppression list, with every id and email that any day has linked to them (R21)."""
    return customerio.suppressed.with_linked(identities.linked, identities.all_names())


@contextmanager
def wait_for_delivery_lock(context: dg.OpExecutionContext, store: Store) -> Iterator[None]:
    """Holds the delivery lock during the block, after waiting until no other run does. After a transient error, the step is
    retried once."""
    try:
        with store.ledger.hold_delivery_lock(
            lambda: logger.info("Another run is delivering with this ledger: waiting until it is done.")
        ):
            yield
    except (Unavailable, DatabaseError) as error:
        if context.retry_number:
            raise
        raise dg.RetryRequested(max_retries=1, seconds_to_wait=RETRY_SECONDS) from error


@contextmanager
def tables_to_send(store: Store, days: Sequence[str], too_recent_from: datetime | None) -> Iterator[TablesByDay]:
    """The tables of each day. For a day with events that are too recent, temporary ones without these, which are removed after
    the block. They are derived again, because an event can bring attributes, customers, and earlier events of an anonymous
    visitor."""
    with ExitStack() as folders:
        tables = dict.fromkeys(days, store.tables)
        for day in days:
            if too_recent_from is not None and day_bounds(day)[1] > too_recent_from:
                tables[day] = Tables(str(folders.enter_context(temporary_folder())), temporary=True)
                store.derive(day, until=too_recent_from, into=tables[day])
        yield tables


def options_of_day(day: str, tables: Tables, store: Store, options: DeliveryOptions) -> DeliveryOptions:
    """Returns the options of a run's delivery with those stitched events of a day that were delivered with another (R16)."""
    if not store.options.stitches:
        return options
    shards, days = customers_and_events(tables, day), store.options.stitch_anonymous_days
    return replace(options, delivered_elsewhere=delivered_elsewhere(day, shards, store.ledger, days))


def events_too_recent(day: str, whole_day: Tables, to_send: Tables, store: Store, options: DeliveryOptions) -> int:
    """Returns the number of the day's unsent events that are not in the tables to send."""
    if to_send.root == whole_day.root:
        return 0
    unsent, of_those_to_send = (
        unsent_events(day, customers_and_events(tables, day), store.ledger, options_of_day(day, tables, store, options))
        for tables in (whole_day, to_send)
    )
    return max(0, unsent - of_those_to_send)


def left_for_another_run(day: str, whole_day: Tables, sent: Tables, store: Store, options: DeliveryOptions) -> int:
    """Returns the number of the day's upserts and events that a run which has sent these tables, with these options, has left
    for another run, on purpose."""
    if options.limit is None and sent.root == whole_day.root:
        return 0
    of_day = options_of_day(day, whole_day, store, options)
    return delivery.still_to_send(day, customers_and_events(whole_day, day), store.ledger, of_day)


def receipt_of(store: Store, day: str, counts: RunCounts, sample: list[str]) -> dict[str, dg.MetadataValue | int]:
    """Returns the day's receipt, from what the ledger now records of the day, and what a run did."""
    totals = store.ledger.totals(day)
    return receipt(totals, counts, sample, last_days(day, store, totals), connections.as_markdown(store.settings))
