"""The end of sampling N completions a prompt from M_{t-1} (paper, section 2): the workers have left their shards.

    python -m irpo_megatron.process irpo_megatron.generation.stage REQUEST.json

Needs no engine.
"""

from __future__ import annotations

from irpo_megatron.artifacts import write_json
from irpo_megatron.generation.guard import ShardGuard
from irpo_megatron.requests import GenerateRequest
from irpo_megatron.tasks import load_task


def run(request: GenerateRequest) -> None:
    """Check the shares of useless samples among all, and write them to `guard.json`.

    Raises:
        UserError: a share is above its limit.
    """
    guard = ShardGuard(request.output, request.generation, load_task(request.task))
    names = sorted(path.stem for path in request.output.glob("generations-*.parquet"))
    write_json(request.output / "guard.json", guard.check(names))
