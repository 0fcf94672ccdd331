"""A lane's requests, sent one after another: each answer is recorded before the next request is sent.

What an answer decides:

1. It names the items it refuses: these are recorded as refused, the others as accepted. If it names all, a probe is sent first.
2. It refuses the whole request: its halves are sent, until an item is refused alone.
3. An item that is refused alone is sent at least six times, with probes in between, which change nothing. If a probe is
   refused, Customer.io itself is at fault, and the run stops.
4. If the probes are accepted, and so was another item of the kind, the item is at fault: it is recorded as refused.
5. If none of its kind was accepted yet, the item waits for the end of the lane. Then it is decided by one that was accepted
   since, or by how many items were refused in the same words: more than can be at fault themselves stop the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from cio_pipeline.attribute_state import only_time, pack, unpack
from cio_pipeline.customerio.batches import Item, Request
from cio_pipeline.customerio.client import CUSTOMER, PROBE, TrackClient, WholeRequestRefused
from cio_pipeline.customerio.counts import (
    CAMPAIGN_EVENTS,
    EVENTS_SENT,
    NEW_CUSTOMERS,
    ONLY_PERSONLESS,
    UPSERTS_SENT,
    refused_because,
)
from cio_pipeline.customerio.rate_limit import Stopped
from cio_pipeline.http.retry import Unavailable
from cio_pipeline.progress import Progress
from cio_pipeline.rules.items import identifiers
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.refusals import Refusal

PROBES_BETWEEN_TRIES = (2, 1, 3, 1, 2)
"""How many probes are sent between the six tries of a single item. No fault at regular intervals hits all six tries and no
probe; a random one, whatever its probability, does so in fewer than one of 20,000 cases."""

SERVICE_AT_FAULT = 10
"""If this many items of a kind are refused in the same words, and none is accepted, the service is at fault."""


class Undecided(Unavailable):
    """A few items were refused, each sent by itself, and none of their kind was accepted: no answer shows what is at fault."""


class Sender:
    """Sends the requests of one lane, each after the answer to the previous one has been recorded.

    without_upsert: `Plan.without_upsert`.
    """

    def __init__(
        self,
        day: str,
        requests: list[Request],
        ledger: Ledger,
        client: TrackClient,
        progress: Progress,
        without_upsert: Mapping[str, bool],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._day, self._requests, self._ledger, self._client, self._progress = day, requests, ledger, client, progress
        self._new_customers: set[str] = set()
        self._without_upsert = dict(without_upsert)
        self._refused_alone: list[tuple[Request, WholeRequestRefused]] = []

    def run(self) -> Counter[str]:
        """Sends the requests, unless another lane has failed. Returns the counts."""
        try:
            for request in self._requests:
                self._send_or_halve(request)
            self._decide_refused_alone()
        except Stopped:
            pass
        except BaseException:
            self._client.rate_limit.stop()
            raise
        return self.counts

    def _send_or_halve(self, request: Request) -> None:
        """Sends one request. If the answer does not say which item is bad, sends its halves, until the bad item is alone.

        Raises `http.retry.Unavailable` if all items are refused, and so is a probe.
        """
        try:
            refused = self._post(request)
        except WholeRequestRefused as why:
            if len(request) == 1:
                self._decide_alone(request, why)
                return
            for half in request.halves():
                self._send_or_halve(half)
        else:
            if len(refused) == len(request):
                self._client.probe(self._probe())
            self._acknowledge(request, refused)

    def _decide_alone(self, request: Request, why: WholeRequestRefused) -> None:
        """Decides whether an item that was refused alone is at fault: it is, if Customer.io accepts probes in between.

        The item and probes alternate unevenly, so that the item does not take the blame for a fault that comes and goes. Raises
        `http.retry.Unavailable` if a probe is refused, too, as Customer.io would then refuse anything.
        """
        for probes in PROBES_BETWEEN_TRIES:
            for _ in range(probes):
                self._client.probe(self._probe())
            if (again := self._why_refused(request)) is None:
                return
            why = again
        kind = _kind(request)
        if kind not in self._client.accepted:
            self._refused_alone.append((request, why))
            self._add_without_upsert(request.items())
            self._stop_where_refused_alike(kind, why, SERVICE_AT_FAULT - 1, Unavailable)
            return
        if kind != CUSTOMER:
            self._client.probe(*self._client.accepted[kind], "even an event that it has accepted before")
            if (again := self._why_refused(request)) is None:
                return
            why = again
        self._refuse(request, why)

    def _probe(self) -> bytes:
        """Returns an operation that changes nothing: the upsert that was accepted last, if any was."""
        operation, _ = self._client.accepted.get(CUSTOMER, (PROBE, None))
        return operation

    def _decide_refused_alone(self) -> None:
        """Decides about items that were refused alone before any of their kind was accepted: by one that was since, or by the
        words of their refusals."""
        for request, why in self._refused_alone:
            if _kind(request) in self._client.accepted:
                self._decide_alone(request, why)
            else:
                self._stop_where_refused_alike(_kind(request), why, why.max_at_fault, Undecided)
                self._refuse(request, why)

    def _stop_where_refused_alike(
        self, kind: str, why: WholeRequestRefused, max_at_fault: int, error: type[Unavailable]
    ) -> None:
        """Raises the error where more items of the kind were refused in the same words than may be at fault themselves."""
        said = (kind, why.reason, why.detail)
        if sum((_kind(one), its.reason, its.detail) == said for one, its in self._refused_alone) > max_at_fault:
            raise error(
                f"Customer.io has accepted no {kind} so far, and refuses each with {why.reason}. The fault may be"
                " Customer.io's, so these items are not recorded as refused, and a rerun sends them."
            )

    def _refuse(self, request: Request, why: WholeRequestRefused) -> None:
        self._acknowledge(request, {0: (why.reason, why.detail)})

    def _why_refused(self, request: Request) -> WholeRequestRefused | None:
        """Sends an item alone. Returns None where the answer accepts it, or refuses it by name."""
        try:
            self._acknowledge(request, self._post(request))
        except WholeRequestRefused as refusal:
            return refusal
        return None

    def _post(self, request: Request) -> dict[int, tuple[str, str]]:
        self._ledger.check_lock()
        if (identifier := _identifier(request)) is not None:
            self._client.event(identifier, request.last_operation())
            return {}
        return self._client.batch(request.operations())

    def _acknowledge(self, request: Request, refused: dict[int, tuple[str, str]]) -> None:
        """Records what the answer says about each item."""
        answer, accepted = Acknowledgement(), request
        if refused:
            items = request.items()
            answer.refused = [_refusal(items[index], *why) for index, why in refused.items()]
            accepted = request.without(refused)
            self._add_without_upsert([items[index] for index in refused])
        answer.event_ids, answer.campaign_events = accepted.packed_ids(), accepted.campaign_events
        answer.ids_to_close = accepted.item_ids
        for upsert in accepted.upserts:
            answer.customers[upsert.key] = answer.customers.get(upsert.key, b"") + upsert.state
        new = self._new_customers_of(accepted)
        answer.customers |= {key: pack(only_time(0)) for key in new if key not in answer.customers}
        self._ledger.acknowledge(self._day, answer)
        if accepted.upserts:
            self._client.accepted[CUSTOMER] = (accepted.upserts[-1].operation, None)
        if answer.event_ids:
            kind = "large event" if accepted.is_v1_call else "event"
            self._client.accepted[kind] = (accepted.last_operation(), _identifier(accepted))
        self._count(accepted, answer.refused, new)

    def _new_customers_of(self, accepted: Request) -> dict[str, bool]:
        """Returns the customers that the accepted items have created, by key, and whether they have only personless events. An
        event creates a customer, too, if the upsert was refused."""
        new = {upsert.key: upsert.is_personless for upsert in accepted.upserts if upsert.is_new}
        if self._without_upsert:
            of_events = set(accepted.event_keys())
            new |= {key: personless for key, personless in self._without_upsert.items() if key in of_events and key not in new}
        return {key: personless for key, personless in new.items() if key not in self._new_customers}

    def _add_without_upsert(self, refused: list[Item]) -> None:
        self._without_upsert |= {item.key: item.is_personless for item in refused if item.is_new}

    def _count(self, accepted: Request, refused: list[Refusal], new: Mapping[str, bool]) -> None:
        upserts, events = accepted.upserts, len(accepted.rows)
        self.counts[UPSERTS_SENT] += len(upserts)  # a customer of several parts (R10) counts once for each
        self._new_customers |= new.keys()
        self.counts[NEW_CUSTOMERS] += len(new)
        self.counts[ONLY_PERSONLESS] += sum(new.values())
        self.counts[EVENTS_SENT] += events
        self.counts[CAMPAIGN_EVENTS] += accepted.campaign_events
        for refusal in refused:
            self.counts[refused_because(refusal.reason)] += 1
        self._progress.add(events + sum(refusal.kind == "event" for refusal in refused))


def _kind(request: Request) -> str:
    """Returns the kind of a single item: only the acceptance of another of its kind says something about it."""
    return CUSTOMER if request.upserts else "large event" if request.is_v1_call else "event"


def _identifier(request: Request) -> str | None:
    """Returns the customer's id or email in the v1 call's path; None for a batch."""
    if not request.is_v1_call:
        return None
    [item] = request.items()
    [identifier] = identifiers(item.key).values()
    return identifier


def _refusal(item: Item, reason: str, detail: str) -> Refusal:
    kind = "customer" if item.is_customer else "event"
    return Refusal(item.item_id, kind, reason, detail, item.operation.decode(), item.key, item.call, unpack(item.state))
