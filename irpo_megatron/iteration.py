"""The loop: Iterative Reasoning Preference Optimization on one page (section 2 of the paper).

    M_0 is given. For t = 1 ... T:
      sample N completions a prompt from M_{t-1}, score their final answers, build K winner/loser pairs a prompt,
      compute the pairs' log-probs under M_{t-1}, which is the reference, train M_t from M_{t-1} with DPO + alpha x NLL,
      choose its checkpoint on held-out problems, convert it, measure it on the test problems.

Every line of `run_loop` is a stage: a directory that appears when it is complete and is skipped the next time. Stages
meet in these directories and nowhere else; each runs in processes of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from irpo_megatron.artifacts import PROGRESS, is_pruned, prune, read_json, read_manifest, step_name, step_of, write_json
from irpo_megatron.config import Config
from irpo_megatron.config_file import load_config
from irpo_megatron.console import Console
from irpo_megatron.errors import UserError
from irpo_megatron.launch.protocol import Ranks
from irpo_megatron.preflight import check_installation, check_model
from irpo_megatron.requests import (
    BaseModelRequest,
    EvaluateRequest,
    ExportRequest,
    GenerateRequest,
    ImportRequest,
    JudgeRequest,
    PairsRequest,
    ProblemsRequest,
    QuantiseRequest,
    ReferenceRequest,
    ReportRequest,
    Request,
    ScoreRequest,
    TrainRequest,
)
from irpo_megatron.run_directory import RunDirectory, open_run

SELECTION = "selection.json"


def run(config: Config, console: Console, *, redo: bool = False) -> Path:
    """Run the loop from wherever it was left.

    Returns:
        The run directory.

    Raises:
        UserError: before anything heavy starts where that is possible.
        StageError: a stage failed; what was computed before is kept.
    """
    with open_run(config, console, redo=redo) as directory:
        prepare(directory)
        run_loop(directory)
    return directory.path


def run_stage(config: Config, console: Console, *, stage: str, iteration: int, redo: bool = False) -> None:
    """Run one stage alone, from the committed directories of the stages before it.

    Raises:
        UserError: the run has no such iteration or no such stage, or a directory of an earlier stage is missing.
    """
    first = 0 if stage in ("convert", "quantise", "evaluate", "report") else 1
    if not first <= iteration <= config.iterations:
        raise UserError(
            f"irpo {stage} --iteration {iteration}",
            f"this run's iterations with that stage are {first} to {config.iterations}",
            "choose one of them, or raise iterations=",
        )
    if stage == "quantise" and config.generation.fp8_weights is None:
        raise UserError(
            "irpo quantise, and generation.tensorrt_llm.fp8_weights = null",
            "FP8 copies are made for an engine that is to load such",
            "set 'generation.tensorrt_llm.fp8_weights={}', with generation.backend=tensorrt_llm",
        )
    with open_run(config, console, redo=redo) as directory:
        if stage != "report":
            prepare(directory)
        STAGES[stage](directory, iteration)


def run_loop(run: RunDirectory) -> None:
    """The method."""
    method, in_fp8 = run.config.method, run.config.generation.fp8_weights is not None
    convert(run, 0)
    if in_fp8:  # the engine loads a copy of each model
        quantise(run, 0)
    evaluate(run, 0)
    for t in range(1, run.config.iterations + 1):
        if method != "sft":  # sft trains on gold solutions
            generate(run, t)
            score(run, t)
        build_pairs(run, t)
        if method == "irpo":  # the others have no DPO term
            compute_reference(run, t)
        train(run, t)
        select(run, t)
        convert(run, t)
        if in_fp8:
            quantise(run, t)
        evaluate(run, t)
        if run.has_news:
            report(run, t)


def prepare(run: RunDirectory) -> None:
    """The problems and M_0: checked, or made."""
    check_installation(run.config)
    make_problems(run)
    if run.config.model.random is not None:
        run.make(
            "base-model",
            0,
            "irpo_megatron.base_model.stage",
            BaseModelRequest,
            directory=model_folder(run, 0),
            inputs={"problems": problems(run)},
        )
    if run.config.model.recipe is not None:
        _follow_recipe(run)
    check_model(run.config, problems(run), model_folder(run, 0))


def make_problems(run: RunDirectory) -> None:
    """The problems of every split, from wherever they come."""
    data = run.config.data
    sources = {name: Path(source) for name, source in (("train_data", data.train), ("test_data", data.test))}
    files = {name: path for name, path in sources.items() if path.exists()}
    run.make("problems", 0, "irpo_megatron.tasks.stage", ProblemsRequest, directory=problems(run), made_from=files)


def _follow_recipe(run: RunDirectory) -> None:
    """Run the configuration that makes M_0, in a run directory of its own that other runs may share."""
    with open_run(recipe_of(run.config), run.console, redo=run.redo, patient=True) as recipe:
        run.console.say(f"base model: {recipe.path}")
        prepare(recipe)
        run_loop(recipe)
    run.console.say(f"run: {run.path}")


def generate(run: RunDirectory, t: int) -> None:
    """Sample N completions a prompt from M_{t-1}."""
    inputs = {"problems": problems(run), "model_folder": engine_folder(run, t - 1)}
    run.make("generate", t, "irpo_megatron.generation.stage", GenerateRequest, inputs=inputs)


def score(run: RunDirectory, t: int) -> None:
    """Compare every sample's final answer with the gold one."""
    inputs = {"problems": problems(run), "generations": run.stage_directory("generate", t)}
    run.make("score", t, "irpo_megatron.scoring.stage", ScoreRequest, inputs=inputs)


def build_pairs(run: RunDirectory, t: int) -> None:
    """K winner/loser pairs a prompt."""
    samples = run.config.method != "sft"
    inputs = {
        "problems": problems(run),
        "generations": run.stage_directory("generate", t) if samples else None,
        "scores": run.stage_directory("score", t) if samples else None,
        "model_folder": model_folder(run, t - 1),
    }
    run.make("pairs", t, "irpo_megatron.pairs.stage", PairsRequest, inputs=inputs)


def compute_reference(run: RunDirectory, t: int) -> None:
    """log-probs of the pairs under M_{t-1}."""
    inputs = {"pair_rows": run.stage_directory("pairs", t), "checkpoint": megatron_checkpoint(run, t - 1)}
    run.make(
        "reference",
        t,
        "irpo_megatron.training.reference",
        ReferenceRequest,
        inputs=inputs,
        shape=Ranks(run.config.parallel.world_size),
    )


def train(run: RunDirectory, t: int) -> None:
    """M_t from M_{t-1}; its candidate checkpoints are for `select` to choose among."""
    run.make(
        "train",
        t,
        "irpo_megatron.training.stage",
        TrainRequest,
        inputs=_training_inputs(run, t),
        options={"run_dir": run.path},
        shape=Ranks(run.config.parallel.world_size),
    )


def _training_inputs(run: RunDirectory, t: int) -> dict[str, Path | None]:
    return {
        "pair_rows": run.stage_directory("pairs", t),
        "reference": run.stage_directory("reference", t) if run.config.method == "irpo" else None,
        "checkpoint": megatron_checkpoint(run, t - 1),
    }


def select(run: RunDirectory, t: int) -> None:
    """Judge the candidates on held-out problems; where asked for, train again with those problems included."""
    training = run.stage_directory("train", t)
    made_from = {"training": training, "problems": problems(run), "model": model_folder(run, 0)}
    reads: list[type[Request]] = [TrainRequest, JudgeRequest]
    with run.stage("select", t, run.stage_directory("select", t), reads=reads, inputs=made_from) as work:
        if work is not None:
            _choose(run, t, _candidates(training), work)
    _drop_candidates(run, t)


def _candidates(training: Path) -> list[Path]:
    if is_pruned(training):
        raise UserError(
            f"{training} has lost candidates to an earlier choice among them",
            "a choice is made among all candidates; selection.keep_last removes those that were not chosen",
            f"delete {training} so that it is computed again",
        )
    return sorted((training / "checkpoints").iterdir())


def _choose(run: RunDirectory, t: int, candidates: list[Path], work: Path) -> None:
    """Write `selection.json` and, where asked for, `retrained/`."""
    if not (work / SELECTION).is_file():
        _judge(run, t, candidates, work)
    shutil.rmtree(work / "candidates", ignore_errors=True)
    if run.config.selection.retrain:
        request = TrainRequest(
            output=work / "retrained",
            iteration=t,
            run_dir=run.path,
            retrain_steps=read_json(work / SELECTION)["step"],
            **_training_inputs(run, t),
            **TrainRequest.config_values(run.config),
        )
        (work / "retrained").mkdir(exist_ok=True)
        run.process("retrain", "irpo_megatron.training.stage", request, shape=Ranks(run.config.parallel.world_size))
        (work / "retrained" / PROGRESS).unlink(missing_ok=True)


def _drop_candidates(run: RunDirectory, t: int) -> None:
    """Once one is chosen, the others go, but for the last few that are to be kept."""
    keep = run.config.selection.keep_last
    if keep is None:
        return
    chosen, training = megatron_checkpoint(run, t), run.stage_directory("train", t)
    others = [path for path in sorted((training / "checkpoints").iterdir()) if path != chosen]
    prune(training, [str(path.relative_to(training)) for path in others[: max(0, len(others) - keep)]])


def _judge(run: RunDirectory, t: int, checkpoints: list[Path], work: Path) -> None:
    """Write `selection.json`; a single candidate needs no judge."""
    if len(checkpoints) == 1:
        write_json(work / SELECTION, {"step": step_of(checkpoints[0].name), "candidates": []})
        return
    folder = work / "candidates"
    folder.mkdir(exist_ok=True)
    _export(run, t, "select-convert", folder, {path.name: path for path in checkpoints})
    candidates = {path.name: folder / path.name for path in checkpoints}
    if run.config.generation.fp8_weights is not None:
        _quantise(run, t, "select-quantise", folder / "fp8", candidates)
        candidates = {name: folder / "fp8" / name for name in candidates}
    request = JudgeRequest(
        output=work,
        iteration=t,
        problems=problems(run),
        candidates=candidates,
        **JudgeRequest.config_values(run.config),
    )
    run.process("select", "irpo_megatron.evaluation.judge", request)


def convert(run: RunDirectory, t: int) -> None:
    """M_0 from Hugging Face to Megatron; every later M_t from Megatron to Hugging Face."""
    if t == 0:
        inputs = {"model_folder": model_folder(run, 0)}
        run.make("convert", 0, "irpo_megatron.conversion.import_stage", ImportRequest, inputs=inputs)
        return
    made_from = {"selection": run.stage_directory("select", t), "training": run.stage_directory("train", t)}
    directory = run.stage_directory("convert", t)
    with run.stage("convert", t, directory, reads=[ExportRequest], inputs=made_from) as work:
        if work is not None:
            _export(run, t, "convert", work, {".": megatron_checkpoint(run, t)})


def _export(run: RunDirectory, t: int, name: str, output: Path, checkpoints: dict[str, Path]) -> None:
    request = ExportRequest(
        output=output,
        iteration=t,
        checkpoints=checkpoints,
        model_folder=model_folder(run, 0),
        **ExportRequest.config_values(run.config),
    )
    run.process(name, "irpo_megatron.conversion.export_stage", request)


def quantise(run: RunDirectory, t: int) -> None:
    """An FP8 copy of M_t, for the engine to load where generation.tensorrt_llm.fp8_weights is given."""
    folder, directory = model_folder(run, t), run.stage_directory("quantise", t)
    made_from = {"problems": problems(run), "model_folder": folder}
    with run.stage("quantise", t, directory, reads=[QuantiseRequest], inputs=made_from) as work:
        if work is not None:
            _quantise(run, t, "quantise", work, {".": folder})


def _quantise(run: RunDirectory, t: int, name: str, output: Path, models: dict[str, Path]) -> None:
    request = QuantiseRequest(
        output=output,
        iteration=t,
        problems=problems(run),
        models=models,
        **QuantiseRequest.config_values(run.config),
    )
    run.process(name, "irpo_megatron.generation.quantisation", request)


def evaluate(run: RunDirectory, t: int) -> None:
    """Accuracy, maj@k and pass@k of M_t on the test problems."""
    inputs = {"problems": problems(run), "model_folder": engine_folder(run, t)}
    run.make("evaluate", t, "irpo_megatron.evaluation.stage", EvaluateRequest, inputs=inputs)


def report(run: RunDirectory, t: int) -> None:
    """results.json, metrics.jsonl and report.html, from whatever is there: made anew each time."""
    run.process("report", "irpo_megatron.report.stage", ReportRequest(output=run.path, iteration=t))
    run.has_news = False


STAGES: dict[str, Callable[[RunDirectory, int], None]] = {
    "generate": generate,
    "score": score,
    "pairs": build_pairs,
    "reference": compute_reference,
    "train": train,
    "select": select,
    "convert": convert,
    "quantise": quantise,
    "evaluate": evaluate,
    "report": report,
}


def problems(run: RunDirectory) -> Path:
    """The problems of every split."""
    return run.path / "problems"


def model_folder(run: RunDirectory, t: int) -> Path:
    """M_t as a Hugging Face folder."""
    if t > 0:
        return run.stage_directory("convert", t)
    model = run.config.model
    if model.random is not None:
        return run.path / "base-model"
    if model.recipe is not None:
        recipe = recipe_of(run.config)
        return recipe.run_dir / f"iteration-{recipe.iterations:02d}" / "checkpoint-hf"
    assert model.path is not None
    return model.path


def engine_folder(run: RunDirectory, t: int) -> Path:
    """M_t as the engine loads it: its Hugging Face folder, or the FP8 copy of that."""
    in_fp8 = run.config.generation.fp8_weights is not None
    return run.stage_directory("quantise", t) if in_fp8 else model_folder(run, t)


def megatron_checkpoint(run: RunDirectory, t: int) -> Path:
    """M_t as a Megatron checkpoint: the selected one."""
    if t == 0:
        return run.stage_directory("convert", 0) / step_name(0)
    selection = run.stage_directory("select", t)
    read_manifest(selection)  # which says so where it is not committed
    name = step_name(read_json(selection / SELECTION)["step"])
    origin = selection / "retrained" if run.config.selection.retrain else run.stage_directory("train", t)
    return origin / "checkpoints" / name


def recipe_of(config: Config) -> Config:
    """The configuration that makes M_0, in a run directory beside this one.

    Data, seed and where processes run default to this run's.
    """
    assert config.model.recipe is not None
    defaults = {
        "data": {"train": config.data.train, "test": config.data.test},
        "seed": config.seed,
        "launch": config.launch.model_dump(mode="json", include={"launcher", "slurm"}),
    }
    return load_config(config.model.recipe, defaults=defaults).model_copy(update={"runs": config.runs})
