"""Events from the files that PostHog exports, in a folder, a bucket, or by download.

- `batch_export`: the files of a batch export in a `folder`: by their `names`, the `runs` that cover a day;
- `file_download`: on-demand exports: `file_exports` requests them (`answers`), `downloads` fetches their files;
- `files`: reads a file (`parquet`, `jsonlines`; `columns`), several at once (`read_ahead`), within `limits`, and only
  the events that are needed (`event_filter`);
- `event_stream`: what a source returns of them.
"""
