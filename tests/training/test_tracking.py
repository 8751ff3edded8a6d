"""The trackers, each on its real package where that is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from support.stages import train_request

from irpo_megatron.errors import UserError
from irpo_megatron.training.tracking import open_tracker


def _request(tmp_path: Path) -> Any:
    return train_request(
        tmp_path / "out", pairs=tmp_path, checkpoint=tmp_path, reference=None, run_dir=tmp_path / "my-run"
    )


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_tracker_that_is_not_installed_is_named(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as caught:
        open_tracker(name, _request(tmp_path), done=0)
    assert f"tracking.to names {name}" in caught.value.seen
    assert f"pip install {name}" in caught.value.remedy


def test_wandb_offline_records_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "my-run").mkdir()
    tracker = open_tracker("wandb", _request(tmp_path), done=0)
    tracker.log({"loss": 0.5}, 1)
    tracker.close()
    assert list((tmp_path / "my-run" / "wandb").glob("offline-run-*/*.wandb"))


def test_mlflow_records_the_metrics_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    tracker = open_tracker("mlflow", _request(tmp_path), done=0)
    tracker.log({"loss": 0.5}, 1)
    tracker.log({"loss": 0.25}, 2)
    tracker.close()
    (run,) = mlflow.search_runs(output_format="list", search_all_experiments=True)
    assert run.info.run_name == "my-run-iteration-01"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.25)]
