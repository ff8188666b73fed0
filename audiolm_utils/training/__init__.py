"""Cached features, connector alignment by CTC and language-model training."""
