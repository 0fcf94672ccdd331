"""Generates the events of a realistic product, as PostHog stores them: the same for the same seed in any process."""

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

from cio_pipeline.sandbox.posthog.capture import Event, Person, Properties, Session, stored_event

VISITORS_PER_DAY = 275
FIRST_NAMES = ("Ada", "Bruno", "Chloé", "Dario", "Emre", "Freya", "Goran", "Hana", "Ines", "Jonas", "Kira", "Łukasz")
LAST_NAMES = ("Andersen", "Baker", "Costa", "Duarte", "Eriksson", "Fischer", "García", "Haddad", "Ito", "Jansen")
COMPANIES = ("Alder Works", "Birch & Co", "Cedar Labs", "Dogwood Ltd")
BROWSERS = (("Chrome", "Windows"), ("Chrome", "Mac OS X"), ("Safari", "iOS"), ("Firefox", "Linux"), ("Edge", "Windows"))
CAMPAIGNS: tuple[dict[str, str], ...] = (
    {},
    {},
    {"utm_source": "newsletter", "utm_medium": "email", "utm_campaign": "spring"},
    {"utm_source": "search", "utm_medium": "cpc"},
)
PAGES = ("/", "/features", "/pricing", "/docs", "/docs/quickstart", "/blog/hello", "/customers", "/changelog")
SCREENS = ("Home", "Report", "Orders", "Settings")
PLANS = ("free", "starter", "team", "enterprise")
PRODUCTS: tuple[tuple[str, float], ...] = (("mug", 12.5), ("poster", 24.0), ("notebook", 9.9), ("desk lamp", 79.0))


def days(seed: int, start: date, count: int, visitors_per_day: int = VISITORS_PER_DAY) -> Iterator[Event]:
    """Yields the events of `count` days from the product's first day, in order of time, as PostHog stores them.

    Times are ISO text in UTC. A day's events are the same however many days are generated.
    """
    people: list[Person] = []
    for day in range(count):
        rng = random.Random(f"{seed}/{day}")
        midnight = datetime.combine(start + timedelta(days=day), time(), UTC)
        events = [event for person in people for event in _later_day(person, day, midnight, rng)]
        newcomers = [_person(rng, len(people) + number, day) for number in range(visitors_per_day)]
        events += [event for person in newcomers for event in _first_visit(person, day, midnight, rng)]
        events += _oddities(midnight, rng)
        people += newcomers
        yield from sorted(events, key=lambda event: (event["timestamp"], event["uuid"]))


def _person(rng: random.Random, number: int, day: int) -> Person:
    first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
    email = f"{first}.{last}.{number}@example.com".encode("ascii", "ignore").decode()
    return Person(
        number=number,
        name=f"{first} {last}",
        email=email if rng.random() < 0.2 else email.lower(),
        anonymous_id=str(UUID(int=rng.getrandbits(128), version=4)),
        signup_day=day + rng.choice((0, 0, 0, 1, 1, 2, 5)) if rng.random() < 0.2 else None,
        browser=rng.choice(BROWSERS),
        campaign=rng.choice(CAMPAIGNS),
        mobile=rng.random() < 0.3,
    )


def _first_visit(person: Person, day: int, midnight: datetime, rng: random.Random) -> list[Event]:
    session = _web(person, midnight, rng)
    _browse(session, rng.randrange(1, 7))
    if person.signup_day == day:
        _sign_up(session)
    return session.events


def _later_day(person: Person, day: int, midnight: datetime, rng: random.Random) -> list[Event]:
    """The events of a person who has visited before: they sign up, use the product, or look around again."""
    is_customer = bool(person.distinct_id)
    if day != person.signup_day and rng.random() > (0.3 if is_customer else 0.02):
        return []
    session = _web(person, midnight, rng)
    if not is_customer:
        _browse(session, rng.randrange(1, 4))
        if day == person.signup_day:
            _sign_up(session)
        return session.events
    if rng.random() < 0.1:
        _sign_in_elsewhere(session)
    _use(session)
    return session.events + _on_the_phone(person, midnight, rng) + _on_the_server(person, midnight, rng)


def _browse(session: Session, pages: int) -> None:
    for page in ("/", *session.rng.choices(PAGES, k=pages - 1)):
        session.capture("$pageview", **{"$current_url": f"https://shop.example.com{page}", "$pathname": page})


def _sign_up(session: Session) -> None:
    person, rng = session.person, session.rng
    created_at = f"{session.clock:%Y-%m-%dT%H:%M:%S}.{session.clock.microsecond // 1000:03}Z"
    person.plan = rng.choice(PLANS[:2])
    person.distinct_id = f"user-{person.number:06}"
    attributes = {"email": person.email, "name": person.name, "plan": person.plan, "created_at": created_at}
    session.capture("$identify", **{"$anon_distinct_id": person.anonymous_id, "$set": attributes})
    session.capture("signed up", plan=person.plan, **{"$set": {"trial_ends_at": created_at[:10]}})
    if rng.random() < 0.1:
        company = rng.choice(COMPANIES)
        group = {"$group_type": "company", "$group_key": company.lower(), "$group_set": {"name": company}}
        session.capture("$groupidentify", **group)
    if person.mobile:
        session.capture("$create_alias", alias=str(UUID(int=rng.getrandbits(128), version=4)))


def _sign_in_elsewhere(session: Session) -> None:
    """Looks around in another browser, with a new anonymous id, then signs in."""
    person, rng = session.person, session.rng
    stranger = replace(person, distinct_id="", anonymous_id=str(UUID(int=rng.getrandbits(128), version=4)), properties={})
    elsewhere = Session(stranger, session.clock, rng, session.client)
    _browse(elsewhere, 2)
    session.events += elsewhere.events
    session.clock = elsewhere.clock
    session.capture("$identify", **{"$anon_distinct_id": stranger.anonymous_id, "$set": {"email": person.email}})


def _use(session: Session) -> None:
    person, rng = session.person, session.rng
    _browse(session, rng.randrange(1, 4))
    for _ in range(rng.randrange(1, 4)):
        session.capture("report viewed", report=rng.choice(("sales", "traffic", "churn")), filters={"days": 30})
    if rng.random() < 0.35:
        session.capture("order placed", **_order(rng))
    if rng.random() < 0.1 and person.plan != PLANS[-1]:
        old, person.plan = person.plan, PLANS[PLANS.index(person.plan) + 1]
        changed = {"$set": {"plan": person.plan}, "$unset": ["trial_ends_at"]}
        session.capture("plan changed", old_plan=old, new_plan=person.plan, **changed)


def _order(rng: random.Random) -> Properties:
    bought = [(name, rng.randrange(1, 4), price) for name, price in rng.sample(PRODUCTS, k=rng.randrange(1, 4))]
    items = [{"sku": name, "quantity": quantity, "price": price} for name, quantity, price in bought]
    total = round(sum(quantity * price for _, quantity, price in bought), 2)
    shipping = {"country": rng.choice(("DE", "FR", "SE", "US")), "express": rng.random() < 0.2}
    return {"order_id": f"o-{rng.getrandbits(32):08x}", "total": total, "items": items, "shipping": shipping}


def _on_the_phone(person: Person, midnight: datetime, rng: random.Random) -> list[Event]:
    if not person.mobile or rng.random() < 0.5:
        return []
    client = {"$lib": "posthog-ios", "$app_version": "2.4.0", "$device_type": "Mobile"}
    # A phone without a network delivers its events up to two days later.
    delay = timedelta(hours=rng.randrange(2, 48)) if rng.random() < 0.1 else timedelta(seconds=20)
    session = Session(person, _moment(midnight, rng), rng, client, delay)
    for screen in rng.choices(SCREENS, k=rng.randrange(1, 5)):
        session.capture("$screen", **{"$screen_name": screen})
    return session.events


def _on_the_server(person: Person, midnight: datetime, rng: random.Random) -> list[Event]:
    if rng.random() < 0.7:
        return []
    session = Session(person, _moment(midnight, rng), rng, {"$lib": "posthog-python"})
    paid = round(rng.uniform(9, 90), 2)
    session.capture("invoice paid", amount=paid, currency="EUR", **{"$set": {"last_invoice": paid}})
    return session.events


def _oddities(midnight: datetime, rng: random.Random) -> list[Event]:
    """Values and ids that nobody meant to send: every real project has a few."""
    long_list = [f"tag number {number}" for number in range(90)]
    odd: tuple[tuple[str, str, Properties], ...] = (
        ("odd-1", "profile updated", {"$set": {"email": "ada at example", "city": "Malmö"}}),
        ("odd-2", "receipt requested", {"recipient": "somebody.else@example.com", "order_id": "o-1"}),
        ("  ", "$pageview", {"$pathname": "/"}),
        ("odd-3", "feedback given", {"$set": {"feedback": "Très bien ! " * 120, "tags": long_list}}),
        ("odd-4", "button clicked: " + "buy now " * 14, {}),
        ("session:" + "0123456789" * 16, "api called", {}),
        ("odd-5", "import finished", {"$set": {"created_at": "last spring", "id": "row-17"}}),
        ("subscriber@example.com", "newsletter opened", {"issue": 12}),
    )
    events = []
    for distinct_id, event, properties in odd:
        stored = {"$lib": "posthog-node", **properties}
        at = _moment(midnight, rng) + timedelta(microseconds=rng.randrange(1000))
        events.append(stored_event(rng, event, distinct_id, at, timedelta(seconds=1), stored, stored.get("$set", {})))
    return events


def _web(person: Person, midnight: datetime, rng: random.Random) -> Session:
    browser, system = person.browser
    client = {"$lib": "web", "$browser": browser, "$os": system}
    return Session(person, _moment(midnight, rng), rng, client | person.campaign)


def _moment(midnight: datetime, rng: random.Random) -> datetime:
    """A random time, in the daytime rather than at night, that leaves room for a session before midnight."""
    return midnight + timedelta(milliseconds=int(rng.triangular(0, 23, 14) * 3_600_000))
