r"""The helper process of `math_verify_client`: two answers come in, whether they are equal goes out.

By hand:

    echo '{"answer": "0.5", "gold": "\\frac12"}' | python -m irpo_megatron.tasks.math_verify_helper '{}'
"""

from __future__ import annotations

import importlib
from typing import Any

from irpo_megatron.artifacts import Json
from irpo_megatron.tasks.helper_loop import Reply, main
from irpo_megatron.tasks.limits import Limits, limit_memory, peak_mib, stay_inside


def prepare(limits: Limits, _arguments: list[str]) -> Reply:
    """Import the package, then confine the process."""
    math_verify = importlib.import_module("math_verify")
    _equal(math_verify, "0.5", r"\frac12", strict=True)  # what is imported when first used is imported now
    limit_memory(limits.memory_mib)
    most = peak_mib() + limits.memory_mib / 2
    stay_inside()

    def reply(question: Json) -> Json:
        verdict = compare(math_verify, question["answer"], question["gold"])
        # sympy catches a `MemoryError` here and there and goes on; its verdict is worth nothing then.
        if peak_mib() > most:
            raise MemoryError(f"{peak_mib():.0f} MiB")
        return {"equal": verdict}

    return reply


def compare(math_verify: Any, answer: str, gold: str) -> bool | None:
    """Whether they are equal; None where the package failed and, told to overlook that, finds nothing equal."""
    try:
        return _equal(math_verify, answer, gold, strict=True)
    except Exception:  # of a hostile answer any exception may come, out of any depth of sympy
        return _equal(math_verify, answer, gold, strict=False) or None


def _equal(math_verify: Any, answer: str, gold: str, *, strict: bool) -> bool:
    # The package's own time limits rest on `signal.alarm`, which does not reach into long integer arithmetic; they are
    # off. The gold answer goes first: the package lets the other one be `x = 5` where the gold one is `5`, but not the
    # other way round.
    parsed = [
        # It looks for LaTeX between dollar signs.
        math_verify.parse(text if "$" in text else f"${text}$", parsing_timeout=None, raise_on_error=strict)
        for text in (gold, answer)
    ]
    return bool(math_verify.verify(*parsed, timeout_seconds=None, raise_on_error=strict))


if __name__ == "__main__":
    main(prepare)
