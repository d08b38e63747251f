"""``foveate render k8s``: what it prints, writes and refuses; and that the files in deploy/ are what it makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.load import job_record, job_yaml, load_job, load_values
from configs.shape import Slot, all_keys
from configs.text import parse
from pipeline import cli
from tests.deploy.rendered import JOB, ROOT, VALUES

MADE = [("rayjob.yaml", ()), ("raycluster.yaml", ("--cluster",))]


def foveate(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["render", "k8s", *(str(argument) for argument in arguments)])
    return int(ended.value.code or 0)


@pytest.mark.parametrize(("name", "options"), MADE)
def test_the_files_in_deploy_are_what_render_makes(
    name: str, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert foveate(JOB.relative_to(ROOT), *options, "--output", tmp_path / name) == 0
    assert (tmp_path / name).read_text() == (ROOT / "deploy" / name).read_text(), (
        f"foveate render k8s configs/kubernetes.yaml {' '.join(options)} --output deploy/{name}"
    )


@pytest.mark.parametrize(("name", "_options"), MADE)
def test_the_files_read_the_same_in_both_dialects_of_yaml(name: str, _options: tuple[str, ...]) -> None:
    for document in (ROOT / "deploy" / name).read_text().split("\n---\n"):
        assert yaml.safe_load(document) == parse(document, name)


def test_without_output_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert foveate(JOB, "--values", VALUES) == 0
    config_map, ray_job = yaml.safe_load_all(capsys.readouterr().out)
    assert (config_map["kind"], ray_job["kind"]) == ("ConfigMap", "RayJob")
    assert config_map["data"]["job.yaml"] == JOB.read_text()


def test_overrides_travel_in_a_job_that_is_written_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    settings = ["pool.workers=3", "questions[0].text=Who's there: $HOME?"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert foveate(JOB, "--values", VALUES, *words) == 0
    config_map, ray_job = yaml.safe_load_all(capsys.readouterr().out)
    (tmp_path / "job.yaml").write_text(config_map["data"]["job.yaml"])
    sent = load_job(tmp_path / "job.yaml")
    assert job_record(sent) == job_record(load_job(JOB, settings)) and config_map["data"]["job.yaml"] == job_yaml(sent)
    assert ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"] == 3


def test_what_cannot_run_is_refused_and_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made.yaml"
    assert foveate(ROOT / "configs" / "cluster.yaml", "--values", VALUES, "--output", made) == 2
    said = capsys.readouterr().err
    assert "corpus.path: demo/corpus is a path of this machine" in said and "output.path: demo/answers-cluster" in said
    assert not made.exists()
    assert foveate(JOB, "--values", tmp_path / "none.yaml") == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err
    assert foveate(JOB, "--values", VALUES, "--output", tmp_path / "no" / "made.yaml") == 2
    assert "--output: " in capsys.readouterr().err


def test_the_values_file_names_every_key_and_no_default_is_hidden() -> None:
    """Whoever copies it sees all that there is."""
    written = parse(VALUES.read_text(), str(VALUES))
    for path in all_keys(Slot(type(load_values(VALUES)))):
        if path[:3] == ("storage", "volumes", 0) or "tolerations" in path[:-1]:
            continue  # an empty list there, its items in a comment; and not every toleration needs every key
        place = written
        for part in path:
            assert isinstance(part, int) or part in place, path
            place = place[part]


def test_the_version_of_ray_is_the_one_we_are_tested_with() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert load_values(VALUES).image.ray == pins["ray"]
