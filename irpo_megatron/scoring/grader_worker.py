"""The process in which completions are graded: a completion and a gold answer come in, a judgement goes out.

By hand:

    echo '{"completion": "Final answer: 18", "gold": "18"}' | \\
        python -m irpo_megatron.scoring.grader_worker '{}' gsm8k exact
"""

from __future__ import annotations

from irpo_megatron.artifacts import Json
from irpo_megatron.tasks import load_task
from irpo_megatron.tasks.helper_loop import Reply, main
from irpo_megatron.tasks.limits import Limits, limit_memory


def prepare(limits: Limits, arguments: list[str]) -> Reply:
    """Load the task that the command line names, with its grading."""
    name, grading = arguments
    task = load_task(name, grading=grading)
    # A grading that cannot start a helper of its own must say so now: later it would leave each sample ungraded.
    task.verdict("1", "2")
    limit_memory(limits.memory_mib)

    def reply(question: Json) -> Json:
        judgement = task.judge(question["completion"], question["gold"])
        return {"answer": judgement.answer, "verdict": judgement.verdict.value}

    return reply


if __name__ == "__main__":
    main(prepare)
