"""A real Slurm with two virtual nodes: what docs/slurm.md says, and what disturbs a run, changes no result."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.command import ROOT, Finished, irpo, start_irpo
from support.obedient_driver import assert_gone, python_path, reports, wait_for
from support.slurm_cluster import NODES, VirtualCluster, missing_programs

from irpo_megatron.artifacts import read_json
from irpo_megatron.launch.slurm_rank import first_host

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"Slurm is not installed: {', '.join(missing_programs())} not found"
)

PAGE = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
CONFIG = ROOT / "examples" / "slurm" / "two_nodes.yaml"
NAME = "two-nodes"
# On a machine with other work to do.
_PATIENCE_SECONDS = 1000
# Between two questions to Slurm.
_LOOK_SECONDS = 0.1


def commands(heading: str) -> str:
    """The shell block of the page that follows a mark."""
    block = re.search(rf"<!-- {heading} -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    return block[1]


@dataclass(frozen=True)
class Place:
    """Where a reader of the page stands: in the repository, with a cluster that they have started."""

    folder: Path
    cluster: VirtualCluster
    first_run: str
    """What the page's commands printed."""

    @property
    def run(self) -> Path:
        return self.folder / "runs" / NAME

    def job_of(self, run: Path) -> str:
        return str(read_json(run / "slurm.json")["job"])

    def state(self, run: Path) -> str:
        """Slurm's word for the job of a run."""
        return self.cluster.run("squeue", "-h", "-t", "all", "-j", self.job_of(run), "-o", "%T").stdout.strip()


def follow(folder: Path, text: str) -> str:
    """Run commands of the page."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """The same run on this machine alone, at the same layout, at work."""
    local = start_irpo("run", CONFIG, f"runs={tmp_path_factory.mktemp('local')}", "launch.launcher=local")
    yield local
    local.kill()
    local.communicate()


@pytest.fixture(scope="module")
def place(undisturbed: subprocess.Popen[str]) -> Iterator[Place]:
    """The page's first run, followed to its end in a folder that looks like the repository."""
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    for name in ("examples", "tools", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    cluster = VirtualCluster(folder / "cluster")
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("A_TOKEN", "a-secret-of-the-shell")
            printed = follow(folder, commands("first run"))
            environment.setenv("SLURM_CONF", str(cluster.configuration))
            yield Place(folder, cluster, printed)
    finally:
        follow(folder, commands("the end"))
        assert list(cluster.processes()) == [], "nothing is left of the cluster"
        shutil.rmtree(folder)


def results(run: Path) -> str:
    """What a run has found, without the times."""
    found = read_json(run / "results.json")
    for entry in found["iterations"]:
        del entry["seconds"]
    return json.dumps(found)


def weights(run: Path) -> bytes:
    return (run / "iteration-01" / "checkpoint-hf" / "model.safetensors").read_bytes()


def test_the_page_leads_to_a_finished_run(place: Place) -> None:
    assert re.search(r"^job 1: (PENDING|RUNNING)", place.first_run, re.MULTILINE)
    assert "job 1: COMPLETED" in place.first_run
    assert place.first_run.splitlines()[-2].split()[:2] == ["1", "0.0"], "the table of results"
    launched = (place.cluster.folder / f"slurmd-{NODES[1]}.log").read_text()
    steps = len(re.findall(r"launch task StepId=1\.\d+", launched))
    assert steps == 5, "three times workers, the ranks of reference and those of train were there too"


def test_two_nodes_give_what_one_machine_gives(place: Place, undisturbed: subprocess.Popen[str]) -> None:
    _, errors = undisturbed.communicate()
    assert undisturbed.returncode == 0, errors
    local = Path(str(undisturbed.args[5]).removeprefix("runs=")) / NAME  # type: ignore[index]
    assert results(place.run) == results(local)
    assert weights(place.run) == weights(local)


def test_no_secret_is_written_down(place: Place) -> None:
    environment = (b"a-secret-of-the-shell", b"A_TOKEN")
    files = [path for path in place.run.rglob("*") if path.is_file()]
    assert place.run / "submit.slurm" in files
    assert not [path for path in files if any(secret in path.read_bytes() for secret in environment)]


def test_a_run_in_a_job_is_not_submitted_again_and_an_array_is_one_job(place: Place) -> None:
    overrides = ["runs=arrays", "name=held-${seed}", "launch.slurm.sbatch=[--hold]"]
    submitted = in_place(place, "submit", CONFIG, *overrides, "--array", "seed=3,4")
    assert submitted.status == 0, submitted.errors
    job = submitted.output.strip()
    first, second = place.folder / "arrays" / "held-3", place.folder / "arrays" / "held-4"
    assert (place.job_of(first), place.job_of(second)) == (f"{job}_0", f"{job}_1")
    again = in_place(place, "submit", CONFIG, *overrides, "seed=3")
    assert (again.status, "is in job" in again.errors) == (2, True)
    assert in_place(place, "status", second).output.splitlines()[-1] == f"job {job}_1: PENDING, (JobHeldUser)"
    assert in_place(place, "cancel", second).output == f"job {job}_1 is cancelled\n"
    assert place.state(first) == "PENDING"
    assert in_place(place, "cancel", second).output.startswith(f"job {job}_1 has ended: ")
    assert in_place(place, "cancel", first).output == f"job {job}_0 is cancelled\n"


@pytest.mark.parametrize("hosts", ["a[3-5,7]", "rack[2-3]n[07-12,20],x", "b7,b[1-3]", "127.0.0.[1-2]"])
def test_slurm_names_the_same_host_first(place: Place, hosts: str) -> None:
    assert first_host(hosts) == place.cluster.run("scontrol", "show", "hostnames", hosts).stdout.split()[0]


def in_place(place: Place, *arguments: str | Path) -> Finished:
    """The command where the page's reader stands."""
    return irpo(*arguments, directory=place.folder)


def start_driver(folder: Path, behaviour: str) -> subprocess.Popen[str]:
    """The obedient stage as four ranks, in a job of its own."""
    job = ["salloc", "--quiet", "--nodes=2", "--exclusive", "--job-name=obedient"]
    driver = [sys.executable, "-m", "support.slurm_driver", str(folder), behaviour]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    return subprocess.Popen([*job, *driver], stderr=subprocess.PIPE, text=True, env=environment)


def test_ranks_over_both_nodes_and_a_mistake_that_one_of_them_finds(place: Place, tmp_path: Path) -> None:
    _, errors = start_driver(tmp_path, "blame the user").communicate()
    assert "UserError: count = 13\n  rule:   no count is 13\n" in errors
    ranks = [(report["RANK"], report["LOCAL_RANK"], report["WORLD_SIZE"]) for report in reports(tmp_path)]
    assert ranks == [("0", "0", "4"), ("1", "1", "4"), ("2", "0", "4"), ("3", "1", "4")]


def test_a_failure_where_every_node_answers_is_the_stages_own(place: Place, tmp_path: Path) -> None:
    _, errors = start_driver(tmp_path, "fail").communicate()
    assert re.search("StageError: stage .*: ZeroDivisionError: a defect", errors)
    steps = set(re.findall(r"StepId=[\d.]+\d", (tmp_path / "stage.log").read_text()))
    assert len(steps) == 1, "it was not tried again"


def test_a_stopped_driver_leaves_no_rank(place: Place, tmp_path: Path) -> None:
    job = start_driver(tmp_path, "wait")
    wait_for(lambda: len(reports(tmp_path)) == 4, driver=job)
    os.kill(read_json(tmp_path / "driver.json")["process"], signal.SIGTERM)
    _, errors = job.communicate()
    assert "Interrupted: stage was stopped by SIGTERM" in errors
    assert_gone([process for report in reports(tmp_path) for process in report["processes"]])


@dataclass(frozen=True)
class Training:
    """A run whose training is at work in a job."""

    place: Place
    run: Path

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted((self.run / "logs").glob("slurm-*.log")))

    def submit(self) -> None:
        overrides = [
            f"runs={self.run.parent}",
            "launch.slurm.srun=[--wait=5]",  # a minute for the ranks that are left is too much for a test
            "launch.slurm.warning_minutes=20",
        ]
        submitted = in_place(self.place, "submit", CONFIG, *overrides)
        assert submitted.status == 0, submitted.errors

    def wait_for_steps(self, count: int) -> None:
        """Until training has done more steps, and is not finished."""
        metrics = self.run / "iteration-01" / "training.partial" / "metrics.jsonl"
        seen: list[int] = []

        def far_enough() -> bool:
            assert self.place.state(self.run) in ("PENDING", "CONFIGURING", "RUNNING"), self.log
            seen.append(len(metrics.read_bytes().splitlines()) if metrics.exists() else 0)
            return seen[-1] >= seen[0] + count

        wait_for(far_enough, seconds=_PATIENCE_SECONDS, every=_LOOK_SECONDS)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have the ranks and their helpers stand still: what happens meanwhile happens in the midst of training."""
        ranks = list(self.place.cluster.processes("RANK="))
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        try:
            yield
            wait_for(lambda: list((self.run / "logs").glob("*-train.request.stop")))
        finally:
            for rank in ranks:
                os.kill(rank, signal.SIGCONT)

    def wait_for_state(self, *states: str) -> None:
        wait_for(lambda: self.place.state(self.run) in states, seconds=_PATIENCE_SECONDS, every=_LOOK_SECONDS)


@pytest.fixture
def training(place: Place, tmp_path: Path) -> Training:
    """The finished run once more, from where training begins."""
    shutil.copytree(place.run, tmp_path / NAME)
    run = tmp_path / NAME
    for name in ("training", "selection", "checkpoint-hf", "evaluation"):
        shutil.rmtree(run / "iteration-01" / name)
    for path in [
        *run.glob("results.json"),
        *run.glob("report.html"),
        *run.glob("slurm.json"),
        *(path for path in (run / "logs").rglob("*") if path.is_file()),
    ]:
        path.unlink()
    return Training(place, run)


def test_cancelled_out_of_time_and_crashed_a_run_ends_where_it_would_have(training: Training) -> None:
    cluster, run = training.place.cluster, training.run
    training.submit()
    training.wait_for_steps(3)
    with training.frozen():
        assert in_place(training.place, "cancel", run).output.endswith("saves its work and ends\n")
    training.wait_for_state("FAILED")  # it has not finished; what counts is that it was not put back
    assert re.search(r"iteration-01-train stopped after step \d+ of 60, which is saved", training.log)

    training.submit()
    job = training.place.job_of(run)
    training.wait_for_steps(3)
    with training.frozen():
        # Not that long before the limit, Slurm warns at once.
        assert cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=20").returncode == 0
    training.wait_for_state("PENDING")
    assert "SIGUSR1: waiting for iteration-01-train to save" in training.log

    # Slurm lets the job rest for two minutes, because what it still has to tell a node that was lost would be taken for
    # orders to the new steps. Here no node was lost yet; but the job's credential was revoked within this second, and
    # one of the same second would be revoked too.
    assert cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60", "StartTime=now+3").returncode == 0
    training.wait_for_steps(3)
    cluster.crash(NODES[1])
    again = f"lost {NODES[1]}: it is tried again on {NODES[0]}"
    wait_for(lambda: again in training.log, seconds=_PATIENCE_SECONDS)
    cluster.start_node(NODES[1])  # a job ends when all its nodes say so
    training.wait_for_state("COMPLETED", "FAILED")
    assert training.place.state(run) == "COMPLETED", training.log
    assert results(run) == results(training.place.run)
    assert weights(run) == weights(training.place.run)
    assert not list(run.rglob("*.partial"))
