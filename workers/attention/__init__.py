"""One ragged attention call with its log-sum-exp, an exact merge, and the kernels behind them."""
