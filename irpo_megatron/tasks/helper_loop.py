"""The program of a `HelperProcess`: questions come in as lines of JSON, replies go out as lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TextIO

from irpo_megatron.artifacts import Json
from irpo_megatron.tasks.limits import Limits, cpu_time

Reply = Callable[[Json], Json]


def main(prepare: Callable[[Limits, list[str]], Reply]) -> None:
    """Serve on the standard streams. `prepare` gets the command line, and pays for imports before `ready` is said, so
    that no deadline has to cover them.
    """
    replies = sys.stdout
    sys.stdout = sys.stderr  # nothing that a library prints may pass for a reply
    limits = Limits(**json.loads(sys.argv[1]))
    serve(prepare(limits, sys.argv[2:]), limits, sys.stdin, replies)


def serve(reply: Reply, limits: Limits, questions: TextIO, replies: TextIO) -> None:
    """Answer until the questions end. Whatever goes wrong ends the process, which the other side takes for no reply."""
    print("ready", file=replies, flush=True)
    for line in questions:
        with cpu_time(limits.cpu_seconds):
            answer = reply(json.loads(line))
        print(json.dumps(answer), file=replies, flush=True)
