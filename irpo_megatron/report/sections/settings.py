"""How the run was made: its environment, flattened to a table (its configuration goes into the page as it stands)."""

from __future__ import annotations

import json

from irpo_megatron.artifacts import flatten
from irpo_megatron.report.run_files import Run
from irpo_megatron.report.view import Table


def environment_table(run: Run) -> Table | None:
    """What environment.json says, a row a key; None where there is no such file."""
    if not run.environment:
        return None
    rows = tuple(
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in flatten(run.environment).items()
    )
    return Table(caption="environment.json", columns=("Key", "Value"), rows=rows, numeric=False)
