"""What the assets' pages in Dagster's UI show: tables, charts, masked rows, columns and receipts."""
