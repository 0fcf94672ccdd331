"""The jobs and their schedules.

- `sync`: the daily job;
- `hourly`: what today has so far;
- `backfill`: many days in one process;
- `dry_run`: what a run would send, with its `dry_run_report`;
- `explain`: what happened to a person;
- `redeliver`: what Customer.io has refused, once more;
- `checks`: the checks that need no run of a day.
"""
