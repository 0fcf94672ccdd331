"""Requests to a service, for the clients of PostHog and Customer.io and for alerts.

- `session`: a session, with the environment's proxies and certificates;
- `retry`: sends a request until it has a usable answer, each time by `attempt`, which sends it once;
- `body`: reads and decompresses an answer, within limits;
- `errors`: why there is no complete answer.
"""
