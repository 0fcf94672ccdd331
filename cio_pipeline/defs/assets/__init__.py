"""The assets, in the order of a day.

- `extract`: PostHog's events, those of the history, and the identities;
- `derive`: customers, events and rejects;
- `deliver`: the delivery to Customer.io;
- `external`: PostHog and Customer.io, the two ends of the lineage.
"""
