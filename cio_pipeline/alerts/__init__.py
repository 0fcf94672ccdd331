"""Which alerts are due (`alerts`), and how they are sent (`send`)."""
