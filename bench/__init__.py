"""How fast a day goes from a batch export's files to Customer.io's last acknowledgement: `make bench` (docs/speed.md)."""
