"""``foveate render``: a job as files for other programs.

Invariant: nothing is sent anywhere; what cannot run there is refused before a file is written.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from configs.errors import ConfigError

render_app = typer.Typer(
    help="Write a job as manifests for a cluster's own tools.", no_args_is_help=True, rich_markup_mode=None
)


@render_app.callback()
def render() -> None:
    """Write a job as manifests for a cluster's own tools."""


@render_app.command()
def k8s(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")],
    values: Annotated[Path, typer.Option(metavar="FILE", help="What the Kubernetes cluster is like.")] = Path(
        "deploy/values.yaml"
    ),
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there; default: print.")] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="A RayCluster that stays, without the job.")] = False,
) -> None:
    """Write the RayJob that runs a job on Kubernetes, for `kubectl apply -f`."""
    from configs.load import job_yaml, load_job, load_values
    from pipeline.kubernetes import as_yaml, render_cluster, render_job

    job, site = load_job(job_file, settings or ()), load_values(values)
    text = job_yaml(job) if settings else job_file.read_text(encoding="utf-8-sig")
    manifests = render_cluster(job, job_file, site) if cluster else render_job(job, job_file, text, site)
    words = ["foveate", "render", "k8s", str(job_file), "--values", str(values)]
    words += [word for setting in settings or () for word in ("--set", setting)]
    made = as_yaml(manifests, shlex.join([*words, *(["--cluster"] if cluster else [])]))
    if output is None:
        print(made, end="")
        return
    try:
        output.write_text(made, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output: {output}: cannot be written: {error.strerror}") from error
