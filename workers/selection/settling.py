"""One scale for a whole document, for scorers that keep layers and heads apart.

The head-wise counterpart of ``relevance``: there the retrieval heads vote on one share for each block, here every
head's masses become its own shares over the document, and query heads of one kv head are averaged, because they
read the same kept pairs. Invariants: shares are non-negative and sum to 1 over the document for each layer and
head; a head that heard nothing anywhere finds all blocks alike.

Shapes: R values per head and block, h columns of a layer (query heads or kv heads), L layers, G kv heads, B blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workers.hf import ModelShape
from workers.selection.scorers.base import ChunkScores


def by_layer(chunks: Sequence[ChunkScores], num_layers: int) -> NDArray[np.float64]:
    """The log-masses of all chunks of a document side by side, [R, L, h, B]; all layers have as many columns."""
    log_RHB = np.concatenate([chunk.log_RHB for chunk in chunks], axis=2, dtype=np.float64)
    rows, columns, blocks = log_RHB.shape
    return log_RHB.reshape(rows, num_layers, columns // num_layers, blocks)


def document_softmax(log_LhB: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares [L, h, B] of log-masses: each column's sum to 1 over the document."""
    top_Lh1 = log_LhB.max(axis=2, keepdims=True)
    return normalised(np.exp(log_LhB - np.where(np.isneginf(top_Lh1), 0.0, top_Lh1)))


def normalised(mass_LhB: NDArray[np.float64]) -> NDArray[np.float64]:
    """Masses as shares that sum to 1 over the document; where there is no mass, all blocks alike."""
    total_Lh1 = mass_LhB.sum(axis=2, keepdims=True)
    share_LhB = np.full_like(mass_LhB, 1.0 / mass_LhB.shape[2])
    np.divide(mass_LhB, total_Lh1, out=share_LhB, where=total_Lh1 > 0.0)
    return share_LhB


def group_mean(share_LHB: NDArray[np.float64], num_kv_heads: int) -> NDArray[np.float64]:
    """The mean [L, G, B] over the query heads that read the same kv head; kv heads stay as they are."""
    layers, heads, blocks = share_LHB.shape
    mean_LGB: NDArray[np.float64] = share_LHB.reshape(layers, num_kv_heads, heads // num_kv_heads, blocks).mean(axis=2)
    return mean_LGB


def split(share_LGB: NDArray[np.float64], chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
    """A document's shares, chunk by chunk."""
    return np.split(share_LGB, np.cumsum([len(chunk.starts_B) for chunk in chunks])[:-1], axis=2)


def settle_masses(chunks: Sequence[ChunkScores], shape: ModelShape) -> list[NDArray[np.float64]]:
    """``Scorer.settle`` for scorers that report one log-mass [1, h, B] for every head of every layer, h = H or G."""
    [log_LhB] = by_layer(chunks, shape.num_layers)
    return split(group_mean(document_softmax(log_LhB), shape.num_kv_heads), chunks)
