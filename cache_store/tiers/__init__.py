"""The places where a store keeps its blocks: one module each."""
