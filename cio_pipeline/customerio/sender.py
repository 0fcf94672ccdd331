"""A lane's requests, sent one after another: what is accepted and what is refused is kept before the next one goes out."""

from __future__ import annotations

from collections import Counter

from cio_pipeline.customer_state import unpack
from cio_pipeline.customerio.batches import Item, Request
from cio_pipeline.customerio.client import HARMLESS, TrackClient, UnnamedRefusal
from cio_pipeline.customerio.progress import Progress
from cio_pipeline.customerio.rate_limit import Stopped
from cio_pipeline.http_retry import Unavailable
from cio_pipeline.rules.operations import identifiers
from cio_pipeline.state.ledger import Acknowledgement, Ledger, Refusal

HARMLESS_BETWEEN_TRIES = (2, 1, 3, 1, 2)
"""Requests between the six tries of an item alone. No fault that comes and goes evenly hits just these, and one that comes by
chance, whatever its odds, does so in less than one of 20,000 cases."""

MANY_ALIKE = 10
"""So many refused in the same words, and none of their kind accepted, is no accident of these."""

ONLY_PERSONLESS = "new customers with nothing but personless events"


class Sender:
    """Sends the requests of one lane, each answered and acknowledged before the next."""

    def __init__(self, day: str, requests: list[Request], ledger: Ledger, client: TrackClient, progress: Progress) -> None:
        self.counts: Counter[str] = Counter()
        self._day, self._requests, self._ledger, self._client, self._progress = day, requests, ledger, client, progress
        self._accepted_kinds: set[str] = set()
        self._harmless = HARMLESS
        self._unnamed: list[tuple[Request, UnnamedRefusal]] = []

    def run(self) -> Counter[str]:
        """Sends the requests, unless another lane has failed; gives the counts."""
        try:
            for request in self._requests:
                self._send(request)
            self._refuse_unnamed()
        except Stopped:
            pass
        except BaseException:
            self._client.rate_limit.stop()
            raise
        return self.counts

    def _send(self, request: Request) -> None:
        """Sends one request; where the answer does not tell which item is bad, its halves, until the bad one is alone.

        Raises `http.Unavailable` where it refuses all of them, and a harmless one, too.
        """
        try:
            refused = self._post(request)
        except UnnamedRefusal:
            if len(request) > 1:
                for half in request.halves():
                    self._send(half)
                return
        else:
            if len(refused) == len(request):
                self._client.try_harmless(self._harmless)
            self._acknowledge(request, refused)
            return
        self._send_alone(request)

    def _send_alone(self, request: Request) -> None:
        """An item that was refused alone, but not by name: the fault is its own if Customer.io takes a harmless one meanwhile.

        By turns, and not evenly, for a fault that comes and goes must not look like the item's. Raises `http.Unavailable` where
        Customer.io refuses the harmless one, too: then it would refuse all.
        """
        for harmless in HARMLESS_BETWEEN_TRIES:
            for _ in range(harmless):
                self._client.try_harmless(self._harmless)
            try:
                refused = self._post(request)
            except UnnamedRefusal as unnamed:
                last = unnamed
            else:
                self._acknowledge(request, refused)
                return
        self._unnamed.append((request, last))
        if _kinds(request) <= self._accepted_kinds:
            self._refuse_unnamed()
        else:
            self._stop_where_all_are_refused_alike(request, last)

    def _stop_where_all_are_refused_alike(self, request: Request, last: UnnamedRefusal) -> None:
        [kind], said = _kinds(request), (last.reason, last.detail)
        if sum(_kinds(one) == {kind} and (why.reason, why.detail) == said for one, why in self._unnamed) >= MANY_ALIKE:
            raise Unavailable(f"Customer.io refuses every {kind} in the same words, with {last.reason}: a rerun sends them.")

    def _refuse_unnamed(self) -> None:
        """Keeps as refused what was found to be so alone."""
        while self._unnamed:
            request, why = self._unnamed.pop(0)
            self._acknowledge(request, {0: (why.reason, why.detail)})

    def _post(self, request: Request) -> dict[int, tuple[str, str]]:
        self._ledger.check_lock()
        if request.is_large:
            [item] = request.items()
            [identifier] = identifiers(item.key).values()
            self._client.event(identifier, item.operation)
            return {}
        return self._client.batch(request.operations())

    def _acknowledge(self, request: Request, refused: dict[int, tuple[str, str]]) -> None:
        """Keeps what the answer says of each item."""
        upserts, event_ids, kinds = request.upserts, request.event_ids(), _kinds(request)
        answer = Acknowledgement()
        if refused:
            items = request.items()
            accepted = [item for index, item in enumerate(items) if index not in refused]
            upserts, event_ids = (
                [item for item in accepted if item.is_customer],
                [item.name for item in accepted if not item.is_customer],
            )
            kinds = {_kind(item) for item in accepted}
            answer.refused = [_refusal(items[index], *why) for index, why in refused.items()]
        for upsert in upserts:
            self._harmless = upsert.operation  # sent once more, it changes nothing
            answer.customers[upsert.key] = answer.customers.get(upsert.key, b"") + upsert.state
        answer.event_ids, answer.accepted = event_ids, [upsert.name for upsert in upserts] + event_ids
        self._ledger.acknowledge(self._day, answer)
        self._accepted_kinds |= kinds
        self._count(upserts, answer)

    def _count(self, upserts: list[Item], answer: Acknowledgement) -> None:
        self.counts["customers sent"] += len(upserts)
        self.counts["new customers"] += sum(item.is_new for item in upserts)
        self.counts[ONLY_PERSONLESS] += sum(item.is_personless for item in upserts)
        self.counts["events sent"] += len(answer.event_ids)
        for refusal in answer.refused:
            self.counts[f"refused: {refusal.reason}"] += 1
        self._progress.add(len(answer.event_ids) + sum(refusal.kind == "event" for refusal in answer.refused))


def _kinds(request: Request) -> set[str]:
    """What items must have in common with others, so that the others' acceptance says something about them."""
    events = {"large event" if request.is_large else "event"} if len(request.rows) else set()
    return events | ({"customer"} if request.upserts else set())


def _kind(item: Item) -> str:
    return "customer" if item.is_customer else "event" if item.call == "batch" else "large event"


def _refusal(item: Item, reason: str, detail: str) -> Refusal:
    kind = "customer" if item.is_customer else "event"
    return Refusal(item.name, kind, reason, detail, item.operation.decode(), item.key, item.call, unpack(item.state))
