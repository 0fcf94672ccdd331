"""The ways to get events out of PostHog. `source` is the interface of all of them:

- `query`: HogQL queries, by `reading` in `slices` of a window; `rows` converts the answers;
- `events_api`: the events list of an old PostHog; it uses `rows`, too;
- `exports/`: the files of batch exports.

`client` is PostHog's private API over HTTP; `times` parses the times in files.
"""
