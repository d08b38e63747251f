"""``foveate ask``: a document is read once, later questions find it, and the answers are those of a first reading."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cache_store.codec
import cache_store.identity
from pipeline import ask
from pipeline.ask_watch import ChunkCount, Watch
from pipeline.document import Document
from pipeline.prepared import Prepared
from tests.pipeline.jobs import WORDS, Bench, sentence
from tests.pipeline.test_cli import foveate
from tests.tiny import save_tiny_model
from workers.messages import Encoded
from workers.selection.profile import Profile, profile_path
from workers.source import locate

LENGTHS = [700, 300]
WHO, WHEN = "Who signed it?", "When was the treaty signed?"
SMALL = {
    "read.chunk_tokens": 128,
    "keep.block_tokens": 16,
    "keep.widen_tokens": 4,
    "keep.budget.tokens": 96,
    "questions[0].max_new_tokens": 8,
    "questions[0].answer_prefix": "In",
    "model.attention": "cpu",
    "model.device": "cpu",
}
Replies = dict[tuple[str, str], dict[str, Any]]


class Desk:
    """Where questions are asked: a corpus, a model, a store."""

    def __init__(
        self, root: Path, model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        self.root, self.model, self._capsys, self._caplog = root, model, capsys, caplog
        caplog.set_level(logging.INFO)
        bench = Bench(root, model, LENGTHS)
        self.corpus = bench.corpus
        self.store = root / "store"

    def words(self, *questions: str, **options: object) -> list[object]:
        """The command line; options of None are left out."""
        given = {"store": self.store, "corpus": self.corpus, "model": self.model} | options
        named = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        return ["ask", *named, *_settings(SMALL), *questions]

    def ask(self, *words: object, **options: object) -> tuple[Replies, list[str]]:
        """Replies by document and question, and why something was read anew."""
        self._capsys.readouterr()
        self._caplog.clear()
        assert foveate(*self.words(*map(str, words), **options), "--json") == 0
        out, _ = self._capsys.readouterr()
        replies = [json.loads(line) for line in out.splitlines()]
        assert len(replies) == len({(reply["document"], reply["question"]) for reply in replies})
        said = [message for message in self._caplog.messages if message.endswith("; reading it anew")]
        return {(reply["document"], reply["question"]): reply for reply in replies}, said

    def add_documents(self, lengths: Sequence[int]) -> None:
        """A corpus that begins as the old one did."""
        Bench(self.root, self.model, lengths)

    def entries(self) -> list[Path]:
        return sorted(self.store.glob("??/??/*.safetensors"))


@pytest.fixture
def desk(
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Desk:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    calibrate(tiny_model)
    return Desk(tmp_path, tiny_model, capsys, caplog)


def calibrate(model: Path) -> None:
    """Save a profile where the model's is looked for."""
    weights = locate(str(model)).weights
    Profile(weights, ((1, 0), (2, 1)), index=Profile(weights, ((0, 2), (1, 1)))).save(profile_path(weights))


def _settings(settings: dict[str, object]) -> list[object]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def answers(replies: Replies) -> dict[tuple[str, str], tuple[object, ...]]:
    """What must not depend on the store."""
    return {key: (reply["answer"], reply["error"], reply["spans"]) for key, reply in replies.items()}


def chunks(replies: Replies) -> dict[str, tuple[int, int]]:
    """By document: read anew, found in the store."""
    return {document: (reply["chunks_read"], reply["chunks_from_store"]) for (document, _), reply in replies.items()}


def test_a_second_question_reads_nothing_and_is_answered_as_by_a_first_reading(desk: Desk) -> None:
    first, _ = desk.ask(WHO)
    read = chunks(first)
    assert set(read) == {"doc0", "doc1"} and all(new and not found for new, found in read.values())
    assert len(desk.entries()) == sum(new for new, _ in read.values())
    later, why = desk.ask(WHEN)
    assert chunks(later) == {document: (0, new) for document, (new, _) in read.items()}
    assert not why
    fresh, _ = desk.ask(WHEN, store=desk.root / "another")
    assert chunks(fresh) == read
    assert answers(later) == answers(fresh)
    assert all(reply["spans"] for reply in later.values()) and any(reply["answer"] for reply in later.values())


@pytest.mark.parametrize(
    "method",
    [
        ["keep.codec=int8"],
        ["keep.scorer={kind: keydiff}"],
        ["keep.scorer={kind: reconstruct}", "keep.budget={kind: adaptive, tokens: 96}", "answer={over: kept}"],
        ["keep.scorer={kind: expected}", "keep.budget={kind: adaptive, tokens: 96}", "answer={over: kept}",
         "keep.chunk_fraction=0.25"],
        ["keep.scorer={kind: window}", "keep.codec=int8", "read.context=carried", "answer={over: kept}"],
    ],
    ids=["int8", "text", "pairs", "share", "carried"],
)  # fmt: skip
def test_so_it_is_with_every_method_that_needs_no_question(desk: Desk, method: list[str]) -> None:
    own = [word for setting in method for word in ("--set", setting)]
    first, _ = desk.ask(WHO, *own)
    later, _ = desk.ask(WHEN, *own)
    assert chunks(later) == {document: (0, new) for document, (new, _) in chunks(first).items()}
    fresh, _ = desk.ask(WHEN, *own, store=desk.root / "another")
    assert answers(later) == answers(fresh)


def test_only_a_document_that_is_new_is_read(desk: Desk) -> None:
    first, _ = desk.ask(WHO)
    desk.add_documents([*LENGTHS, 260])
    later, why = desk.ask(WHO)
    assert [chunks(later)[document][0] for document in ("doc0", "doc1")] == [0, 0]
    assert chunks(later)["doc2"][0] > 0 == chunks(later)["doc2"][1]
    assert answers(first).items() <= answers(later).items()
    assert not why


def test_a_text_that_grew_is_read_where_it_changed(desk: Desk) -> None:
    note = desk.root / "note.txt"
    note.write_text(sentence(900, seed=3))
    desk.ask(WHO, corpus=note)
    note.write_text(sentence(900, seed=3) + " and nobody signed anything after that")
    later, why = desk.ask(WHO, corpus=note)
    read, found = chunks(later)["note.txt"]
    assert 0 < read <= 2 < found and not why


@pytest.mark.parametrize("scheme", ["", "file://"], ids=["directory", "url"])
def test_another_model_reads_anew_and_says_why(desk: Desk, scheme: str, tmp_path: Path) -> None:
    store = f"{scheme}{desk.store}"
    first, _ = desk.ask(WHO, store=store)
    assert [new for new, _ in chunks(desk.ask(WHEN, store=store)[0]).values()] == [0, 0]
    other = save_tiny_model(tmp_path / "other", seed=1)
    calibrate(other)
    later, why = desk.ask(WHO, store=store, model=other)
    assert chunks(later) == chunks(first)
    [said] = why
    number = chunks(first)["doc0"][0]
    assert said == (
        f"doc0: the store holds {number} entries of this text made by other weights (model.source); reading it anew"
    )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("keep.budget.tokens=64", "for another budget (keep.budget)"),
        ("keep.scorer={kind: keydiff}", "by another scorer (keep.scorer)"),
        ("model.dtype=bfloat16", "in another dtype (model.dtype)"),
        ("prompt.instruction=Say it.", "behind other text (prompt)"),
        ("store.tenant=someone", "for another tenant (store.tenant)"),
        ("read.chunk_tokens=64", "in chunks of other lengths (read.chunk_tokens, read.borders)"),
    ],
)
def test_what_differs_is_named_by_its_key(desk: Desk, setting: str, words: str) -> None:
    own = ["--set", "model.dtype=float32", "--set", "keep.scorer={kind: expected}", "--set", "read.borders=even"]
    own += ["--set", "answer.over=kept"]
    desk.ask(WHO, *own)
    _, why = desk.ask(WHO, *own, "--set", setting)
    [said] = why
    assert said.startswith("doc0: the store holds") and f"made {words}; reading" in said


def test_a_store_of_another_version_is_left_alone_and_said(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other_version:
        for module in (cache_store.codec, cache_store.identity):
            other_version.setattr(module, "FORMAT_VERSION", 999)
        first, _ = desk.ask(WHO)
    entries = desk.entries()
    later, [said] = desk.ask(WHO)
    assert answers(later) == answers(first) and chunks(later) == chunks(first)
    assert said.endswith("entries, most of them written by another version of foveate; reading it anew")
    assert set(entries) < set(desk.entries())


def test_what_was_found_costs_no_try_of_saying_why_something_was_not(tmp_path: Path) -> None:
    """However many messages come back before anything is missed, the store is asked while it is read."""
    watch = Watch(ask.make_job(ask.Request((WHO,), ("corpus",), str(tmp_path / "store"), "model"), "out"))
    asked: list[str] = []
    watch._why_in = lambda archive, prepared, missed: asked.append(missed)  # type: ignore[method-assign]
    document = Document("doc", "", "corpus", 0, ())
    prepared = Prepared(document, np.empty((0, 2), np.int64), (), (), (), (), (), (), 64, 128)
    for hits in (*[1] * 10, 0):
        watch(prepared, Encoded(((),), (f"{hits:02}",), 0.0, hits))
    assert asked == ["00"]
    assert watch.total == ChunkCount(read=1, found=10)


def test_what_is_written_behind_is_explained_too(desk: Desk, tmp_path: Path) -> None:
    """A text of one chunk in a bucket: when it has been read, it is still to be written."""
    note = desk.root / "note.txt"
    note.write_text(sentence(100, seed=5))
    store = tmp_path.as_uri()
    desk.ask(WHO, corpus=note, store=store)
    _, [said] = desk.ask(WHO, "--set", "store.tenant=someone", corpus=note, store=store)
    assert "for another tenant (store.tenant)" in said


def test_a_store_that_lost_half_of_its_files_gives_the_same_answers(desk: Desk) -> None:
    first, _ = desk.ask(WHO)
    entries = desk.entries()
    for entry in entries[::2]:
        entry.unlink()
    later, why = desk.ask(WHO)
    assert answers(later) == answers(first)
    assert sum(new for new, _ in chunks(later).values()) == len(entries[::2])
    assert sum(found for _, found in chunks(later).values()) == len(entries[1::2])
    assert len(desk.entries()) == len(entries) and not why


def test_a_small_store_of_others_is_not_thrown_out(desk: Desk) -> None:
    """A job's budget for its tier is not the store's: asking evicts nothing."""
    job = ask.make_job(ask.Request((WHO,), ("corpus",), str(desk.store), "model"), "out")
    assert job.store.tiers[1].max_bytes >= 2**50


def test_people_read_answers_passages_and_what_it_cost(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    note = desk.root / "note.txt"
    note.write_text(sentence(600, seed=4))
    capsys.readouterr()
    assert foveate(*desk.words(WHO, corpus=note)) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "note.txt" not in out and "1/1 documents" in err
    assert lines[-1].startswith("read ") and lines[-1].split(";")[0].endswith("chunks anew, 0 came from the store")
    assert any("%" in line and any(word in line for word in WORDS) for line in lines[:-1])
    assert foveate(*desk.words(WHO, WHEN, corpus=note), "--corpus", desk.corpus) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in ("note.txt", "doc0", "doc1")] == ["note.txt", "doc0", "doc1"]
    assert [line for line in lines if line in (WHO, WHEN)] == [WHO, WHEN] * 3


def test_what_failed_is_said_and_strict_tells(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.add_documents([0] * 12 + [300])
    replies, _ = desk.ask(WHO)
    failed = [reply for reply in replies.values() if reply["answer"] is None]
    assert len(failed) == 12 and all(reply["error"].startswith("NullText: ") for reply in failed)
    assert foveate(*desk.words(WHO), "--strict") == 3
    out = capsys.readouterr().out
    assert out.count("not answered: NullText: ") == 12 and "doc12" in out


def test_output_is_kept_where_it_is_asked_for(desk: Desk, tmp_path: Path) -> None:
    note = desk.root / "note.txt"
    note.write_text(sentence(300, seed=5))
    first, _ = desk.ask(WHO, corpus=note, output=tmp_path / "kept")
    assert len(list((tmp_path / "kept" / "data").glob("*.parquet"))) == 1
    again, _ = desk.ask(WHO, corpus=note, output=tmp_path / "kept")
    assert answers(again) == answers(first) and chunks(again) == {"note.txt": (0, 0)}


def test_a_job_file_to_start_from(desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(desk.corpus)
    body = table.rename_columns(["name", "body"]).append_column("asked", pa.array(["Really?"] * len(table)))
    pq.write_table(body, tmp_path / "body.parquet")
    (tmp_path / "note.txt").write_text(sentence(200, seed=6))
    file = tmp_path / "job.yaml"
    file.write_text(
        f"corpus: {{path: {tmp_path / 'body.parquet'}, id: name, text: body, question: asked}}\n"
        f"model: {{source: {desk.model}, attention: cpu, device: cpu}}\n"
        "read: {chunk_tokens: 64}\n"
        "keep: {block_tokens: 16, widen_tokens: 4, budget: {kind: uniform, tokens: 64}}\n"
        "output: {path: nowhere}\n"
    )
    words = ["ask", "--config", file, "--store", desk.store, "--json", WHO]
    assert foveate(*words) == 0
    replies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(reply["document"], reply["question"]) for reply in replies] == [("doc0", WHO), ("doc1", WHO)]
    assert foveate(*words, "--corpus", tmp_path / "note.txt") == 0
    [reply] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert reply["document"] == "note.txt" and not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "keep.question=known"], "keep.scorer.kind: index keeps a few heads' keys"),
        (["--set", "keep={question: known, scorer: {kind: window}}"], "allowed: unknown, with keep.scorer"),
        (["--set", "keep.scorer={kind: probe}"], "keep.scorer.kind: probe scores with the question"),
        (["--set", "keep.budgt.tokens=3"], "did you mean budget?"),
        (["--set", "store.tiers=[{kind: memory}]"], "store.tiers: nothing that outlives the command"),
        (["--set", "keep.budget.tokens=4000"], "the model's window is 2048"),
        (["--corpus", "FILE/no"], "matches no Parquet file"),
        (["--corpus", "BINARY"], "neither Parquet nor UTF-8 text: byte 0xff at 2"),
        (["--store", "BINARY"], "cannot be used as a cache directory"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    desk: Desk, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    binary = desk.root / "binary"
    binary.write_bytes(b"ab\xff")
    own = [binary if word == "BINARY" else word for word in words]
    assert foveate(*desk.words(WHO), *own) == 2
    out, err = capsys.readouterr()
    assert said in err and "Traceback" not in err and not out


@pytest.mark.parametrize("missing", ["store", "corpus", "model"])
def test_what_is_missing_is_named_by_its_option(desk: Desk, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert foveate(*desk.words(WHO, **{missing: None})) == 2
    assert f"--{missing}: missing" in capsys.readouterr().err


def test_nothing_stays_but_the_store(desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    desk.ask(WHO)
    assert list(temporary.iterdir()) == []
