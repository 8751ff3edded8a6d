"""A run, or an array of runs, handed in to Slurm: everything that can be checked is checked first."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from irpo_megatron.artifacts import read_json, write_json
from irpo_megatron.config import Config
from irpo_megatron.config_file import load_config
from irpo_megatron.console import Console
from irpo_megatron.containers import check_containers
from irpo_megatron.errors import UserError
from irpo_megatron.iteration import make_problems, problems
from irpo_megatron.launch.local import LocalLauncher
from irpo_megatron.launch.slurm_jobs import job_state, require_slurm, submit
from irpo_megatron.launch.slurm_script import Job, job_script
from irpo_megatron.preflight import check_installation, check_model
from irpo_megatron.run_directory import open_run

SCRIPT = "submit.slurm"
# Which job a run is in.
_RECORD = "slurm.json"


def submit_run(path: Path, overrides: Sequence[str], console: Console, *, array: str | None = None) -> str:
    """Check a configuration, write the run directory with its job script, hand that in.

    Args:
        path: The configuration.
        array: `KEY=VALUE,VALUE,...`: a run for each value, all in one array job.

    Returns:
        The job's number.

    Raises:
        UserError: before anything is handed in.
    """
    choices = [] if array is None else _choices(array)
    configs = [load_config(path, [*overrides, *last]) for last in ([[choice] for choice in choices] or [[]])]
    require_slurm()
    _check_names(configs, array)
    for config in configs:
        _check(config, console)
    first = configs[0]
    assert first.launch.slurm is not None, "config_rules demands the section"
    directory = first.run_dir.absolute()
    log = directory.parent / "slurm-%A_%a.log" if choices else directory / "logs" / "slurm-%j.log"
    _check_paths(Path.cwd(), directory)
    command = [sys.executable, "-m", "irpo_megatron.cli", "run", str(path), *overrides]
    script = job_script(Job(first.name, Path.cwd(), log, command, choices), first.launch.slurm)
    for config in configs:
        (config.run_dir / SCRIPT).write_text(script, encoding="utf-8")
    job = submit(first.run_dir / SCRIPT)
    for index, config in enumerate(configs):
        write_json(config.run_dir / _RECORD, {"job": f"{job}_{index}" if choices else job})
    return job


def submitted_job(run_dir: Path) -> str | None:
    """The job that a run was last handed in as; None for a run that was not."""
    record = run_dir / _RECORD
    return str(read_json(record)["job"]) if record.is_file() else None


def _choices(array: str) -> list[str]:
    key, equals, values = array.partition("=")
    choices = [f"{key}={value}" for value in values.split(",") if value]
    if not equals or not choices:
        raise UserError(f"--array {array}", "an array has the form KEY=VALUE,VALUE", "for example --array seed=0,1,2")
    return choices


def _check_names(configs: Sequence[Config], array: str | None) -> None:
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise UserError(
            f"--array {array}, name = {names[0]} for several of them",
            "each run of an array has a run directory of its own",
            "have the key in the name, for example 'name=trial-${seed}'",
        )


def _check_paths(*paths: Path) -> None:
    for path in paths:
        if not str(path).isprintable() or set('"\\%') & set(str(path)):
            raise UserError(
                f"the path {str(path)!r}",
                'a path stands in a line of the job script, where ", \\, % and line ends mean something else',
                "work in another folder, or choose one with runs=FOLDER",
            )


def _check(config: Config, console: Console) -> None:
    """What `irpo run` checks before anything heavy starts, as far as that can be known here."""
    if config.launch.launcher != "slurm":
        raise UserError(
            f"irpo submit, launch.launcher = {config.launch.launcher}",
            "what is handed in to Slurm runs as steps of a job",
            "set launch.launcher=slurm, or use irpo run",
        )
    job = submitted_job(config.run_dir)
    state = None if job is None else job_state(job)
    if state is not None and not state.has_ended:
        raise UserError(
            f"{config.run_dir} is in job {job}, which is {state.state}",
            "a run directory has one driver at a time",
            f"wait for it, or irpo cancel {config.run_dir}",
        )
    check_containers(config)
    with open_run(config, console, redo=False) as run:
        run.launcher = LocalLauncher(config)  # here there is no job yet
        check_installation(config)
        make_problems(run)
        if config.model.path is not None:  # any other M_0 is yet to be made
            check_model(config, problems(run), config.model.path)
