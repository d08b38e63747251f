"""The report: escaped, self-contained, honest about what it leaves out, and well formed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.directory import existing_directory
from pipeline.driver import run
from pipeline.outcome import Answer, Failure, Span
from pipeline.report.page import render
from pipeline.report.projection import DocumentView, Limits, Totals, read_answers
from pipeline.report.words import escape, mentions, percent, quoted
from pipeline.report.write import make_report
from pipeline.tables import ANSWER_SCHEMA, FAILURE_SCHEMA
from tests.pipeline.jobs import Bench

VOID = {"meta", "br"}
NASTY = "</style><script>alert('1')</script> & \"quoted\" \x00\x1b \u202eevil"


def answer(document: int = 0, question_id: str = "who", **changes: Any) -> Answer:
    spans = (Span(10, 50, 0.6, "It was signed by Ada Lovelace in 1843 ..."), Span(900, 950, 0.1, "elsewhere"))
    plain = Answer(
        id=f"doc-{document}",
        question_id=question_id,
        question="Who signed it?",
        answer="Ada Lovelace",
        spans=spans,
        document_tokens=500,
        kept_tokens=50,
        relevance_kept=0.7,
        generated_tokens=3,
        seconds_encode=1.0,
        seconds_answer=0.5,
        source_file="corpus/a.parquet",
        source_row=document,
    )
    return replace(plain, **changes)


def failure(**changes: Any) -> Failure:
    plain = Failure(
        id="doc-9",
        question_id="who",
        question="Who signed it?",
        stage="corpus",
        error="EmptyDocument",
        message="column 'text' is empty",
        attempts=1,
        retryable=False,
        source_file="corpus/a.parquet",
        source_row=9,
    )
    return replace(plain, **changes)


def table(rows: Sequence[Answer | Failure], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([asdict(row) for row in rows], schema)


def page(answers: list[Answer], failures: list[Failure] | None = None, **limits: int) -> str:
    """The page over these rows, committed in two parts."""
    half = len(answers) // 2
    parts = [table(rows, ANSWER_SCHEMA) for rows in (answers[:half], answers[half:])]
    return render(parts, [table(failures or [], FAILURE_SCHEMA)], "out/first", limits=Limits(**limits))


class Reader(HTMLParser):
    """Checks that tags nest, and collects text, tags, anchors and the links to them."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.feed(markup)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.anchors |= {values["id"]} if values.get("id") else set()  # type: ignore[arg-type]
        self.links |= {values["href"]} if values.get("href") else set()  # type: ignore[arg-type]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_everything_of_an_answer_is_on_the_page() -> None:
    read = Reader(page([answer()]))
    for words in ("doc-0", "Who signed it?", "Ada Lovelace", "500 tokens", "60\u202f%", "10–50", "elsewhere"):
        assert words in read.text


def test_links_lead_to_anchors_of_the_page_and_nowhere_else() -> None:
    read = Reader(page([answer(i) for i in range(5)], [failure()]))
    assert read.links
    assert {link.removeprefix("#") for link in read.links} <= read.anchors


def test_nothing_on_the_page_asks_the_network_or_runs() -> None:
    markup = page([answer()], [failure()])
    assert not re.search(r"<script|\bsrc=|@import|url\(|https?:", markup)
    assert "default-src 'none'" in markup


@pytest.mark.parametrize("field", ["id", "question", "answer", "source_file"])
def test_foreign_text_of_an_answer_stays_text(field: str) -> None:
    markup = page([answer(0, "who", **{field: NASTY})])
    assert "<script" not in Reader(markup).tags and "</style><script>" not in markup
    assert "\x00" not in markup and "\u202e" not in markup


@pytest.mark.parametrize("field", ["id", "question_id", "error", "stage", "message", "source_file"])
def test_foreign_text_of_a_failure_stays_text(field: str) -> None:
    markup = page([], [failure(**{field: NASTY})])
    assert "script" not in Reader(markup).tags and "\u202e" not in markup


def test_foreign_text_of_a_span_stays_text() -> None:
    read = Reader(page([answer(spans=(Span(0, len(NASTY), 1.0, NASTY),), answer="script")]))
    assert "script" not in read.tags and "mark" in read.tags


@given(st.text(), st.text(max_size=6))
def test_a_quote_of_any_text_is_that_text(text: str, wanted: str) -> None:
    markup = quoted(Span(0, len(text), 1.0, text), wanted, max_characters=10_000)
    assert re.sub("</?mark>", "", markup) == escape(text).strip()


def test_a_long_quote_is_cut_around_the_answer() -> None:
    text = "a" * 900 + " Ada Lovelace " + "b" * 900
    markup = quoted(Span(0, len(text), 1.0, text), "ada lovelace.", max_characters=100)
    assert "<mark>Ada Lovelace</mark>" in markup
    assert markup.startswith("… ") and markup.endswith(" …") and len(markup) < 140


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("port 5432, not 54321", "5432", [(5, 9)]),
        ("TypeError, typeerror", "TypeError.", [(0, 9), (11, 20)]),
        ("anything", "", []),
        ("a.b", "a+b", []),
        ("cost (net)", "(net)", [(5, 10)]),
    ],
)
def test_mentions(text: str, wanted: str, found: list[tuple[int, int]]) -> None:
    assert mentions(text, wanted) == found


@pytest.mark.parametrize(
    ("share", "shown"), [(0, "0"), (0.0001, "&lt; 0.1"), (0.004, "0.4"), (0.0996, "10"), (0.5, "50"), (1, "100")]
)
def test_percent(share: float, shown: str) -> None:
    assert percent(share) == f"{shown}&#8239;%"


def test_a_passage_with_the_answer_is_quoted_even_if_others_have_more_attention() -> None:
    many = tuple(Span(100 * i, 100 * i + 9, 0.1, f"passage {i}") for i in range(8))
    last = Span(5000, 5020, 0.001, "signed: Ada Lovelace")
    markup = page([answer(spans=(*many, last))])
    assert "signed: <mark>Ada Lovelace</mark>" in markup
    assert "3 more passages" in markup


def test_an_answer_without_spans_or_words_is_shown() -> None:
    read = Reader(page([answer(spans=(), answer=" ", kept_tokens=0, relevance_kept=0.0)]))
    assert "an empty answer" in read.text


def test_what_is_left_out_is_said() -> None:
    markup = page([answer(i, q) for i in range(10) for q in ("a", "b")], documents=3)
    assert markup.count("<article") == 3
    assert "first 3 documents of 10 (6 of 20 answers)" in markup
    assert "Shown are the first" not in page([answer(i) for i in range(3)], documents=3)


@given(st.lists(st.integers(1, 5), max_size=12), st.integers(1, 6), st.integers(1, 12), st.integers(0, 12))
def test_first_documents_are_whole_within_both_limits(
    sizes: list[int], documents: int, answers: int, border: int
) -> None:
    rows = [[answer(i, str(q)) for q in range(size)] for i, size in enumerate(sizes)]
    parts = [table([*chain(*some)], ANSWER_SCHEMA) for some in (rows[:border], rows[border:])]
    sums, views = read_answers(parts, Limits(documents, answers))
    assert (sums.documents, sums.answers) == (len(sizes), sum(sizes))
    shown = [len(view.answers) for view in views]
    assert len(views) <= documents and sum(shown) <= answers
    assert shown[1:] == sizes[1 : len(shown)]
    assert shown[:1] == [min(size, answers) for size in sizes[:1]]
    complete = len(views) == len(sizes) or len(views) == documents
    assert complete or sum(shown) + sizes[len(views)] > answers


def test_totals_count_a_document_once() -> None:
    rows = [answer(i, q) for i in range(3) for q in ("a", "b")]
    sums, _ = read_answers([table(rows[:4], ANSWER_SCHEMA), table(rows[4:], ANSWER_SCHEMA)], Limits())
    assert (sums.documents, sums.answers, sums.read_tokens) == (3, 6, 1500)
    assert sums.kept_share == pytest.approx(0.1) and sums.relevance_kept == pytest.approx(0.7)


def test_nothing_at_all_is_a_page_too() -> None:
    assert read_answers([], Limits()) == (Totals(0, 0, 0, 0.0, 0.0), [])
    assert "article" not in Reader(page([])).tags


def test_failures_are_grouped_by_class_and_cut() -> None:
    many = [failure(id=f"doc-{i}") for i in range(30)]
    markup = page([answer()], [*many, failure(error="OutOfMemoryError", stage="encode", retryable=True)])
    assert "31 failures" in markup and markup.index("EmptyDocument") < markup.index("OutOfMemoryError")
    assert "and 10 more of this class" in markup
    assert "1 may succeed with" in markup and "would not help" in markup


def test_a_document_without_id_is_named_by_its_row() -> None:
    assert "a document without an id" in page([], [failure(id=None)])


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 400), st.floats(0, 1)), max_size=20))
def test_marks_lie_on_the_strip(places: list[tuple[int, int, float]]) -> None:
    spans = tuple(Span(start, start + size, share, "x") for start, size, share in places)
    markup = page([answer(spans=spans, answer="-")])
    assert markup.count("<rect ") == len(spans)
    for box in re.findall(r'<rect x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"', markup):
        x, y, width, height = map(float, box)
        assert x >= 0 and y >= 0 and x + width <= 1000.2 and y + height <= 36.2


def test_length_is_estimated_from_what_was_kept() -> None:
    spans = (Span(0, 100, 0.5, "x" * 100),)
    assert DocumentView((answer(spans=spans, kept_tokens=25, document_tokens=1000),)).num_characters == 4000
    late = (Span(9000, 9100, 0.5, "x" * 100),)
    assert DocumentView((answer(spans=late, kept_tokens=25, document_tokens=1000),)).num_characters == 9100


def test_ten_thousand_documents_stay_one_small_page() -> None:
    markup = page([answer(i) for i in range(10_000)])
    assert markup.count("<article") == 200 and "of 10,000" in markup
    assert len(markup) < 2_000_000


def test_the_report_of_a_run_is_a_projection_of_its_output(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model, [900, 300, 0])
    run(bench.job(output={"path": str(tmp_path / "out"), "part_tokens": 100}))
    directory = existing_directory(str(tmp_path / "out"))
    where = Path(make_report(directory))
    first = where.read_text()
    assert "is not finished" not in first and "2 failures" in first
    assert Reader(first).tags.count("article") == 2
    for row in bench.rows():
        assert escape(row["question"]) in first
    make_report(directory)
    assert where.read_text() == first
    (tmp_path / "out" / "_SUCCESS").unlink()
    make_report(directory)
    assert "This run is not finished" in where.read_text()


@pytest.mark.parametrize("url", ["memory://a/run"])
def test_a_report_is_replaced_in_object_storage_too(url: str, tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model, [300])
    run(bench.job(output={"path": url}))
    directory = existing_directory(url)
    assert make_report(directory) == make_report(directory) == f"{url}/report.html"
    assert "doc0" in (directory.read("report.html") or b"").decode()
