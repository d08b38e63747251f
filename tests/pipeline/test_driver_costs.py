"""What is timed are the pieces of the real reader, and the table has a row for each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest

from pipeline.simulation.driver_bench import Bench, choosing, preparing
from pipeline.simulation.driver_costs import main
from pipeline.simulation.driver_messages import idler, looking_us, message_ms
from tests.tiny import save_tiny_model
from workers.selection.profile import Profile, profile_path
from workers.source import locate

CHARS = 10_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tiny model with room for a job's defaults, whose heads are known."""
    directory = save_tiny_model(tmp_path_factory.mktemp("model"), window=8192)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        weights = locate(str(directory)).weights
        Profile(weights, ((1, 0), (2, 1))).save(profile_path(weights))
        yield str(directory)


def test_the_pieces_are_those_of_the_real_reader(model: str) -> None:
    bench = Bench.of(model, 2, CHARS)
    assert "".join(document.text for document in bench.documents).count("\n\n") > 3, "the manual"
    document = bench.documents[1]
    prepared, pieces = bench.reader.prepare(document), preparing(bench, document)
    ids, offsets = pieces["... tokens and offsets"]()
    assert tuple(ids) == prepared.token_ids and offsets == [tuple(pair) for pair in prepared.offsets_T2.tolist()]
    assert pieces["... chunks"]() == prepared.chunks and len(prepared.chunks) > 1
    assert pieces["... probe and messages"]() == list(prepared.encodes)
    [selection] = choosing(bench, document)["choose"]()
    assert 0 < sum(len(run.token_ids) for run in selection.query.runs) <= prepared.budget_tokens


def test_the_table_has_a_row_for_each_piece(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--model", model, "--rounds", "2", "--documents", "2", "--chars", str(CHARS), "--without-ray"])
    _, _, *rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.strip().split("\n")]
    assert [row[0] for row in rows] == [
        "prepare", "... tokens and offsets", "... (tokens without offsets)", "... offsets as an array", "... chunks",
        "... probe and messages", "choose", "answer row", "prepare: two threads", "... tokens and offsets: two threads",
    ]  # fmt: skip
    for _, _, median, quartiles in rows:
        low, high = quartiles.split(" to ")
        assert 0 < float(low) <= float(median) <= float(high)


@pytest.mark.parametrize(("options", "words"), [(["--rounds", "1"], "2 or more"), (["--model", "nowhere"], "nowhere")])
def test_what_cannot_be_measured_is_refused(
    model: str, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--model", model, *options])
    assert words in capsys.readouterr().err


@pytest.mark.cluster
def test_messages_go_there_and_back(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    bench = Bench.of(model, 2, CHARS)
    task = bench.reader.prepare(bench.documents[0]).encodes[0]
    try:
        with idler(bench.said_of(task)) as actor:
            out_ms, back_ms, cpu_ms = message_ms(actor, task, 16)
            looks = looking_us(actor, (4, 9), rounds=3)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert (len(out_ms), len(back_ms)) == (16, 16) and min(out_ms + back_ms + [cpu_ms]) > 0
    assert {number: len(found) for number, found in looks.items()} == {4: 3, 9: 3}
