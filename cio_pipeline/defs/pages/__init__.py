"""The contents of the assets' pages in Dagster's UI: tables, charts, masked rows, columns and receipts."""
