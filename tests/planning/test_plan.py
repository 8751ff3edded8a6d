"""`irpo plan`: the paper's run, the demo's, what a run directory says, the overlay, mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from planning.engine_counts import config_of, pairs_of

from irpo_megatron.artifacts import write_json
from irpo_megatron.cli import main
from irpo_megatron.config_file import load_config
from irpo_megatron.planning.hardware import DEVICES
from irpo_megatron.planning.model import find_model
from irpo_megatron.planning.plan import Plan, make_plan
from irpo_megatron.planning.workload import Given, workload_of
from irpo_megatron.records import Pair, write_rows

PAPER = """
name: paper
task: gsm8k
iterations: 4
model: {path: models/Llama-2-70b-chat-hf}
data: {train: train.jsonl, test: test.jsonl}
generation:
  backend: tensorrt_llm
  samples: 30
  tensorrt_llm: {tensor_parallel: 8}
pairs: {per_prompt: 10, gold_as_winner: true, max_pairs: 60000}
training: {global_batch_size: 16, max_steps: 5000}
precision: {dtype: bf16}
parallel: {tensor: 8, sequence: true, pipeline: 2, data: 4}
"""


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    path = tmp_path / "paper.yaml"
    path.write_text(PAPER, encoding="utf-8")
    return path


def plan(path: Path, devices: int | None = None, overrides: tuple[str, ...] = ()) -> Plan:
    config = load_config(path, overrides)
    return make_plan(config, find_model(config, None), DEVICES["h100-80gb"], devices, Given())


def command(*arguments: str | Path) -> int:
    try:
        main(["plan", *map(str, arguments)])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_papers_run_is_planned_as_it_is_known(paper: Path) -> None:
    made = plan(paper)
    assert made.model.shape.parameters == 68_976_648_192
    assert made.devices == 64
    stages = {stage.name: stage for stage in made.stages}
    # 55 to 60 thousand pairs, about 56 million tokens an iteration; 6,473 problems are sampled from.
    assert 55_000 <= made.work.pairs <= 60_000
    assert stages["generate"].flops == pytest.approx(6_473 * 30 * 250 * 2 * 68.98e9, rel=1e-3)
    assert made.work.steps == 3_642
    # bf16 weights and fp32 gradients on 16 ranks, fp32 weights and moments on all 64.
    of_all_ranks = 64 * (made.layout.memory.weights + made.layout.memory.gradients + made.layout.memory.optimizer)
    replicas = 4
    assert of_all_ranks == pytest.approx(68.98e9 * (replicas * 6 + 12), rel=0.01)
    # Sixteen pairs are too few for 64 GPUs: most of a step does not shrink with them.
    assert made.layout.step.compute / made.layout.step.total < 0.5
    assert made.layout.step.fixed / made.layout.step.total > 0.5
    assert made.found.fitting[0].step.total < made.layout.step.total


def test_model_flops_are_six_for_each_parameter_and_token(paper: Path) -> None:
    """Next to attention and padding; the output matrix sees completion tokens only, the embedding costs nothing."""
    made = plan(paper)
    (train,) = (stage for stage in made.stages if stage.name == "train")
    tokens = made.work.steps * 16 * 2 * (120 + 249)
    assert train.flops is not None
    assert 0.97 < train.flops / (6 * 68.98e9 * tokens) < 1.06


def test_fp8_copies_are_a_stage_and_slow_the_selection(paper: Path) -> None:
    engine = ("generation.backend=tensorrt_llm", "generation.tensorrt_llm.tensor_parallel=8")
    plain = plan(paper, overrides=engine)
    without = {stage.name: stage for stage in plain.stages}
    made = plan(paper, overrides=(*engine, "generation.tensorrt_llm.fp8_weights.calibration_prompts=100"))
    stages = {stage.name: stage for stage in made.stages}
    assert list(stages).index("quantise") == list(stages).index("evaluate") - 1
    assert set(stages) - set(without) == {"quantise"}
    copy = stages["quantise"]
    assert copy.disk == pytest.approx(68.98e9, rel=0.01)  # the embeddings are in bf16
    assert copy.memory == pytest.approx(2 * 68.98e9 / 8, rel=1e-3)
    assert copy.flops == pytest.approx(2 * 68.98e9 * 100 * (120 + 250), rel=1e-3)
    assert copy.seconds == pytest.approx(copy.flops / (989.5e12 * 0.7) + (3 * 68.98e9) / 1e9, rel=0.01)
    judged_tokens = 4 * 1000 * 250
    before = without["select"].seconds - plain.engine.seconds(judged_tokens)
    after = stages["select"].seconds - made.engine.seconds(judged_tokens)
    assert after == pytest.approx(before + 4 * copy.seconds)
    assert stages["evaluate"].memory < without["evaluate"].memory


def test_without_a_number_of_devices_the_configurations_own_layout_is_planned(paper: Path) -> None:
    assert plan(paper).layout.config.parallel.data == 4
    best = plan(paper, devices=32)
    assert best.layout is best.found.fitting[0]
    assert best.layout.config.parallel.world_size == 32


def test_the_command_prints_a_plan_without_torch(paper: Path) -> None:
    code = (
        "import sys\nfrom irpo_megatron.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\nsys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", str(paper), "--price", "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "llama2-70b on 64 x h100-80gb, its own layout" in done.stdout
    assert "no folder models/Llama-2-70b-chat-hf here; by its name the shape of llama2-70b" in done.stdout
    assert "at 2 an hour" in done.stdout


def test_the_overlay_is_a_configuration_with_the_best_layout(paper: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlays" / "best.yaml"
    overlay.parent.mkdir()
    assert command(paper, "seed=3", "--gpus", "32", "--emit", overlay) == 0
    config, best = load_config(overlay), plan(paper, devices=32, overrides=("seed=3",)).layout
    assert config.parallel == best.config.parallel
    assert config.training == best.config.training
    assert config.seed == 3
    assert command(paper, "--emit", overlay) == 2  # a plan replaces no file


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (["--gpu", "tpu"], "--gpu tpu"),
        (["--gpus", "7"], "--gpus 7"),
        (["--gpus", "1"], "1 x h100-80gb: the smallest layout needs"),
        (["--model", "gpt-5"], "--model gpt-5"),
        (["model.path=models/unheard-of"], "no folder models/unheard-of, and its name is none of a known shape"),
        (["parallel.tensor=16"], "num_key_value_heads = 8, parallel.tensor = 16"),
        (["parallel.data=3"], "training.global_batch_size = 16"),
        (["precision.dtype=int8"], "precision.dtype"),
        (["--gpu", "a100-80gb", "precision.fp8.recipe=tensorwise"], "a100-80gb has no matrix products in fp8"),
    ],
)
def test_a_mistake_is_three_lines_and_exit_code_2(
    paper: Path, arguments: list[str], seen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(paper, *arguments) == 2
    errors = capsys.readouterr().err
    assert seen in errors
    assert "rule:" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("example", ["arithmetic_cpu.yaml", "gsm8k_cpu.yaml"])
def test_examples_can_be_planned(example: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "examples" / example
    assert command(path, "--gpu", "cpu", f"runs={tmp_path}") == 0
    assert "2 x cpu, its own layout" in capsys.readouterr().out


def test_a_run_directory_knows_better(tmp_path: Path) -> None:
    config = config_of().model_copy(update={"runs": tmp_path})
    expected = workload_of(config, Given())
    assert (expected.lengths.prompt, expected.lengths.completion) == (120, 250)
    directory = config.run_dir / "iteration-01" / "pairs"
    directory.mkdir(parents=True)
    write_rows(directory / "pairs.parquet", pairs_of([(40, 60, 80)] * 7), Pair)
    assert workload_of(config, Given()).pairs == expected.pairs  # not committed
    write_json(directory / "manifest.json", {})
    measured = workload_of(config, Given())
    assert measured.pairs == 7
    assert f"pairs: 7, as in {config.run_dir}" in measured.sources
    assert workload_of(config, Given(pairs=9)).pairs == 9


def test_options_say_what_is_expected() -> None:
    given: dict[str, Any] = {"problems": 2000, "test_problems": 10, "prompt_tokens": 50, "completion_tokens": 80}
    work = workload_of(config_of(), Given(**given))
    assert (work.problems, work.held_out, work.test_problems) == (1000, 1000, 10)
    assert (work.lengths.prompt, work.lengths.completion) == (50, 80)
    assert work.pairs == 9_000  # ten of each problem, nine in ten of which have both a winner and a loser
