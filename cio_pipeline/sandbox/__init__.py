"""A local PostHog (`posthog/`) and a local Customer.io (`customerio/`).

- `demo`, `dev`: what `make demo` and `make dev` do with them;
- `processes`: starts and ends both;
- `screenshots`: takes the README's picture of a receipt.
"""
