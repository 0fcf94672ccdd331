"""The asset checks, by the asset that they check."""
