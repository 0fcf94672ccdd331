"""Measures how long a day takes from a batch export to Customer.io's last acknowledgement: `make bench` (docs/speed.md)."""
