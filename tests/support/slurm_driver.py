"""A driver of one obedient stage, as four ranks over the nodes of a job of Slurm; it exits as `irpo` does.

salloc --nodes=2 --exclusive python -m support.slurm_driver FOLDER BEHAVIOUR
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from support import obedient_stage
from support.command import ROOT
from support.obedient_driver import LOG, REQUEST
from support.obedient_stage import ObedientRequest

from irpo_megatron.artifacts import write_json
from irpo_megatron.config_file import load_config
from irpo_megatron.errors import Interrupted, StageError, UserError
from irpo_megatron.launch.protocol import Ranks
from irpo_megatron.launch.slurm import SlurmLauncher

DRIVER = "driver.json"


def main(folder: Path, behaviour: str) -> None:
    """Run the stage; exit by what became of it."""
    (folder / "out").mkdir()
    request = ObedientRequest.model_validate({"output": folder / "out", "iteration": 1, "behaviour": behaviour})
    write_json(folder / REQUEST, request.model_dump(mode="json"))
    write_json(folder / DRIVER, {"process": os.getpid()})
    launcher = SlurmLauncher(load_config(ROOT / "examples" / "slurm" / "two_nodes.yaml"))
    try:
        launcher.run(
            obedient_stage.__name__,
            request,
            folder / REQUEST,
            shape=Ranks(4),
            log=folder / LOG,
            watch=lambda: None,
        )
    except (UserError, StageError, Interrupted) as end:
        sys.exit(f"{type(end).__name__}: {end}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
