"""A driver of one obedient stage, which handles signals and exits as `irpo` does: by the command's own code.

python -m support.obedient_driver obey FOLDER BEHAVIOUR PROCESSES
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from support import obedient_stage
from support.obedient_stage import ObedientRequest

from irpo_megatron import cli
from irpo_megatron.artifacts import Json, read_json, write_json
from irpo_megatron.launch.local import run_stage_process
from irpo_megatron.process import die_with_parent

REQUEST = "request.json"
LOG = "stage.log"


def obey(
    folder: Path, behaviour: str, *, processes: int = 1, threads: int = 1, watch: Callable[[], None] = lambda: None
) -> None:
    """Run the obedient stage in a folder."""
    (folder / "out").mkdir(exist_ok=True)
    request = ObedientRequest.model_validate({"output": folder / "out", "iteration": 1, "behaviour": behaviour})
    write_json(folder / REQUEST, request.model_dump(mode="json"))
    module, log = obedient_stage.__name__, folder / LOG
    run_stage_process(module, folder / REQUEST, processes=processes, threads=threads, log=log, watch=watch)


def start_driver(folder: Path, behaviour: str, *, processes: int = 1) -> subprocess.Popen[str]:
    """Run it in a driver of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__, "obey", str(folder), behaviour, str(processes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path(), "GLOO_SOCKET_IFNAME": "lo"},
        preexec_fn=die_with_parent,  # a test that fails leaves nobody behind
    )


def python_path() -> str:
    """With it, children import `support` too."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))


def wait_for(
    is_so: Callable[[], object],
    *,
    driver: subprocess.Popen[str] | None = None,
    seconds: float = 600,
    every: float = 0.02,
) -> None:
    """Wait until something is so; a driver must not end before."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert driver is None or driver.poll() is None, f"the driver has ended: {driver.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(every)


def reports(folder: Path, name: str = "rank") -> list[Json]:
    """What the ranks have left under a name."""
    return [read_json(path) for path in sorted((folder / "out").glob(f"{name}-*.json"))]


def is_alive(process: int) -> bool:
    """Whether a process still runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def assert_gone(processes: list[int]) -> None:
    # SIGKILL takes effect a moment after it is sent.
    wait_for(lambda: not any(map(is_alive, processes)))


if __name__ == "__main__":

    @cli.app.command("obey")
    def _obey(folder: Path, behaviour: str, processes: int) -> None:
        with cli._interruptible():
            if behaviour == "between stages":
                print("between stages", flush=True)
                time.sleep(600)
            obey(folder, behaviour, processes=processes)

    cli.main()
