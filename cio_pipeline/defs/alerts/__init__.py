"""The sensor that sends alerts.

- `sensor`: runs every minute;
- `dagster_events`: what has happened since its last tick;
- `runs`: the runs and checks of this code location;
- `reasons`: why a run failed.
"""
