"""The delivery of a run, whether it sends whole days, what today has so far, or what was refused.

- `preconditions`: the checks before the first request, and the run config that allows more;
- `ledger_checkpoint`: notices a ledger that was lost, or is an older copy;
- `delivery`: one delivery at a time, within its limits, and the receipt of a day.
"""
