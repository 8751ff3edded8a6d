"""A private cluster of two virtual nodes on this machine, to try Slurm on: docs/slurm.md.

.venv/bin/python tools/virtual_slurm.py start cluster
.venv/bin/python tools/virtual_slurm.py stop cluster
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.slurm_cluster import ClusterError, VirtualCluster


def main(action: str, folder: str) -> None:
    cluster = VirtualCluster(Path(folder))
    try:
        if action == "start":
            cluster.start()
            print(f"export SLURM_CONF={cluster.configuration}")
        else:
            cluster.stop()
    except ClusterError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("start", "stop"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
