"""Measurements of this package's parts: ``python -m cache_store.bench NAME``, one module each."""
