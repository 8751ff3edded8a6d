"""What `irpo submit` refuses, before anything is handed in; Slurm's commands are stand-ins that must not be called."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from support.tiny_model import make_llama

from irpo_megatron import cli


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model, data and a configuration that would be taken."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        (commands / name).write_text(
            f'#!/bin/sh\necho called > {tmp_path}/{name}\necho "sbatch: error: no" >&2\nexit 1\n'
        )
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    make_llama(tmp_path / "model", max_position_embeddings=1024)
    for name in ("train", "test"):
        lines = [{"question": f"{name} {index}: what is 2 + 2?", "answer": "2 + 2\n#### 4"} for index in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "name": "run",
        "task": "gsm8k",
        "model": {"path": "model"},
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "generation": {"max_tokens": 32},
        "selection": {"held_out": 2},
        "tracking": {"to": []},
        "launch": {"launcher": "slurm", "slurm": {"nodes": 2, "time_limit_minutes": 60}},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Submit, which must be refused; its message."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["submit", "config.yaml", *arguments])
    message = capsys.readouterr().err
    assert exit_.value.code == 2, message
    assert message.count("  rule:   ") == message.count("  remedy: ") == 1, message
    return message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("launch.launcher=local", "irpo submit, launch.launcher = local"),
        ("launch.slurm.gpus_per_node=1 parallel.data=4", "parallel.* makes 4 ranks"),
        ("launch.slurm.train={image: /nowhere.sqsh}", "launch.slurm.train.image = /nowhere.sqsh, which is not there"),
        ("launch.slurm.train={image: i, mounts: [/nowhere]}", "launch.slurm.train.mounts has /nowhere:/nowhere"),
        ("parallel.tensor=3 training.global_batch_size=15", "parallel.tensor = 3"),
        ("data.train=nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("model.path=nowhere", "nowhere"),
        ("generation.max_tokens=1023", "1024"),
        ("runs=50%", "a line of the job script"),
    ],
)
def test_nothing_is_handed_in(setting: Path, capsys: pytest.CaptureFixture[str], override: str, said: str) -> None:
    overrides = [override] if "{" in override else override.split()
    assert said in refused(capsys, *overrides)
    assert not (setting / "sbatch").exists()


def test_data_that_a_container_would_not_see(
    setting: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "train.jsonl").write_bytes((setting / "train.jsonl").read_bytes())
    data = f"data.train={elsewhere}/train.jsonl"
    message = refused(capsys, data, "launch.slurm.train={image: i}")
    assert f"add {elsewhere} to launch.slurm.train.mounts" in message
    moved = refused(capsys, data, f"launch.slurm.train={{image: i, mounts: ['{elsewhere}:/data']}}")
    assert "launch.slurm.train.mounts does not have it" in moved
    # With the mount it gets as far as Slurm, whose stand-in takes nothing.
    assert "sbatch" in refused(capsys, data, f"launch.slurm.train={{image: i, mounts: ['{elsewhere}']}}")


def test_what_slurm_says_is_passed_on(setting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "submit.slurm: sbatch: error: no" in refused(capsys)
    assert (setting / "runs" / "run" / "submit.slurm").is_file()
    assert (setting / "runs" / "run" / "problems" / "manifest.json").is_file()
    assert not (setting / "runs" / "run" / "slurm.json").exists()


@pytest.mark.parametrize(
    ("array", "said"), [("seed", "KEY=VALUE"), ("seed=", "KEY=VALUE"), ("seed=1,2", "name = run for several of them")]
)
def test_arrays_that_are_none(setting: Path, capsys: pytest.CaptureFixture[str], array: str, said: str) -> None:
    assert said in refused(capsys, "--array", array)


def test_without_slurm(setting: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(setting))
    assert "not found: sbatch, squeue, scancel" in refused(capsys)


def test_the_driver_runs_in_a_job(
    setting: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["run", "config.yaml"])
    assert exit_.value.code == 2
    assert "launch.launcher = slurm, outside of a job" in capsys.readouterr().err


def test_a_run_that_was_not_submitted(setting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (setting / "runs").mkdir()
    with pytest.raises(SystemExit) as exit_:
        cli.main(["cancel", "runs"])
    assert exit_.value.code == 2
    assert "was not handed in to Slurm" in capsys.readouterr().err


def test_status_where_slurm_is_not(
    setting: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(capsys)  # leaves a run directory
    (setting / "runs" / "run" / "slurm.json").write_text('{"job": "17"}')
    monkeypatch.setenv("PATH", str(setting))
    cli.app(["status", "runs/run"], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[-1] == "job 17: Slurm is not here to be asked"
