r"""The helper process of `math_verify_client`: pairs come in as lines of JSON, verdicts go out as lines.

By hand:

    echo '{"answer": "0.5", "gold": "\\frac12"}' | python -m irpo_megatron.tasks.math_verify_helper
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import TextIO


def serve(questions: TextIO, verdicts: TextIO) -> None:
    """Answer until the questions end. The import is paid before `ready`, so that no deadline has to cover it."""
    math_verify = importlib.import_module("math_verify")
    print("ready", file=verdicts, flush=True)

    def parse(answer: str) -> object:
        formula = answer if "$" in answer else f"${answer}$"  # it looks for LaTeX between dollar signs
        return math_verify.parse(formula, parsing_timeout=None)

    for line in questions:
        question = json.loads(line)
        # The package's own time limits are off: the client holds the deadline. The gold answer goes first: the
        # package lets the other one be `x = 5` where the gold one is `5`, but not the other way round.
        equal = math_verify.verify(parse(question["gold"]), parse(question["answer"]), timeout_seconds=None)
        print("equal" if equal else "unequal", file=verdicts, flush=True)


if __name__ == "__main__":
    verdict_stream = sys.stdout
    sys.stdout = sys.stderr  # nothing that a library prints may pass for a verdict
    serve(sys.stdin, verdict_stream)
