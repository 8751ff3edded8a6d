"""Which iteration of a run is released."""

from __future__ import annotations

from irpo_megatron.artifacts import manifest_digest, read_manifest
from irpo_megatron.errors import UserError
from irpo_megatron.report.run_files import Iteration, Run
from irpo_megatron.report.wording import listing

CHECKPOINT = "checkpoint-hf"
EVALUATION = "evaluation"


def choose(run: Run, number: int | None) -> Iteration:
    """The iteration of that number, or the last one that is both converted and evaluated.

    Raises:
        UserError: it is not converted, or its evaluation is one of other weights; where none is named, none is both.
    """
    converted = [iteration for iteration in run.iterations if iteration.number > 0 and iteration.committed(CHECKPOINT)]
    if number is None:
        suitable = [iteration for iteration in converted if iteration.evaluation is not None]
        seen = f"no iteration of {run.directory} is converted and evaluated"
    else:
        suitable = [iteration for iteration in converted if iteration.number == number]
        seen = f"iteration {number} of {run.directory} is not converted"
    if not suitable:
        numbers = [str(iteration.number) for iteration in converted]
        raise UserError(
            seen,
            f"a release is made of an iteration's {CHECKPOINT}/; converted so far: {listing(numbers or ['none'])}",
            f"choose with --iteration {numbers[-1]}" if numbers else "let `irpo run` finish an iteration",
        )
    _require_same_weights(suitable[-1])
    return suitable[-1]


def _require_same_weights(iteration: Iteration) -> None:
    """An evaluation that is left from earlier weights must not stand in the card of others."""
    evaluation = iteration.committed(EVALUATION)
    if evaluation is None:
        return
    measured = read_manifest(evaluation)["inputs"].get("model_folder")
    if measured != manifest_digest(iteration.directory / CHECKPOINT):
        raise UserError(
            f"{evaluation} was made from another checkpoint than {iteration.directory / CHECKPOINT}",
            "the card gives the accuracy of the weights beside it",
            "evaluate these: start the run again with --redo",
        )
