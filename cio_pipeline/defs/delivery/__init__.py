"""How a run delivers, whether it sends whole days, what today has so far, or what was refused.

- `preconditions`: what is checked before the first request, and the run config that allows more;
- `ledger_checkpoint`: whether the ledger was lost, or is an older copy;
- `delivery`: one delivery at a time, within its limits, and the receipt of a day.
"""
