"""Seeing what happens: what watches a run, and what each watch does with it."""
