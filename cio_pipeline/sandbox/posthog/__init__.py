"""A local PostHog.

- `server`: its APIs; `answers` are what they return;
- `project`: answers queries about the events of `events_table`: `hogql` translates them, `query_results` formats the rows;
- `legacy`: the old events list; `exports`, `file_downloads`: the files of exports;
- `product`: generates events, which `capture` makes as PostHog stores them; `ingestion` takes those of PostHog's own clients.
"""
