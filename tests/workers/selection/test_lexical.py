"""Evidence of words: the published formula, and nothing where there is nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from workers.selection.lexical import bm25, words
from workers.selection.profile import Profile
from workers.selection.scorers.base import ChunkScores
from workers.selection.scorers.probe import ProbeScorer

TEXTS = ("The cat signed the treaty.", "A dog barked, a dog slept.", "Treaty, treaty, TREATY!", "Nothing.", "")
VOCABULARY = ("cat", "dog", "treaty", "Utrecht", "Wörter", "x_1", "2026")
some_words = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)


def reference(texts: Sequence[str], question: str) -> list[float]:
    """Okapi BM25, word by word and text by text."""
    documents = [words(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in words(question):
            having = sum(word in other for other in documents)
            weight = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            count = document.count(word)
            if count:
                score += weight * count * 2.5 / (count + 1.5 * (0.25 + 0.75 * len(document) / mean))
        scores.append(score)
    return scores


@given(texts=st.lists(some_words, min_size=1, max_size=8), question=some_words)
def test_scores_are_the_formulas(texts: list[str], question: str) -> None:
    scores_B = bm25(texts, question)
    np.testing.assert_allclose(scores_B, reference(texts, question), rtol=1e-12)
    assert scores_B.shape == (len(texts),) and np.isfinite(scores_B).all() and (scores_B >= 0).all()


@pytest.mark.parametrize("word", ["cat", "dog", "treaty", "the"])
def test_texts_rank_one_word_as_the_library_ranks_them(word: str) -> None:
    """The library weighs words otherwise; with one word its scores are ours times a constant."""
    ranker = BM25Okapi([words(text) for text in TEXTS], k1=1.5, b=0.75)
    theirs_B, ours_B = ranker.get_scores([word]) / ranker.idf[word], bm25(TEXTS, word)
    np.testing.assert_allclose(ours_B / ours_B.max(), theirs_B / theirs_B.max(), rtol=1e-12)


@pytest.mark.parametrize("question", ["", "?!", "Zebra"])
def test_a_question_without_a_word_of_the_text_scores_nothing(question: str) -> None:
    assert not bm25(TEXTS, question).any()
    assert not bm25(("", "..."), question).any()


def test_a_word_that_is_everywhere_still_counts_for_something() -> None:
    """Less than a rare one, never against a text."""
    scores_B = bm25(("the cat", "the dog", "the the"), "the")
    assert (scores_B > 0).all() and scores_B.max() < bm25(("the cat", "the dog", "the the"), "cat").max()


def test_letters_count_without_their_case_and_signs_not_at_all() -> None:
    assert words("It's Utrecht_1, in ÜBER!") == ["it", "s", "utrecht_1", "in", "über"]
    np.testing.assert_array_equal(bm25(TEXTS, "TREATY?"), bm25(TEXTS, "treaty"))


# -- beside attention --------------------------------------------------------------------------------------


def chunks(question: str) -> list[ChunkScores]:
    """Two chunks of a document of 5 blocks; attention finds the last one."""
    heat_B = np.array([0.0, 0.0, 0.0, 0.0, 3.0], np.float32)
    log_RHB = np.broadcast_to(heat_B, (2, 3, 5))
    return [
        ChunkScores(log_RHB[..., :2], (0, 32), 16, TEXTS[:2], question),
        ChunkScores(log_RHB[..., 2:], (32, 80), 16, TEXTS[2:], question),
    ]


def shares(lexical: float, question: str) -> np.ndarray:
    settled = ProbeScorer(Profile("w", ((0, 0),)), lexical).settle(chunks(question))
    assert [share.shape for share in settled] == [(1, 1, 2), (1, 1, 3)]
    joined_B: np.ndarray = np.concatenate(settled, axis=2)[0, 0]
    return joined_B


@pytest.mark.parametrize("lexical", [0.0, 0.1, 5.0, 1e6])
def test_shares_sum_to_one_over_the_document_whatever_words_weigh(lexical: float) -> None:
    joined_B = shares(lexical, "Which dog signed?")
    assert joined_B.sum() == pytest.approx(1.0) and np.isfinite(joined_B).all() and (joined_B >= 0).all()


def test_words_that_match_nothing_change_nothing() -> None:
    np.testing.assert_allclose(shares(5.0, "Zebra?"), shares(0.0, "Zebra?"), rtol=1e-12)
    np.testing.assert_allclose(shares(0.0, "Which dog?"), shares(0.0, "Zebra?"), rtol=1e-12)


def test_the_logarithm_of_a_share_gains_the_heard_score_times_its_weight() -> None:
    with_words, without = np.log(shares(0.7, "dog")), np.log(shares(0.0, "dog"))
    alone = bm25(TEXTS, "dog")[1]
    heard_B = alone * np.array([0.5, 1.0, 0.5, 0.25, 0.125])  # the dog's block, and its neighbours by distance
    gain_B = with_words - without
    np.testing.assert_allclose(gain_B - gain_B[4], 0.7 * (heard_B - heard_B[4]), rtol=1e-9)


def test_enough_weight_moves_the_block_that_words_find_to_the_front() -> None:
    assert shares(0.0, "dog").argmax() == 4 and shares(5.0, "dog").argmax() == 1
