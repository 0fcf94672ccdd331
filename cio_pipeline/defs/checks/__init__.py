"""The asset checks, by the asset that they check.

- `extract`: those of PostHog's events;
- `derive`: those of what is derived from them, and of the identities;
- `deliver`: those of the delivery; `yesterday` is the day that must be delivered by now;
- `common`: what they share.
"""
