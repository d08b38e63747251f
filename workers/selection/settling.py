"""One scale for a whole document, for scorers that keep layers and heads apart.

The head-wise counterpart of ``relevance``: there the retrieval heads vote on one share for each block, here every
head keeps its own masses, only scaled by one number for all, and query heads of one kv head are averaged, because
they read the same kept pairs. Invariants: shares are non-negative and sum to 1 over the document on average over
layers and heads, which stay as loud as they were; where nobody heard anything, all blocks are alike; layers that read
a window only, which nobody asks because they cannot look over a chunk, want on average what the others want.

Shapes: R values per head and block, h columns of a layer (query heads or kv heads), L layers, F of them without a
window, G kv heads, B blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workers.hf import ModelShape
from workers.selection.scorers.base import ChunkScores


def by_layer(chunks: Sequence[ChunkScores], shape: ModelShape) -> NDArray[np.float64]:
    """The log-masses of all chunks of a document side by side, [R, F, h, B]; all layers have as many columns."""
    log_RHB = np.concatenate([chunk.log_RHB for chunk in chunks], axis=2, dtype=np.float64)
    (rows, columns, blocks), num_layers = log_RHB.shape, len(shape.full_layers)
    return log_RHB.reshape(rows, num_layers, columns // num_layers, blocks)


def document_softmax(log_FhB: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares [F, h, B] of log-masses: each column's sum to 1 over the document."""
    top_Fh1 = log_FhB.max(axis=2, keepdims=True)
    mass_FhB = np.exp(log_FhB - np.where(np.isneginf(top_Fh1), 0.0, top_Fh1))
    total_Fh1 = mass_FhB.sum(axis=2, keepdims=True)
    share_FhB = np.full_like(mass_FhB, 1.0 / mass_FhB.shape[2])
    np.divide(mass_FhB, total_Fh1, out=share_FhB, where=total_Fh1 > 0.0)
    return share_FhB


def normalised(mass_FhB: NDArray[np.float64]) -> NDArray[np.float64]:
    """Masses as shares of one total, which sum to 1 over the document on average over layers and heads: a head that
    has more to say keeps more, where heads compete; where there is no mass at all, all blocks alike."""
    total = mass_FhB.sum(axis=2).mean()
    return mass_FhB / total if total > 0.0 else np.full_like(mass_FhB, 1.0 / mass_FhB.shape[2])


def group_mean(share_FHB: NDArray[np.float64], num_kv_heads: int) -> NDArray[np.float64]:
    """The mean [F, G, B] over the query heads that read the same kv head; kv heads stay as they are."""
    layers, heads, blocks = share_FHB.shape
    mean_FGB: NDArray[np.float64] = share_FHB.reshape(layers, num_kv_heads, heads // num_kv_heads, blocks).mean(axis=2)
    return mean_FGB


def for_all_layers(share_FGB: NDArray[np.float64], shape: ModelShape) -> NDArray[np.float64]:
    """The same shares as [L, G, B]: layers with a window get the mean over all layers and heads that were asked."""
    share_LGB = np.broadcast_to(share_FGB.mean(axis=(0, 1)), (shape.num_layers, *share_FGB.shape[1:])).copy()
    share_LGB[list(shape.full_layers)] = share_FGB
    return share_LGB


def split(share_LGB: NDArray[np.float64], chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
    """A document's shares, chunk by chunk."""
    return np.split(share_LGB, np.cumsum([len(chunk.starts_B) for chunk in chunks])[:-1], axis=2)


def settle_masses(chunks: Sequence[ChunkScores], shape: ModelShape) -> list[NDArray[np.float64]]:
    """``Scorer.settle`` for scorers that report one log-mass [1, h, B] for every head of every layer without a
    window, h = H or G."""
    [log_FhB] = by_layer(chunks, shape)
    top = log_FhB.max()
    mass_FhB = np.exp(log_FhB - (0.0 if np.isneginf(top) else top))
    share_FGB = normalised(group_mean(mass_FhB, shape.num_kv_heads))
    return split(for_all_layers(share_FGB, shape), chunks)
