"""One scale for a whole document: merging what a probe saw in separately read chunks.

Each chunk reports log-sum-exps of the probe's attention logits per block. A softmax over one chunk alone
would make its best block look relevant however little it has to say; merging the log-sum-exps over all
chunks gives each block its share of the attention that the probe would pay to the whole document.
Invariants: shares are non-negative and sum to 1 over the document; the order of chunks does not matter.

Shapes: R scored probe rows, H retrieval heads, B blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def block_shares(lse_RHB: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    """Per chunk [R, H, B_c] log-sum-exps -> per chunk [B_c] shares of the probe's attention.

    The share is averaged over rows and heads, each of which spreads a mass of 1 over the document.
    """
    merged_RH1 = np.logaddexp.reduce(np.concatenate(list(lse_RHB), axis=2).astype(np.float64), axis=2)[..., None]
    return [np.exp(chunk.astype(np.float64) - merged_RH1).mean(axis=(0, 1)) for chunk in lse_RHB]
