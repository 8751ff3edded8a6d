"""The job script, whole; and what bash makes of it when signals come."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from support.obedient_driver import wait_for

from irpo_megatron.config_launch import SlurmConfig
from irpo_megatron.launch.slurm_script import Job, job_script

COMMAND = ["/env/bin/python", "-m", "irpo_megatron.cli", "run", "a config.yaml", "loss.alpha=0.5"]
CPUS = SlurmConfig(nodes=2, time_limit_minutes=60, restarts=3)

EXPECTED = """\
#!/bin/bash
# Written by `irpo submit` for trial; sbatch takes it again.
#SBATCH --job-name=trial
#SBATCH --chdir=/home/me
#SBATCH --output="/data/my runs/trial/logs/slurm-%j.log"
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gpus-per-node=8
#SBATCH --time=1440
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --partition=batch,long
#SBATCH --account=research
#SBATCH --constraint=h100

/env/bin/python -m irpo_megatron.cli run 'a config.yaml' loss.alpha=0.5 &
driver=$!
stop=
trap 'kill -USR1 "$driver"' USR1            # before the time limit: save, and go on in the next job
trap 'stop=yes; kill -TERM "$driver"' TERM  # irpo cancel: save, and end
while kill -0 "$driver" 2>/dev/null; do wait "$driver"; done  # a signal interrupts wait
wait "$driver"
status=$?

# 75: the driver has saved, or lost nodes. 138: the signal came before it was there.
if [ "$status" -eq 75 ] || [ "$status" -eq 138 ]; then
    if [ -z "$stop" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$status"
"""


def test_the_whole_script() -> None:
    slurm = SlurmConfig(
        nodes=2,
        gpus_per_node=8,
        time_limit_minutes=1440,
        partition="batch,long",
        account="research",
        sbatch=("--constraint=h100",),
    )
    log = Path("/data/my runs/trial/logs/slurm-%j.log")
    assert job_script(Job("trial", Path("/home/me"), log, COMMAND), slurm) == EXPECTED


def test_an_array_and_a_job_that_is_never_put_back() -> None:
    job = Job("trial", Path("/home/me"), Path("/runs/slurm-%A_%a.log"), COMMAND, ["seed=0", "name=it's"])
    lines = job_script(job, CPUS.model_copy(update={"restarts": 0})).splitlines()
    assert "#SBATCH --array=0-1" in lines
    assert "#SBATCH --no-requeue" in lines
    assert "#SBATCH --requeue" not in lines
    assert "choices=(seed=0 'name=it'\"'\"'s')" in lines
    assert lines[lines.index("driver=$!") - 1].endswith('loss.alpha=0.5 "${choices[$SLURM_ARRAY_TASK_ID]}" &')
    assert not any("scontrol" in line for line in lines)
    assert not any("gpus" in line for line in lines)


@pytest.fixture
def bin_(tmp_path: Path) -> Path:
    """A folder with a driver that says it is there, and a scontrol that says what it was told."""
    programs = {
        "driver": 'trap \'echo "saved on $1"; exit 75\' USR1 TERM; echo ready > "$READY"; echo "$@"\n'
        'while [ -z "$STATUS" ]; do sleep 0.05; done; exit $STATUS',
        "scontrol": 'echo "scontrol $*"',
    }
    for name, text in programs.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def run_script(
    bin_: Path, *signals: signal.Signals, choices: tuple[str, ...] = (), **variables: str
) -> tuple[int, str]:
    """The script's exit status and output, when bash gets these signals once the driver is there."""
    job = Job("trial", Path("/home/me"), Path("log"), [str(bin_ / "driver"), "run"], choices)
    path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "READY": str(bin_ / "ready"), "SLURM_JOB_ID": "7", **variables}
    script = subprocess.Popen(["bash", "-c", job_script(job, CPUS)], env=environment, stdout=subprocess.PIPE, text=True)
    wait_for((bin_ / "ready").exists)
    for number in signals:
        script.send_signal(number)
    output, _ = script.communicate(timeout=600)
    return script.returncode, output


@pytest.mark.parametrize(("status", "requeued"), [("0", False), ("1", False), ("2", False), ("75", True)])
def test_what_the_driver_ends_with_decides(bin_: Path, status: str, requeued: bool) -> None:
    expected = "run\n" + ("scontrol requeue 7\n" if requeued else "")
    assert run_script(bin_, STATUS=status) == (int(status), expected)


def test_slurms_warning_puts_the_job_back(bin_: Path) -> None:
    assert run_script(bin_, signal.SIGUSR1) == (75, "run\nsaved on run\nscontrol requeue 7\n")


def test_a_cancelled_job_is_not_put_back(bin_: Path) -> None:
    assert run_script(bin_, signal.SIGTERM) == (75, "run\nsaved on run\n")


@pytest.mark.parametrize(("count", "requeued"), [("2", True), ("3", False)])
def test_restarts_are_bounded(bin_: Path, count: str, requeued: bool) -> None:
    _, output = run_script(bin_, SLURM_RESTART_COUNT=count, STATUS="75")
    assert ("scontrol requeue 7" in output) == requeued


def test_a_task_of_an_array_has_its_own_choice(bin_: Path) -> None:
    choices = ("seed=0", "name=a b")
    assert run_script(bin_, choices=choices, SLURM_ARRAY_TASK_ID="1", STATUS="0") == (0, "run name=a b\n")
