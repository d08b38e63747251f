"""Nothing that Foveate reads is unpickled: not in its source, and not when a file of it was replaced by a pickle.

``Bomb`` is a pickle that makes a folder when it is loaded. It is put in place of each file that a store or a run's
directory holds; what is read then is the miss or the error that is promised, and no folder appears.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cache_store.tiers.base import Tier
from pipeline import cli
from pipeline.directory import open_directory
from pipeline.driver import run
from tests.cache_store.blocks import make_block
from tests.cache_store.tiers import OPENERS
from tests.pipeline.jobs import Bench
from tests.pipeline.killed import commit_part, start
from tests.security.bombs import BOMBS, CARELESS, Bomb, in_parquet, of_torch
from tests.test_layout import SOURCES
from workers.errors import ModelError
from workers.selection.gate import Gate
from workers.selection.headmap import HeadMap
from workers.selection.profile import Profile

UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pickletools"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
UNSAFE_YAML = {"UnsafeLoader", "FullLoader", "Loader", "CLoader", "unsafe_load", "full_load"}


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of every construct that may run what a file says."""
    safe_loaders = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("SafeLoader") for base in node.bases)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            package = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [f"{package}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in names if UNPICKLERS & set(name.split(".")))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml" and node.attr in UNSAFE_YAML:
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, why) for why in _dangers_of_call(node, safe_loaders))


def _dangers_of_call(call: ast.Call, safe_loaders: set[str]) -> Iterator[str]:
    name, given = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
    last = name.rpartition(".")[2]
    if name in BUILTINS or last in ("read_pickle", "Unpickler") or name == "os.system":
        yield name
    if name.startswith("torch.") and last == "load" and given.get("weights_only") != "True":
        yield name
    if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
        yield name
    if name == "yaml.load" and given.get("Loader") not in safe_loaders | {"yaml.SafeLoader", "yaml.CSafeLoader"}:
        yield name
    if last == "from_pretrained" and given.get("trust_remote_code", "False") != "False":
        yield name


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from ray import cloudpickle",
        "from ray.cloudpickle import loads",
        "def f():\n    import shelve",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "np.load(p, allow_pickle=careless)",
        "yaml.load(t)",
        "yaml.load(t, Loader=yaml.Loader)",
        "yaml.full_load(t)",
        "class L(yaml.UnsafeLoader): pass",
        "eval(t)",
        "exec(t)",
        "pd.read_pickle(p)",
        "subprocess.run(t, shell=True)",
        "Auto.from_pretrained(d, trust_remote_code=True)",
    ],
)
def test_the_scan_sees_danger(text: str) -> None:
    assert list(dangers(ast.parse(text)))


def test_no_source_unpickles_or_runs_what_a_file_says() -> None:
    assert not [f"{file}:{line} {what}" for file, tree in SOURCES.items() for line, what in dangers(tree)]


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[Bomb]:
    """Checked at the end of each test."""
    planted = Bomb(tmp_path / "went-off")
    yield planted
    assert not planted.went_off


@pytest.mark.parametrize("dress", CARELESS)
def test_the_bombs_work(tmp_path: Path, dress: str) -> None:
    planted = Bomb(tmp_path / "went-off")
    CARELESS[dress](BOMBS[dress](planted))
    assert planted.went_off


def foveate(*arguments: object) -> int:
    """Run a command in this process; its exit code. An error that is not the user's is raised."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


ON_DISK = ("files", "objects")


def test_every_tier_on_a_disk_is_tried() -> None:
    assert {kind.partition(",")[0] for kind in OPENERS} == {*ON_DISK, "memory", "ray"}


def planted_store(kind: str, folder: Path, content: bytes) -> tuple[Tier, int]:
    """A store of two entries and what its tier leaves beside them, each file's content replaced."""
    tier = OPENERS[kind](folder, 2**30)
    for number in range(2):
        tier.put(make_block(number))
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(content)
    return OPENERS[kind](folder, 2**30), len(files)


@pytest.mark.parametrize("dress", BOMBS)
@pytest.mark.parametrize("kind", ON_DISK)
def test_a_pickle_in_place_of_an_entry_is_a_miss(
    kind: str, dress: str, bomb: Bomb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").mkdir()
    tier, num_files = planted_store(kind, tmp_path / "store", BOMBS[dress](bomb))
    assert num_files >= 2
    place = tmp_path / "store" if kind == "files" else (tmp_path / "store").as_uri()
    assert foveate("store", "ls", place) == 0
    assert foveate("store", "verify", place) == 1
    assert "2" in capsys.readouterr().out
    assert [tier.get(make_block(number).key) for number in range(2)] == [None, None]


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    return Bench(tmp_path, tiny_model, [700, 300, 0])


@pytest.mark.parametrize("kind", ON_DISK)
def test_a_run_over_a_store_of_pickles_reads_its_documents_anew(bench: Bench, bomb: Bomb, kind: str) -> None:
    folder = bench.root / "store"
    folder.mkdir()
    tier = {"kind": "files", "path": str(folder)} if kind == "files" else {"kind": "objects", "url": folder.as_uri()}
    store = {"tiers": [tier], "keep": True}
    run(bench.job("first", store=store))
    entries = list(folder.rglob("*.safetensors"))
    for path in entries:
        path.write_bytes(of_torch(bomb))
    run(bench.job("again", store=store))
    assert len(entries) > 0 and bench.rows("again") == bench.rows("first")


@pytest.mark.parametrize("dress", BOMBS)
def test_pickles_in_place_of_any_file_of_a_run(
    bench: Bench, bomb: Bomb, dress: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file in turn, of a run that is to go on: no command does worse than to say what is damaged."""
    job = bench.job("whole", output={"part_tokens": 100})
    assert foveate("run", bench.write_job(job, "whole.yaml")) == 0
    whole = bench.root / "whole"
    (whole / "_SUCCESS").unlink()
    names = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file())
    assert {name.split("/")[0] for name in names} == {"_job", "data", "failed", "report.html"}
    for name in names:
        planted = bench.root / "planted"
        shutil.copytree(whole, planted)
        (planted / name).write_bytes(BOMBS[dress](bomb))
        capsys.readouterr()
        codes = [
            foveate("status", planted),
            foveate("status", planted, "--json"),
            foveate("report", planted),
            foveate("retry-failed", planted),
            foveate("run", bench.root / "whole.yaml", "--output", planted),
        ]
        said = capsys.readouterr().err
        assert not bomb.went_off, name
        assert set(codes) <= {0, 2}, (name, said)
        assert "is damaged" in said or name == "report.html", name
        shutil.rmtree(planted)


def test_a_parquet_file_of_a_run_whose_schema_is_a_pickle(bench: Bench, bomb: Bomb) -> None:
    corpus = bench.root / "evil.parquet"
    corpus.write_bytes(in_parquet(pq.read_table(bench.corpus), bomb))
    run(bench.job("evil", corpus={"path": str(corpus)}))
    run(bench.job("plain"))
    ours = [{k: v for k, v in row.items() if k != "source_file"} for row in bench.rows("evil")]
    assert ours == [{k: v for k, v in row.items() if k != "source_file"} for row in bench.rows("plain")]


@pytest.mark.parametrize("command", ["run", "plan", "evaluate"])
def test_a_job_file_that_is_a_pickle_or_calls_python(
    command: str, bomb: Bomb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, dress in enumerate(BOMBS):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(BOMBS[dress](bomb))
        assert foveate(command, path) == 2
        path.write_bytes(b"corpus: " + BOMBS["yaml"](bomb))
        assert foveate(command, path) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("dress", BOMBS)
def test_what_a_model_is_known_by_is_no_pickle(dress: str, bomb: Bomb, tmp_path: Path) -> None:
    path = tmp_path / "planted"
    path.write_bytes(BOMBS[dress](bomb))
    for load in (Profile.load, Gate.load, HeadMap.load):
        with pytest.raises(ModelError, match="planted"):
            load(path)


def test_a_status_of_records_that_hold_pickles_as_text(bomb: Bomb, tmp_path: Path) -> None:
    """JSON may hold any string: none is taken for more than text."""
    directory = open_directory(str(tmp_path / "run"))
    commit_part(start(directory), 1)
    for name in directory.names("_job"):
        content = directory.read(name) or b""
        directory.delete(name)
        directory.create(name, content.replace(b"WorkerLost", b"!!python/object/apply:os.mkdir"))
    assert foveate("status", tmp_path / "run") == 0
