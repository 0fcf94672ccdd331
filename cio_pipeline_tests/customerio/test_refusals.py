"""What Customer.io refuses is the item's fault or the service's, and only the first is ever kept as refused."""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from cio_pipeline.customerio import batches as items
from cio_pipeline.customerio.client import PROBE, NotDelivered, TrackClient
from cio_pipeline.customerio.delivery import preview
from cio_pipeline.customerio.forecast import Forecast
from cio_pipeline.customerio.selection import DEFAULTS
from cio_pipeline.customerio.sender import SERVICE_AT_FAULT, Undecided
from cio_pipeline.http.retry import Unavailable
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.customerio.clock import Clock
from cio_pipeline_tests.deliveries import deliver, redeliver
from cio_pipeline_tests.rules.streams import Frames, event, tables

DAY = "2026-03-02"
Workspace = customerio.CustomerioServer

INACTIVE = (400, {"meta": {"error": "workspace is not active"}})
FIREWALL = "<html><head><style>x{}</style><title>Attention Required!</title></head><body>You were blocked</body></html>"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def send(workspace: Workspace, ledger: Ledger, made: Frames) -> None:
    client = TrackClient(workspace.url, "sandbox", "sandbox-key", 1000)
    client.check()
    deliver(DAY, [made.shard], ledger, client)


def answer_where(workspace: Workspace, is_meant: Callable[[str, bytes], bool], given: Any) -> None:
    """Gives this answer to the posts that are meant."""
    answer = workspace.answer

    def instead(method: str, path: str, authorization: str, body: bytes) -> Any:
        return given if method == "POST" and is_meant(path, body) else answer(method, path, authorization, body)

    workspace.answer = instead  # type: ignore[method-assign]


def day(count: int = 12, **large: Any) -> Frames:
    return tables(*(event(f"e{n}", f"u{n % 5}", n=n, set_={"n": n}, **(large if n % 4 == 0 else {})) for n in range(count)))


@pytest.mark.parametrize(
    "given", [INACTIVE, (400, {}), (400, "no"), (413, {}), (422, {"errors": "no"}), (403, FIREWALL), (207, {})]
)
def test_what_is_said_to_everything_is_the_services_fault_and_a_rerun_sends(
    workspace: Workspace, ledger: Ledger, given: Any
) -> None:
    answer = workspace.answer
    answer_where(workspace, lambda *_: True, given)
    with pytest.raises(
        Unavailable,
        match=r"^Customer\.io \(127\.0\.0\.1\) refuses every request, even one that changes nothing \(\d+ .+\): the items",
    ) as stopped:
        send(workspace, ledger, day())
    assert ("workspace is not active" in str(stopped.value)) == (given is INACTIVE)
    assert len(workspace.requests) < 20
    assert (ledger.refusals(), len(ledger.delivered(DAY))) == ({}, 0)
    workspace.answer = answer  # type: ignore[method-assign]
    send(workspace, ledger, day())
    assert (len(ledger.delivered(DAY)), workspace.workspace.totals()["events"]) == (12, 12)


@pytest.mark.parametrize("given", [INACTIVE, (400, {}), (413, {}), (403, FIREWALL), (207, {})])
@pytest.mark.parametrize("bad", [0, 5, 11])
def test_an_item_that_spoils_its_batch_is_found_and_refused_and_the_rest_is_sent(
    workspace: Workspace, ledger: Ledger, given: Any, bad: int
) -> None:
    answer_where(workspace, lambda _, body: f'"name":"e{bad}"'.encode() in body, given)
    send(workspace, ledger, day())
    [refusal] = ledger.refused(DAY).values()
    assert f'"name":"e{bad}"' in refusal.operation
    assert refusal.reason.startswith(str(given[0]))
    assert len(ledger.delivered(DAY)) == 11
    requests = len(workspace.requests)
    send(workspace, ledger, day())
    assert len(workspace.requests) == requests + 1, "what was refused is not sent again; one request asks for the region"


@pytest.mark.parametrize(("given", "size"), [(INACTIVE, 40_000), ((403, FIREWALL), 10), ((403, FIREWALL), 40_000)])
def test_an_item_that_is_all_there_is_to_send_is_refused_for_its_own_fault(
    workspace: Workspace, ledger: Ledger, given: Any, size: int
) -> None:
    made = tables(event("good"), event("bad", at="2026-03-02T11:00Z", d="<script>" * (size // 8)))
    send(workspace, ledger, made._replace(events=made.events[made.events["name"] == "good"]))
    answer_where(workspace, lambda path, body: b"<script>" in body, given)
    send(workspace, ledger, made)
    [refusal] = ledger.refused(DAY).values()
    assert (refusal.item_id, refusal.reason[:3]) == (
        made.events.loc[made.events["name"] == "bad", "ulid"].item(),
        str(given[0]),
    )
    assert ("You were blocked" in refusal.detail) == (given[1] is FIREWALL)


LIMIT = {"reason": "limit", "message": "no more events"}


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize(
    "given", [(400, {"errors": [LIMIT]}), INACTIVE, (422, {}), (207, {"errors": [LIMIT]}), (207, FIREWALL), (401, FIREWALL)]
)
def test_a_few_events_that_are_all_there_is_are_not_refused_for_words_that_name_none_of_them(
    workspace: Workspace, ledger: Ledger, given: Any, count: int
) -> None:
    answer = workspace.answer
    answer_where(workspace, lambda _, body: b'"action":"event"' in body, given)
    with pytest.raises(
        Unavailable, match=r"^Customer\.io has accepted no event so far, and refuses each with .+, and a rerun sends them\.$"
    ):
        send(workspace, ledger, day(count))
    assert ledger.refusals() == {}
    workspace.answer = answer  # type: ignore[method-assign]
    send(workspace, ledger, day(count))
    assert len(ledger.delivered(DAY)) == count


@pytest.mark.parametrize("given", [(207, FIREWALL), (207, {}), (401, FIREWALL), (401, {})])
def test_a_large_event_is_not_refused_for_what_the_v1_call_never_says_of_an_event(
    workspace: Workspace, ledger: Ledger, given: Any
) -> None:
    answer_where(workspace, lambda path, _: path.endswith("/events"), given)
    with pytest.raises(Unavailable, match=r"^Customer\.io has accepted no large event so far, and refuses each with \d+ .+\.$"):
        send(workspace, ledger, tables(event("e", d="x" * 40_000)))
    assert ledger.refusals() == {}


@pytest.mark.parametrize(("given", "count"), [((400, FIREWALL), 1), ((422, None), 1), ((400, {}), 1), ((403, FIREWALL), 2)])
def test_large_events_are_not_refused_for_a_page_that_is_about_none_of_them(
    workspace: Workspace, ledger: Ledger, given: Any, count: int
) -> None:
    answer_where(workspace, lambda path, _: path.endswith("/events"), given)
    with pytest.raises(Undecided, match=r"^Customer\.io has accepted no large event so far, and refuses each with \d+ .+\.$"):
        send(workspace, ledger, tables(event("small"), *(event(f"e{n}", d="x" * 40_000) for n in range(count))))
    assert ledger.refusals() == {}


@pytest.mark.parametrize(
    ("given", "count", "is_own"),
    [
        ((400, {"errors": [{"batch_index": 0, "reason": "invalid"}]}), 1, True),
        ((400, {"errors": [{"field": "name", "reason": "invalid"}]}), 1, True),
        ((400, {"errors": [{"field": "name", "reason": "invalid"}]}), 2, False),
        ((413, {}), 9, True),
        ((403, FIREWALL), 9, True),
        ((403, FIREWALL), 10, False),
    ],
)
def test_events_that_are_all_there_is_are_refused_where_the_answer_is_about_what_is_in_them(
    workspace: Workspace, ledger: Ledger, given: Any, count: int, is_own: bool
) -> None:
    answer_where(workspace, lambda _, body: b'"action":"event"' in body, given)
    if is_own:
        send(workspace, ledger, day(count))
        assert len(ledger.refused(DAY)) == count
    else:
        with pytest.raises(Unavailable, match="has accepted no event so far"):
            send(workspace, ledger, day(count))
        assert ledger.refusals() == {}


@pytest.mark.parametrize("large", [{}, {"d": "x" * 40_000}], ids=["batch", "v1"])
@pytest.mark.parametrize("given", [(400, {"errors": [LIMIT]}), (403, FIREWALL)])
def test_events_that_are_refused_from_some_moment_on_are_not_at_fault(
    workspace: Workspace, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, given: Any, large: dict[str, str]
) -> None:
    """As where an account has used up what it may send: events were accepted before, and upserts still are."""
    monkeypatch.setattr(items, "MAX_REQUEST_BYTES", 1_500)
    answer, events = workspace.answer, 0

    def is_late(path: str, body: bytes) -> bool:
        nonlocal events
        is_event = path.endswith("/events") if large else b'"action":"event"' in body
        events += is_event
        return is_event and events > 3

    answer_where(workspace, is_late, given)
    with pytest.raises(
        Unavailable, match=r"refuses even an event that it has accepted before \(.+\): the items are not at fault"
    ):
        send(workspace, ledger, day(40, **large))
    assert ledger.refusals() == {}
    workspace.answer = answer  # type: ignore[method-assign]
    send(workspace, ledger, day(40, **large))
    assert (len(ledger.delivered(DAY)), workspace.workspace.totals()["events"]) == (40, 40)


def test_events_that_were_refused_for_a_while_are_sent_once_others_are_accepted(workspace: Workspace, ledger: Ledger) -> None:
    events = 0

    def is_early(_: str, body: bytes) -> bool:
        nonlocal events
        events += b'"action":"event"' in body
        return b'"action":"event"' in body and events < 14

    answer_where(workspace, is_early, (400, {"errors": [LIMIT]}))
    send(workspace, ledger, day(8))
    assert (ledger.refusals(), len(ledger.delivered(DAY))) == ({}, 8)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_a_service_that_names_every_item_whatever_it_is_sent_is_at_fault_itself(
    workspace: Workspace, ledger: Ledger, count: int
) -> None:
    answer = workspace.answer

    def all_named(method: str, path: str, authorization: str, body: bytes) -> Any:
        if method != "POST":
            return answer(method, path, authorization, body)
        items = json.loads(body)["batch"]
        return 207, {"errors": [{"batch_index": index, "reason": "inactive"} for index in range(len(items))]}

    workspace.answer = all_named  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match=r"refuses every request, even one that changes nothing \(inactive\): the items"):
        send(workspace, ledger, day(count))
    assert ledger.refusals() == {}
    workspace.answer = answer  # type: ignore[method-assign]
    send(workspace, ledger, day(count))
    assert len(ledger.delivered(DAY)) == count


def test_what_is_sent_between_tries_of_a_lone_item_is_an_upsert_that_was_accepted_before(
    workspace: Workspace, ledger: Ledger
) -> None:
    """A service that does not know `_update` would make a customer of the other one."""
    bodies: list[bytes] = []

    def is_bad(_: str, body: bytes) -> bool:
        bodies.append(body)
        return b'"name":"e5"' in body

    answer_where(workspace, is_bad, INACTIVE)
    send(workspace, ledger, day())
    assert (len(ledger.refused(DAY)), len(ledger.delivered(DAY))) == (1, 11)
    assert not [body for body in bodies if PROBE in body]
    person = workspace.workspace.person("u4")
    assert person is not None
    assert (person.values, len(workspace.workspace.people())) == ({"n": 9, "identifier": "u4"}, 5)


def test_a_customer_alone_in_its_lane_is_refused_once_another_lane_has_had_one_accepted(
    workspace: Workspace, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "LANE_BYTES", 1)
    lanes: dict[int, list[str]] = {}
    for key in (f"u{n}" for n in range(40)):
        lanes.setdefault(crc32(f"id:{key}".encode()) % items.MAX_LANES, []).append(key)
    bad, good = lanes[0][0], lanes[1]
    accepted = threading.Event()

    def is_bad(_: str, body: bytes) -> bool:
        if f'"id":"{bad}"'.encode() in body and b"identify" in body:
            return accepted.wait(10)
        if any(f'"id":"{key}"'.encode() in body for key in good):
            accepted.set()
        return False

    answer_where(workspace, is_bad, INACTIVE)
    send(workspace, ledger, tables(*(event(f"e{n}", key, set_={"n": n}) for n, key in enumerate([bad, *good]))))
    [refusal] = ledger.refused(DAY).values()
    assert (refusal.kind, refusal.key) == ("customer", f"id:{bad}")
    assert workspace.workspace.totals()["events"] == 1 + len(good)


@pytest.mark.parametrize("refused", [0, 1])
def test_a_customer_of_several_upserts_counts_as_new_once_although_one_of_them_is_refused(
    workspace: Workspace, ledger: Ledger, refused: int
) -> None:
    made = tables(event(set_={f"a{n}": "x" * 900 for n in range(100)}))
    assert len(made.customers) == 3
    [name] = list(json.loads(made.customers["operation"][refused])["attributes"])[:1]
    answer_where(workspace, lambda _, body: f'"{name}":'.encode() in body, (413, {}))
    client = TrackClient(workspace.url, "sandbox", "sandbox-key", 1000)
    counts = deliver(DAY, [made.shard], ledger, client).counts
    assert (counts["upserts sent"], counts["new customers"], len(ledger.refusals())) == (2, 1, 1)


def upserts_refused(workspace: Workspace, how: Any) -> None:
    """Refuses every upsert but the probe; `how` makes the answer of the upserts' numbers in a batch, or is the whole answer."""
    batch = workspace.workspace.batch

    def instead(body: bytes) -> Any:
        items = json.loads(body)["batch"]
        bad = [n for n, item in enumerate(items) if item["action"] == "identify" and "_update" not in item["attributes"]]
        if bad and not callable(how):
            return how
        good = [item for n, item in enumerate(items) if n not in bad]
        answer = batch(json.dumps({"batch": good}).encode()) if good else (200, {})
        return how(bad) if bad else answer

    workspace.workspace.batch = instead  # type: ignore[method-assign]


def named(numbers: list[int]) -> Any:
    return 207, {"errors": [{"batch_index": number, "reason": "invalid", "field": "attributes"} for number in numbers]}


@pytest.mark.parametrize("how", [named, (413, {})], ids=["named", "alone"])
def test_a_customer_that_only_an_event_creates_counts_as_new_once(workspace: Workspace, ledger: Ledger, how: Any) -> None:
    upserts_refused(workspace, how)
    made = tables(*(event(f"e{n}", f"u{n % 5}", set_={"n": n}) for n in range(8)), event("p", "u9"))
    client = TrackClient(workspace.url, "sandbox", "sandbox-key", 1000)
    counts = deliver(DAY, [made.shard], ledger, client).counts
    assert len(workspace.workspace.people()) == 6
    assert (counts["new customers"], ledger.totals(DAY).new_customers, len(ledger.refused(DAY))) == (6, 6, 6)
    assert deliver(DAY, [made.shard], ledger, client).counts["new customers"] == 0
    assert ledger.unknown([f"id:u{n}" for n in range(5)]) == []


def test_customers_that_only_events_are_still_to_create_count_before_they_are_sent(
    workspace: Workspace, ledger: Ledger
) -> None:
    upserts_refused(workspace, named)
    made = tables(*(event(f"e{n}", f"u{n}", set_={"n": n}) for n in range(4)))
    send(workspace, ledger, made._replace(events=made.events[:0]))
    assert (len(ledger.refused(DAY)), ledger.totals(DAY).new_customers) == (4, 0)
    forecast, seen = Forecast(), set[str]()
    forecast.add_day(DAY, [made.shard], ledger, DEFAULTS)
    shown = preview(DAY, [made.shard], ledger, DEFAULTS, seen).counts
    send(workspace, ledger, made)
    assert forecast.new_customers == shown["new customers"] == ledger.totals(DAY).new_customers == len(seen) == 4


def test_customers_that_a_redelivered_event_creates_count_as_new(workspace: Workspace, ledger: Ledger) -> None:
    made = tables(event("paid", set_={"n": 1}))
    with pytest.MonkeyPatch.context() as refusing:
        refusing.setattr(workspace.workspace, "batch", lambda body: named(list(range(len(json.loads(body)["batch"])))))
        refusing.setattr(TrackClient, "probe", lambda *_: None)
        send(workspace, ledger, made)
    [of_event] = [refusal for refusal in ledger.refused(DAY).values() if refusal.kind == "event"]
    client = TrackClient(workspace.url, "sandbox", "sandbox-key", 1000)
    counts = redeliver(DAY, [of_event], ledger, client).counts
    assert (counts["events sent"], counts["new customers"], ledger.totals(DAY).new_customers) == (1, 1, 1)


def test_several_bad_items_beside_good_ones_are_each_refused(workspace: Workspace, ledger: Ledger) -> None:
    answer_where(workspace, lambda _, body: any(f'"name":"e{n}"'.encode() in body for n in range(1, 40)), (403, FIREWALL))
    send(workspace, ledger, day(60))
    assert (len(ledger.refused(DAY)), len(ledger.delivered(DAY))) == (39, 21)


@pytest.mark.parametrize("large", [{}, {"d": "x" * 40_000}], ids=["batch", "v1"])
def test_a_kind_of_item_that_is_refused_in_the_same_words_throughout_is_not_each_ones_fault(
    workspace: Workspace, ledger: Ledger, large: dict[str, str]
) -> None:
    """As where an account may send no more events."""
    answer = workspace.answer
    is_meant = (lambda path, _: path.endswith("/events")) if large else (lambda _, body: b'"action":"event"' in body)
    answer_where(workspace, is_meant, (400, {"errors": [{"reason": "limit", "message": "no more events"}]}))
    made = day(4 * SERVICE_AT_FAULT + 4, **large)
    with pytest.raises(
        Unavailable,
        match=r"^Customer\.io has accepted no (large )?event so far, and refuses each with 400 limit\. The fault may be",
    ):
        send(workspace, ledger, made)
    assert ledger.refusals() == {}
    workspace.answer = answer  # type: ignore[method-assign]
    send(workspace, ledger, made)
    assert len(ledger.delivered(DAY)) == len(made.events)


@pytest.mark.parametrize("given", [(401, FIREWALL), (401, {}), (403, {"meta": {"error": "Unauthorized request"}})])
def test_keys_that_are_withdrawn_in_mid_run_end_it_at_once(workspace: Workspace, ledger: Ledger, given: Any) -> None:
    from_the_first_post_on(workspace, given)
    sentence = rf"^CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY are not accepted .* \({given[0]}\)"
    with pytest.raises(NotDelivered, match=sentence):
        send(workspace, ledger, day())
    assert (len(workspace.requests), ledger.refusals()) == (3, {})


def test_a_firewall_that_refuses_everything_is_named_and_not_the_keys(
    workspace: Workspace, ledger: Ledger, clock: Clock
) -> None:
    from_the_first_post_on(workspace, (403, FIREWALL))
    with pytest.raises(NotDelivered, match=r"in 3 tries: a firewall or proxy in between refuses it \(status 403\): .*\?$"):
        send(workspace, ledger, day())
    assert ledger.refusals() == {}


def from_the_first_post_on(workspace: Workspace, given: Any) -> None:
    """Gives this answer to every request, also to the check of the keys."""
    answer, posts = workspace.answer, 0

    def instead(method: str, path: str, authorization: str, body: bytes) -> Any:
        nonlocal posts
        posts += method == "POST"
        return given if posts else answer(method, path, authorization, body)

    workspace.answer = instead  # type: ignore[method-assign]


ITEM = {"batch_index": 0, "reason": "invalid"}
BODIES: list[Any] = [
    {},
    [],
    None,
    "",
    "words \x1b[31m\n",
    FIREWALL,
    {"errors": []},
    {"errors": None},
    {"errors": "no"},
    {"errors": {"reason": "no"}},
    {"errors": [None]},
    {"errors": [["no"]]},
    {"errors": ["no"]},
    {"errors": [{"reason": ["no"], "field": {"a": 1}, "message": 7}]},
    *({"errors": [{**ITEM, "batch_index": index}]} for index in (-1, 2**62, True, False, 0.0, "0", None, [0], 99)),
    {"errors": [{**ITEM, "batch_index": 99}, ITEM]},
    {"meta": {"error": "no"}},
    {"meta": {"errors": ["no"]}},
    {"meta": "no"},
    {"status": "ok"},
]
STATUSES = [103, 200, 201, 202, 204, 207, 302, 400, 401, 403, 404, 405, 413, 418, 422, 429, 451, 500, 503, 520, 530]


def is_acknowledgement(status: int, body: Any) -> bool:
    """Which the workspace must then have taken."""
    return status == 200 and body in ({}, {"errors": []})


ANSWERS = [(status, body) for status in STATUSES for body in BODIES if not is_acknowledgement(status, body)]


@pytest.mark.parametrize("seed", range(4))
def test_any_answer_at_any_point_of_a_run_acknowledges_and_refuses_nothing_wrongly(
    seed: int, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "MAX_REQUEST_BYTES", 1_500)
    monkeypatch.setattr(items, "LANE_BYTES", 10_000)
    rnd = random.Random(seed)
    made = tables(
        *(
            {
                **event(f"e{n}", f"u{n % 7}", set_={"n": n}, d="x" * (40_000 if n == 20 else 0)),
                "uuid": str(uuid.UUID(int=rnd.getrandbits(128))),
            }
            for n in range(40)
        )
    )
    made = made._replace(events=made.events.assign(operation=made.events["operation"].str.replace('"name":"e7"', '"name":""')))
    wrong: list[Any] = []
    for trial, given in enumerate(rnd.sample(ANSWERS, 15)):
        ledger = Ledger(f"sqlite:///{tmp_path / f'{trial}.db'}")
        with customerio.serve() as workspace:
            answer, number = workspace.answer, 0
            first, rhythm, times = rnd.randrange(1, 12), rnd.choice([1, 1, 2, 3, 4, 5]), rnd.choice([1, 2, 3, 6, 20, 40])
            hit = {first + n * rhythm for n in range(times)}

            def odd(*request: Any, hit: Any = hit, answer: Any = answer, given: Any = given) -> Any:
                nonlocal number
                number += 1
                return given if number in hit else answer(*request)

            workspace.answer = odd  # type: ignore[method-assign, assignment]
            for _ in range(60):
                try:
                    send(workspace, ledger, made)
                except (Unavailable, NotDelivered):
                    assert len(ledger.delivered(DAY)) <= workspace.workspace.totals()["events"]
                    continue
                break
            refused = [refusal.operation for refusal in ledger.refused(DAY).values()]
            if len(ledger.delivered(DAY)) != 39 or workspace.workspace.totals()["events"] != 39 or len(refused) != 1:
                wrong.append((given, first, rhythm, times, len(ledger.delivered(DAY)), len(refused)))
            assert workspace.workspace.person("harmless.cio_pipeline") is None
    assert wrong == []


def test_what_is_sent_to_see_whether_all_is_refused_changes_nothing(workspace: Workspace) -> None:
    client = TrackClient(workspace.url, "sandbox", "sandbox-key", 1000)
    client.probe()
    assert [request.path for request in workspace.requests] == ["/api/v2/batch"]
    assert workspace.workspace.totals() == {"people": 0, "events": 0}
    assert PROBE.startswith(b'{"type":"person","action":"identify"')
