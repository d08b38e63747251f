"""The scheduler at a size that no test cluster has: the real loop over simulated engines on a virtual clock."""
