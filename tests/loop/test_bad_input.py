"""What users get wrong: exit 2, one message with value seen, rule and remedy, before anything heavy starts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.tiny_model import make_llama

from irpo_megatron import cli

GSM8K_LINE = {"question": "What is 2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    """A folder with a model, data and a configuration that would run."""
    model = make_llama(tmp_path / "model", max_position_embeddings=1024)
    for name in ("train", "test"):
        lines = [{**GSM8K_LINE, "question": f"what is the sum of {index} {name}"} for index in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "name": "run",
        "runs": str(tmp_path / "runs"),
        "task": "gsm8k",
        "model": {"path": str(model)},
        "data": {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")},
        "generation": {"max_tokens": 32},
        "selection": {"held_out": 4},
        "tracking": {"to": []},
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    return {"folder": tmp_path, "config": path, "model": model}


def _refused(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *overrides: str
) -> str:
    """Run the loop, which must refuse; its message."""
    monkeypatch.setattr("sys.argv", ["irpo", "run", str(setting["config"]), *overrides])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    message = capsys.readouterr().err
    assert exit_.value.code == 2, message
    assert message.count("  rule:   ") == message.count("  remedy: ") == 1, message
    assert "Traceback" not in message
    assert not list(setting["folder"].glob("runs/run/iteration-*")), "nothing heavy has started"
    return message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("nonsense.key=1", "unknown key nonsense"),
        ("loss.gamma=1", "unknown key loss.gamma"),
        ("generation.samples=0", "generation.samples = 0"),
        ("loss.alpha=0 method=star", "leaves nothing to train"),
        ("data.train=nowhere.jsonl", "nowhere.jsonl"),
        ("model.path=nowhere", "nowhere"),
        ("parallel.tensor=3 training.global_batch_size=15", "parallel.tensor = 3"),
        ("parallel.pipeline=3", "num_hidden_layers = 4, parallel.pipeline = 3"),
        (
            "parallel.pipeline=2 parallel.virtual_pipeline=3",
            "num_hidden_layers = 4, parallel.pipeline = 2, parallel.virtual_pipeline = 3",
        ),
        ("parallel.virtual_pipeline=2", "parallel.virtual_pipeline = 2, parallel.pipeline = 1"),
        ("parallel.sequence=true", "parallel.sequence = true, parallel.tensor = 1"),
        ("parallel.data=3", "parallel.data = 3"),
        ("selection.held_out=20", "held_out"),
        ("tracking.to=[wandb] ", "wandb"),
    ],
)
def test_a_wrong_value_is_refused(
    override: str,
    said: str,
    setting: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said in _refused(setting, monkeypatch, capsys, *override.split())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "broken', "train.jsonl:3"),
        (json.dumps({"question": "no gold", "answer": "I do not know"}), "train.jsonl:3"),
        (json.dumps({"question": "no answer"}), "train.jsonl:3"),
    ],
)
def test_a_broken_line_is_named_by_its_number(
    line: str,
    said: str,
    setting: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = setting["folder"] / "train.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + "\n")
    assert said in _refused(setting, monkeypatch, capsys)


def test_a_model_without_an_end_token(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "generation_config.json"):
        path = setting["model"] / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None}))
    (setting["model"] / "tokenizer_config.json").write_text("{}")
    assert "end-of-sequence token" in _refused(setting, monkeypatch, capsys)


def test_a_prompt_longer_than_the_context(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = setting["folder"] / "test.jsonl"
    path.write_text(path.read_text() + json.dumps({**GSM8K_LINE, "question": "why " * 400}) + "\n")
    message = _refused(setting, monkeypatch, capsys)
    assert "test-000020" in message
    assert "1024" in message


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_model_with_damaged_weights(
    damage: str, setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = setting["model"] / "model.safetensors"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100])
    assert "safetensors" in _refused(setting, monkeypatch, capsys)


def test_a_place_that_cannot_be_written(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (setting["folder"] / "occupied").write_text("a file, not a folder")
    message = _refused(setting, monkeypatch, capsys, f"runs={setting['folder'] / 'occupied'}")
    assert "cannot write to" in message


def test_a_run_directory_of_another_configuration(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _refused(setting, monkeypatch, capsys, "parallel.pipeline=3")  # leaves a run directory and its configuration
    message = _refused(setting, monkeypatch, capsys, "loss.beta=0.5")
    assert "was made by another configuration" in message
    assert "loss.beta was 0.1, is 0.5" in message
    # What cannot change a result may change: this one gets as far as the other mistake.
    assert "num_hidden_layers" in _refused(
        setting, monkeypatch, capsys, "parallel.pipeline=3", "iterations=2", "generation.batch_size=7"
    )


def test_two_drivers_never_share_a_run_directory(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    monkeypatch.setattr("irpo_megatron.run_directory._LOCK_SECONDS", 0.2)
    folder = setting["folder"] / "runs" / "run"
    folder.mkdir(parents=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        assert "another process is working" in _refused(setting, monkeypatch, capsys)
    finally:
        os.close(lock)


@pytest.mark.parametrize(
    ("stage", "iteration", "said"),
    [
        ("generate", "0", "irpo generate --iteration 0"),
        ("train", "5", "irpo train --iteration 5"),
        ("evaluate", "5", "irpo evaluate --iteration 5"),
        ("quantise", "0", "generation.tensorrt_llm.fp8_weights = null"),
    ],
)
def test_a_stage_that_the_run_does_not_have(
    stage: str,
    iteration: str,
    said: str,
    setting: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["irpo", stage, str(setting["config"]), "--iteration", iteration])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
    assert not (setting["folder"] / "runs").exists()


def test_weights_that_changed_are_noticed_whatever_a_manifest_beside_them_says(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from irpo_megatron.config_file import load_config
    from irpo_megatron.console import Console
    from irpo_megatron.run_directory import open_run

    (setting["model"] / "manifest.json").write_text('{"stage": "convert"}')
    with open_run(load_config(setting["config"]), Console(), redo=False) as run:
        before = run.digest(setting["model"])
        weights = setting["model"] / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        assert run.digest(setting["model"]) != before


def test_ctrl_c_says_how_to_go_on(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    monkeypatch.setattr("sys.argv", ["irpo", "run", str(setting["config"])])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err


def test_data_that_changed_under_a_run_are_noticed(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _refused(setting, monkeypatch, capsys, "parallel.pipeline=3")
    path = setting["folder"] / "train.jsonl"
    path.write_text(path.read_text().replace("#### 4", "#### 5"))
    assert "inputs.train_data was" in _refused(setting, monkeypatch, capsys, "parallel.pipeline=3")
