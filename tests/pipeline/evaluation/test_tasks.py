"""Laws of every task: seeded, sized, with answers where the gold ranges say; and each task's own rule."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import tasks
from configs.load import load_job
from pipeline.corpus import Document, RowRun, open_corpus
from pipeline.evaluation.tasks.base import Item
from pipeline.evaluation.tasks.parquet import read_items, write_items
from pipeline.evaluation.tasks.reference import hide, reference_text
from pipeline.evaluation.tasks.sizer import Sizer, Wording
from pipeline.evaluation.tasks.table import TASKS, make_items
from workers.hf import Tokenizer
from workers.prompt import Frame
from workers.selection.questions import Exam

LENGTH = 6000
"""In bytes, which are the tiny tokenizer's tokens: room for three hundred numbered words."""
GENERATED: dict[str, tasks.TaskSetting] = {
    "single_needle": tasks.SingleNeedle(),
    "multi_key": tasks.MultiKey(),
    "multi_value": tasks.MultiValue(),
    "multi_query": tasks.MultiQuery(),
    "kv_pairs": tasks.KeyValuePairs(),
    "variable_tracking": tasks.VariableTracking(),
    "common_words": tasks.CommonWords(),
    "frequent_words": tasks.FrequentWords(),
    "real_text": tasks.RealText(),
}
UNIT = {"kv_pairs": 80, "common_words": 60, "frequent_words": 40}
"""Tokens that the next line, the next word with its repeats, or the next repeats of words would take."""
kinds = pytest.mark.parametrize("kind", GENERATED)


@pytest.fixture(scope="module")
def sizer(tiny_model: Path) -> Sizer:
    return Sizer(Frame.render(Tokenizer(tiny_model), None, "Answer the question from the text."))


def make(sizer: Sizer, *settings: tasks.TaskSetting, count: int = 3, length: int = LENGTH, seed: int = 0) -> list[Item]:
    return list(make_items(settings, sizer, {length: count}, seed))


def size(sizer: Sizer, item: Item) -> int:
    """Tokens of document, prompt and answer together, as an engine reads them."""
    frame = sizer.told(item.instruction).frame
    probe = frame.probe("q", item.question, item.answer_prefix)
    return len(frame.anchor) + sizer.tokens(item.context) + len(probe.token_ids) + item.max_new_tokens


def gold_texts(item: Item) -> list[str]:
    return [item.context[start:stop] for start, stop in item.gold]


def test_every_task_of_the_table_has_its_settings_and_sits_these_tests() -> None:
    settings = {kind for model in tasks.TaskSetting.__subclasses__() if (kind := model.model_fields["kind"].default)}
    assert settings == set(TASKS) == {*GENERATED, "parquet"}


@kinds
def test_the_same_seed_gives_the_same_items_and_another_gives_others(sizer: Sizer, kind: str) -> None:
    task = GENERATED[kind]
    first = make(sizer, task)
    assert first == make(sizer, task)
    other = make(sizer, task, seed=1)
    assert all(a.id == b.id and a.context != b.context for a, b in zip(first, other, strict=True))
    assert len({item.context for item in first}) == 3


@kinds
def test_more_items_begin_with_the_same_ones(sizer: Sizer, kind: str) -> None:
    assert make(sizer, GENERATED[kind], count=1) == make(sizer, GENERATED[kind], count=3)[:1]


@kinds
def test_document_prompt_and_answer_fill_the_length_and_no_more(sizer: Sizer, kind: str) -> None:
    for item in make(sizer, GENERATED[kind]):
        left = item.length - size(sizer, item)
        assert item.length == LENGTH and 0 <= left <= UNIT.get(kind, 4), item.id


@kinds
def test_answers_stand_in_the_gold_or_else_in_the_document(sizer: Sizer, kind: str) -> None:
    for item in make(sizer, GENERATED[kind]):
        assert item.task == kind and item.id.startswith(f"{kind}-{LENGTH}-")
        assert item.answers and item.question and item.context
        assert all(0 <= start < stop <= len(item.context) for start, stop in item.gold)
        where = " ".join(gold_texts(item)) if item.gold else item.context
        assert all(answer in where for answer in item.answers)
        assert len(set(item.answers)) == len(item.answers)
        assert not any(answer in item.answer_prefix for answer in item.answers)
        assert sizer.tokens(", ".join(item.answers)) <= 8 * item.max_new_tokens  # bytes; a real tokenizer has fewer


@pytest.mark.parametrize("kind", GENERATED.keys() - {"common_words", "frequent_words", "real_text"})
def test_an_answer_stands_nowhere_but_where_it_must_be_kept(sizer: Sizer, kind: str) -> None:
    """A guess from the rest of the text would count as an answer. (Real text says some words more than once.)"""
    for item in make(sizer, GENERATED[kind]):
        rest = item.context
        for text in gold_texts(item):
            rest = rest.replace(text, "", 1)
        assert item.gold and not any(answer in rest for answer in item.answers)


@kinds
def test_a_length_without_room_is_refused_by_name(sizer: Sizer, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^{kind}: lengths: .*allowed: more"):
        make(sizer, GENERATED[kind], length=120)


@pytest.mark.parametrize("kind", ["single_needle", "real_text"])
def test_more_text_than_there_is_is_refused(sizer: Sizer, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"{kind}: lengths: .*the reference text has \d+; allowed: less"):
        make(sizer, GENERATED[kind], length=10**6)


def test_needles_are_asked_by_their_keys_and_lie_at_even_depths(sizer: Sizer) -> None:
    items = make(sizer, tasks.SingleNeedle(), count=8)
    depths = sorted(item.gold[0][0] / len(item.context) for item in items)
    assert all(0.01 < b - a < 0.3 for a, b in pairwise(depths))
    for item in items:
        key = re.fullmatch(
            r"What is the special magic number for (\w+) mentioned in the provided text\?", item.question
        )
        assert key and gold_texts(item) == [f"One of the special magic numbers for {key[1]} is: {item.answers[0]}."]


@pytest.mark.parametrize(
    ("setting", "needles", "keys", "answers"),
    [
        (tasks.MultiKey(keys=5), 5, 5, 1),
        (tasks.MultiValue(values=3), 3, 1, 3),
        (tasks.MultiQuery(queries=4), 4, 4, 4),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_the_needle_family(sizer: Sizer, setting: tasks.TaskSetting, needles: int, keys: int, answers: int) -> None:
    for item in make(sizer, setting):
        found = re.findall(r"One of the special magic numbers for (\w+) is: (\d{5})\.", item.context)
        assert len(found) == needles and len({key for key, _ in found}) == keys
        assert len(item.answers) == len(item.gold) == answers
        asked = {key for key, number in found if number in item.answers}
        assert all(key in item.question for key in asked)
        assert not any(key in item.question for key, _ in found if key not in asked)


def test_key_value_pairs_are_nothing_else(sizer: Sizer) -> None:
    for item in make(sizer, tasks.KeyValuePairs()):
        pairs = [re.fullmatch(r'"([0-9a-f-]{36})": "([0-9a-f-]{36})"', line) for line in item.context.split("\n")]
        values = {pair[1]: pair[2] for pair in pairs if pair}
        assert len(values) == len(pairs) > 50
        [key] = re.findall(r'"([0-9a-f-]{36})"', item.question)
        assert item.answers == (values[key],)


def test_variables_are_all_those_that_following_the_assignments_gives(sizer: Sizer) -> None:
    for item in make(sizer, tasks.VariableTracking(hops=4, noise_chains=2)):
        statements = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w{5})\.", item.context)
        assert len(statements) == 15
        known: dict[str, str] = {}
        for name, source in statements:  # in the order of the text: each source is known by then
            known[name] = known.get(source, source)
        [value] = re.findall(r"\d{5}", item.question)
        assert sorted(name for name, end in known.items() if end == value) == sorted(item.answers)
        assert len(item.answers) == 5


def test_common_words_are_those_that_counting_gives(sizer: Sizer) -> None:
    for item in make(sizer, tasks.CommonWords()):
        lines = item.context.split("\n")
        counts = Counter(re.fullmatch(r"\d+\. ([a-z]+)", line)[1] for line in lines)  # type: ignore[index]
        assert {word for word, times in counts.items() if times == 30} == set(item.answers)
        assert sorted(set(counts.values())) == [3, 30] and len(item.answers) == 10
        assert not item.gold and lines[0].startswith("1. ")


def test_frequent_words_are_those_that_counting_gives_without_the_dots(sizer: Sizer) -> None:
    for item in make(sizer, tasks.FrequentWords()):
        counts = Counter(item.context.split()).most_common(5)
        assert counts[0][0] == "..." and tuple(word for word, _ in counts[1:4]) == item.answers
        assert counts[3][1] > counts[4][1]
        assert counts[0][1] / counts[1][1] == pytest.approx(4, rel=0.05)  # 2 ** alpha


def test_common_words_that_are_not_the_most_common_are_refused(sizer: Sizer) -> None:
    with pytest.raises(ValueError, match="other_times: 30; allowed: less than common_times: 30"):
        make(sizer, tasks.CommonWords(other_times=30))


def test_real_questions_are_the_same_at_every_length_and_of_the_held_out_split(sizer: Sizer) -> None:
    short, long = make(sizer, tasks.RealText()), make(sizer, tasks.RealText(), length=2 * LENGTH)
    assert [item.question for item in short] == [item.question for item in long]
    exam = Exam.of_split("held_out")
    gold = {question.text: exam.text[slice(*question.gold[0])] for question in exam.questions}
    for item in [*short, *long]:
        assert gold_texts(item) == [gold[item.question]]
        assert item.match == "any" and item.context in exam.text


def test_all_real_questions_can_be_asked(sizer: Sizer) -> None:
    questions = Exam.of_split("held_out").questions
    assert len(questions) >= 40
    items = make(sizer, tasks.RealText(), count=len(questions), length=2000)
    assert {item.question for item in items} == {question.text for question in questions}


def test_the_haystack_is_what_calibration_never_sees_while_that_lasts(sizer: Sizer) -> None:
    own, whole = reference_text("held_out", whole=False), reference_text("held_out", whole=True)
    calibrated = Exam.of_split("calibrate").text
    assert whole.startswith(own) and whole.endswith(calibrated)
    assert sizer.reference("held_out", len(own.encode())).text == own
    assert sizer.reference("held_out", len(own.encode()) + 1).text == whole
    for item in make(sizer, tasks.SingleNeedle()):
        first, last = item.gold[0]
        assert item.context[: first - 1] in own and item.context[last:] in own


@pytest.mark.parametrize(
    ("hay", "hidden", "expected"),
    [
        ("One. Two. Three.", [(0.0, "N!")], "One. N! Two. Three."),
        ("One. Two. Three.", [(0.5, "B!"), (0.1, "A!")], "One. A! Two. B! Three."),
        ("a\nb", [(0.0, "N!")], "a N!\nb"),
        ("no end", [(0.9, "N!"), (0.95, "M!")], "no end N! M!"),
        ("", [(0.5, "N!")], "N!"),
    ],
)
def test_sentences_are_hidden_behind_sentences(hay: str, hidden: list[tuple[float, str]], expected: str) -> None:
    text, spans = hide(hay, hidden)
    assert text == expected
    assert [text[start:stop] for start, stop in spans] == [sentence for _, sentence in hidden]


@pytest.mark.parametrize("unit", ["ab", "abcdefg ", "é"])
@pytest.mark.parametrize("tokens", [0, 1, 50, 51, 997])
def test_the_largest_text_that_fits(sizer: Sizer, unit: str, tokens: int) -> None:
    found = sizer.largest(lambda n: unit * n, tokens)
    assert found == tokens // len(unit.encode())
    assert sizer.largest(lambda n: unit * n, tokens, most=7) == min(found, 7)


def test_the_largest_text_grows_unevenly_and_starts_at_its_least(sizer: Sizer) -> None:
    assert sizer.largest(lambda n: "x" * (n * n), 1000) == 31
    assert sizer.largest(lambda n: "x" * n, 10, least=10) == 10
    with pytest.raises(ValueError, match="10 tokens are left for a document that needs 11"):
        sizer.largest(lambda n: "x" * n, 10, least=11)


def test_tasks_of_one_kind_need_names_and_ids_are_unique(sizer: Sizer) -> None:
    named = make(sizer, tasks.MultiKey(name="two", keys=2), tasks.MultiKey(name="six", keys=6), count=1)
    assert [item.task for item in named] == ["two", "six"]
    with pytest.raises(ValueError, match="item 'multi_key-6000-000' is there already"):
        make(sizer, tasks.MultiKey(), tasks.MultiKey(), count=1)


@pytest.fixture(scope="module")
def everything(sizer: Sizer) -> list[Item]:
    return make(sizer, *GENERATED.values(), count=2)


def test_what_is_written_reads_back_equal_and_is_a_task(sizer: Sizer, everything: list[Item], tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    write_items(path, everything)
    assert list(read_items(path, "x", sizer)) == everything
    assert make(sizer, tasks.ParquetItems(path=str(path)), count=2) == everything
    assert make(sizer, tasks.ParquetItems(path=str(path)), count=1) == everything[::2]


def test_written_items_are_a_corpus_that_a_job_reads(everything: list[Item], tmp_path: Path) -> None:
    write_items(tmp_path / "items.parquet", everything)
    job = load_job("configs/needles.yaml", [f"corpus.path={tmp_path / 'items.parquet'}"])
    corpus = open_corpus(job.corpus)
    groups = corpus.files[0].row_groups
    documents = [row for group in range(len(groups)) for row in corpus.rows(RowRun(0, group, 0, groups[group].rows))]
    for document, item in zip(documents, everything, strict=True):
        assert isinstance(document, Document)
        [asked] = document.questions
        assert (document.id, document.text, asked.text) == (item.id, item.context, item.question)
        assert asked.expected == "\n".join(item.answers)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> tasks.ParquetItems:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return tasks.ParquetItems(name="mine", path=str(path))


def test_a_benchmark_without_lengths_falls_into_the_smallest_that_holds_it(sizer: Sizer, tmp_path: Path) -> None:
    rows = [{"context": "x" * n, "question": "Who?", "answer": ["me", "I"]} for n in (100, 700, 5000)]
    task = write_rows(tmp_path / "b.parquet", rows)
    items = list(make_items([task], sizer, {2000: 9, 300: 9}, 0))
    assert [(len(item.context), item.length, item.task) for item in items] == [(100, 300, "mine"), (700, 2000, "mine")]
    assert items[0].answers == ("me", "I") and items[0].match == "all" and items[0].id == "b.parquet:0"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "x", "answer": "a"}, "no column question; there are: answer, context"),
        ({"context": "x", "question": "q"}, "no column answer or answers"),
        ({"context": "x", "question": "q", "answers": []}, "b.parquet:0: context, question or answers is empty"),
        ({"context": "x", "question": "q", "answer": "a", "match": "some"}, "match: 'some'; allowed: all, any"),
        ({"context": "x", "question": "q", "answer": 7}, "b.parquet:0: 7 is no text"),
        ({"context": 7, "question": "q", "answer": ["a"]}, "b.parquet:0: 7 is no text"),
        ({"context": "x", "question": "q", "answer": "a", "length": 7}, "no row is of length 6000"),
    ],
)
def test_a_benchmark_that_cannot_be_used_says_why(
    sizer: Sizer, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    task = write_rows(tmp_path / "b.parquet", [row])
    with pytest.raises(ValueError, match=message):
        make(sizer, task)


def test_a_file_that_is_no_parquet_says_so(sizer: Sizer, tmp_path: Path) -> None:
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"b\.parquet: cannot be read as Parquet"):
        make(sizer, tasks.ParquetItems(path=str(tmp_path / "b.parquet")))


def test_room_counts_prompt_and_answer(sizer: Sizer) -> None:
    wording = Wording("Who?", "It is", 10)
    assert sizer.room(500, wording) - sizer.room(400, wording) == 100
    assert sizer.room(500, wording._replace(max_new_tokens=30)) == sizer.room(500, wording) - 20
