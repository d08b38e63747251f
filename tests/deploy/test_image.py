"""deploy/Dockerfile, by its text: no image can be built here."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from pipeline.kubernetes_pods import MODEL_CACHE
from tests.deploy.rendered import ROOT

TEXT = (ROOT / "deploy" / "Dockerfile").read_text()
LINES = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.M)).splitlines()
STEPS = [line.split(maxsplit=1) for line in LINES if line.strip()]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def arguments(word: str) -> list[str]:
    return [rest for first, rest in STEPS if first == word]


def stages() -> dict[str, tuple[str, list[list[str]]]]:
    """What each stage stands on, and its own steps."""
    found: dict[str, tuple[str, list[list[str]]]] = {}
    for step in STEPS:
        if step[0] == "FROM":
            base, name = step[1].split(" AS ")
            found[name] = (base, [])
        elif found:
            found[name][1].append(step)
    return found


def steps_of(name: str) -> list[list[str]]:
    """The steps of a stage and of those that it stands on, first to last."""
    base, own = stages()[name]
    return [*(steps_of(base) if base in stages() else []), *own]


def test_it_stands_on_rays_own_image_of_our_version() -> None:
    assert f"RAY_VERSION={PINS['ray']}" in arguments("ARG")
    assert stages()["base"][0] == "rayproject/ray:${RAY_VERSION}-py311-cpu"
    assert list(stages())[-1] == "cpu" and stages()["cpu"][0] == "base" and stages()["cuda"][0] == "torch-cuda"


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_nobody_in_it_is_root(name: str) -> None:
    users = [rest for first, rest in steps_of(name) if first == "USER"]
    assert users[-1] == "1000:100"


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_model_cache_is_a_volume(name: str) -> None:
    steps = steps_of(name)
    assert ["VOLUME", MODEL_CACHE] in steps
    settings = " ".join(rest for first, rest in steps if first == "ENV")
    for variable in ("HF_HOME", "FOVEATE_CACHE"):
        assert PurePosixPath(re.search(rf"{variable}=(\S+)", settings)[1]).is_relative_to(MODEL_CACHE)  # type: ignore[index]


def test_everything_is_installed_under_our_constraints() -> None:
    commands = [command for rest in arguments("RUN") for command in re.findall(r"pip (?:install|wheel)[^&}]*", rest)]
    assert len(commands) >= 6 and all("-c constraints.txt" in command for command in commands)
    assert any("'.[cuda]'" in command for command in commands)


def test_what_is_copied_is_there_and_let_through() -> None:
    """.dockerignore lets nothing through but what a stage copies."""
    copied = {
        word for rest in arguments("COPY") if "--from" not in rest for word in rest.split()[:-1] if word[:2] != "--"
    }
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*" and {line[1:] for line in ignored if line[0] == "!"} == copied
    assert all((ROOT / name).exists() for name in copied)
    folders = {name for name in copied if (ROOT / name).is_dir()}
    assert folders == {"configs", "cache_store", "workers", "pipeline"}


def test_no_secret_is_asked_for_or_kept() -> None:
    words = " ".join(arguments("ARG") + arguments("ENV")).upper()
    assert not re.search(r"TOKEN|PASSWORD|SECRET|ACCESS_KEY|CREDENTIAL", words)
