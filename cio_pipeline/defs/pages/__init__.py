"""The contents of the assets' pages in Dagster's UI.

- `receipts`: what a run did for a day, with `charts`;
- `previews`: a few rows of a table, masked;
- `schemas`: the columns of the tables;
- `tables`: tables, for pages and for a terminal.
"""
