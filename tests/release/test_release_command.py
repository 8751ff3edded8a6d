"""`irpo release` as users run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from release.released_run import make_base, make_run

from irpo_megatron import cli_release
from irpo_megatron.cli import main


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["release", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_it_says_where_the_folder_is_and_what_to_do_next(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_release, "_LARGE_BYTES", 10_000)
    assert command(run_dir, tmp_path / "model") == 0
    output = capsys.readouterr().out
    assert f"{tmp_path / 'model'}: M_2 in 10 files" in output
    assert "model-00001-of-00002.safetensors: 0.0 GB" in output
    assert "none inherited" in output
    assert "not evaluated" not in output
    assert re.search(r"next: read README\.md, then upload .*hf upload OWNER/NAME", output)


def test_it_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path, evaluated=1, model={"path": str(make_base(tmp_path / "base"))})
    assert command(run_dir, "--iteration", "2", tmp_path / "model") == 0
    output = capsys.readouterr().out
    assert "licence: NOT KNOWN" in output
    assert "not evaluated: the card says so" in output


def test_a_licence_that_goes_along_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_base(tmp_path / "base", licence="mit", LICENSE="MIT License")
    assert command(make_run(tmp_path, model={"path": str(base)}), tmp_path / "model") == 0
    assert "licence: MIT License of the base model, which goes along" in capsys.readouterr().out


def test_a_mistake_is_three_lines_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, tmp_path / "model") == 2
    assert "Traceback" not in (errors := capsys.readouterr().err)
    assert "config.yaml" in errors
    assert "remedy:" in errors
