"""The folder: whole or not there, each file as the run made it, nothing else in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from release.released_run import MODEL_FILES, checkpoint_of, commit_checkpoint, make_run, name_model

from irpo_megatron.artifacts import MANIFEST, read_json, write_json
from irpo_megatron.errors import UserError
from irpo_megatron.release import publish
from irpo_megatron.release.release import release


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_release_holds_the_models_files_byte_for_byte_and_its_card(run_dir: Path, tmp_path: Path) -> None:
    outcome = release(run_dir, tmp_path / "out" / "model")
    found = contents(tmp_path / "out" / "model")
    assert found.pop("README.md").startswith(b"---\n")
    assert found == {name: text.encode() for name, text in MODEL_FILES.items()}
    assert (outcome.iteration, outcome.evaluated, len(outcome.files)) == (2, True, len(MODEL_FILES) + 1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


def test_nothing_of_the_machine_or_the_run_gets_out(run_dir: Path, tmp_path: Path) -> None:
    release(run_dir, tmp_path / "model")
    for content in contents(tmp_path / "model").values():
        assert str(tmp_path).encode() not in content
        assert MANIFEST.encode() not in content


def test_the_last_iteration_that_is_converted_and_evaluated_is_taken(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, evaluated=1)
    assert release(run_dir, tmp_path / "by-default").iteration == 1
    chosen = release(run_dir, tmp_path / "chosen", iteration=2)
    assert (chosen.iteration, chosen.evaluated) == (2, False)
    with pytest.raises(UserError, match=r"not converted(.|\n)*converted so far: 1 and 2(.|\n)*--iteration 2"):
        release(run_dir, tmp_path / "none", iteration=3)
    assert not (tmp_path / "none").exists()


def test_a_run_that_is_not_far_enough_says_so(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, evaluated=0)
    with pytest.raises(UserError, match=r"is converted and evaluated(.|\n)*converted so far: 1 and 2"):
        release(run_dir, tmp_path / "model")
    for number in (1, 2):
        shutil.rmtree(checkpoint_of(run_dir, number))
    with pytest.raises(UserError, match=r"converted so far: none(.|\n)*irpo run"):
        release(run_dir, tmp_path / "model")
    with pytest.raises(UserError, match=r"config\.yaml"):
        release(tmp_path, tmp_path / "model")


def test_an_evaluation_of_other_weights_is_refused(run_dir: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkpoint_of(run_dir, 2))
    commit_checkpoint(run_dir, 2, MODEL_FILES | {"model-00001-of-00002.safetensors": "trained anew"})
    with pytest.raises(UserError, match="made from another checkpoint"):
        release(run_dir, tmp_path / "model")


def same_size(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [same_size, cut, Path.unlink])
@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_not_released(
    run_dir: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(checkpoint_of(run_dir, 2) / name)
    with pytest.raises(UserError, match=rf"{name}(.|\n)*manifest says(.|\n)*restore the file"):
        release(run_dir, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert (tmp_path / "model.partial").exists() == (damage is same_size)  # a size is seen before anything is copied


@pytest.mark.parametrize(
    "name", ["../config.json", "pytorch_model.bin", "tokenizer.py", "folder/model.safetensors", "manifest.json"]
)
def test_a_manifest_cannot_bring_in_other_files(run_dir: Path, tmp_path: Path, name: str) -> None:
    manifest = checkpoint_of(run_dir, 2) / MANIFEST
    content = read_json(manifest)
    content["outputs"][name] = content["outputs"]["config.json"]
    write_json(manifest, content)
    name_model(run_dir, 2)
    with pytest.raises(UserError, match=r"names the file"):
        release(run_dir, tmp_path / "model")


@pytest.mark.parametrize("name", ["tokenizer.json", "additional_chat_templates"])
def test_a_link_does_not_bring_in_other_files(run_dir: Path, tmp_path: Path, name: str) -> None:
    path = checkpoint_of(run_dir, 2) / name
    path.symlink_to(path.rename(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=rf"{name}.* is a link to .*elsewhere"):
        release(run_dir, tmp_path / "model")


@pytest.mark.parametrize("place", ["/home/me/models/base", "../models/base", "~/base", "C:\\models"])
def test_a_folder_of_this_machine_is_taken_out(tmp_path: Path, place: str) -> None:
    tokenizer = {"eos_token": "</s>", "name_or_path": place}
    config = json.loads(MODEL_FILES["config.json"]) | {"_name_or_path": "owner/name"}
    files = MODEL_FILES | {"tokenizer_config.json": json.dumps(tokenizer), "config.json": json.dumps(config)}
    release(make_run(tmp_path, files=files), tmp_path / "model")
    assert read_json(tmp_path / "model" / "tokenizer_config.json") == {"eos_token": "</s>"}
    assert (tmp_path / "model" / "config.json").read_text() == files["config.json"]


def test_a_damaged_file_is_not_mended_by_taking_a_folder_out(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, files=MODEL_FILES | {"tokenizer_config.json": '{"name_or_path": "/home/me"}'})
    (checkpoint_of(run_dir, 2) / "tokenizer_config.json").write_text('{"name_or_path": "/home/us"}')
    with pytest.raises(UserError, match="has another sha256"):
        release(run_dir, tmp_path / "model")


def test_the_same_release_again_changes_nothing(run_dir: Path, tmp_path: Path) -> None:
    release(run_dir, tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")}
    release(run_dir, tmp_path / "model")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda out: (out / "notes.txt").write_text("mine"), "also has notes.txt"),
        (lambda out: (out / "additional_chat_templates" / "mine.jinja").write_text(""), "has additional_.*/mine.jinja"),
        (lambda out: (out / "additional_chat_templates" / "mine").mkdir(), "also has additional_chat_templates/mine"),
        (lambda out: (out / "link").symlink_to(out / "config.json"), "also has link"),
        (lambda out: (out / "config.json").write_text("{}"), "its config.json is another"),
        (lambda out: (out / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda out: (shutil.rmtree(out), out.write_text("mine")), "it is no folder"),
        (lambda out: (shutil.rmtree(out), out.mkdir()), "has no additional_chat_templates/tool_use.jinja"),
    ],
)
def test_something_else_is_never_written_over(
    run_dir: Path, tmp_path: Path, change: Callable[[Path], Any], said: str
) -> None:
    out = tmp_path / "model"
    release(run_dir, out)
    change(out)
    with pytest.raises(UserError, match=said):
        release(run_dir, out)


@pytest.mark.parametrize("call", range(1, 2 * (len(MODEL_FILES) + 1) + 2))
def test_stopped_at_any_write_it_goes_on(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Each file is synchronised and put in place; the folder is renamed at the end."""
    out, calls = tmp_path / "model", 0

    def stop(real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise KeyboardInterrupt
            return real(*arguments)

        return called

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace", "rename"):
            patch.setattr(publish.os, name, stop(getattr(os, name)))
        with pytest.raises(KeyboardInterrupt):
            release(run_dir, out)
    assert not out.exists()
    copied: list[str] = []
    release(run_dir, out, told=lambda file: copied.append(file.name))
    assert len(copied) == len(MODEL_FILES) + 1 - (call - 1) // 2  # what was whole is not copied again
    assert set(contents(out)) == {*MODEL_FILES, "README.md"}
    assert not (tmp_path / "model.partial").exists()


def test_killed_it_leaves_nothing_that_looks_whole(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom irpo_megatron.release.release import release\n"
        "kill = lambda file: os.kill(os.getpid(), signal.SIGKILL) if file.name == 'tokenizer.json' else None\n"
        "release(Path(sys.argv[1]), Path(sys.argv[2]), told=kill)\n"
    )
    process = subprocess.run([sys.executable, "-c", script, run_dir, out], timeout=600)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    copied: list[str] = []
    release(run_dir, out, told=lambda file: copied.append(file.name))
    assert "tokenizer.json" not in copied
    assert "tokenizer_config.json" in copied
    assert set(contents(out)) == {*MODEL_FILES, "README.md"}


def test_a_half_that_is_damaged_is_copied_again(run_dir: Path, tmp_path: Path) -> None:
    partial = tmp_path / "model.partial"
    partial.mkdir()
    (partial / "tokenizer.json").write_text("{" + " " * (len(MODEL_FILES["tokenizer.json"]) - 2) + "}")
    (partial / ".config.json.tmp").write_text("{")
    (partial / "additional_chat_templates").mkdir()
    (partial / "additional_chat_templates" / ".tool_use.jinja.tmp").write_text("{")
    release(run_dir, tmp_path / "model")
    assert (tmp_path / "model" / "tokenizer.json").read_text() == MODEL_FILES["tokenizer.json"]
    assert set(contents(tmp_path / "model")) == {*MODEL_FILES, "README.md"}


def test_somebody_elses_partial_folder_is_left_alone(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds thesis\.tex"):
        release(run_dir, tmp_path / "model")
    assert (tmp_path / "model.partial" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["additional_chat_templates", ".config.json.tmp", "config.json"])
def test_nothing_is_written_through_a_link(run_dir: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=rf"holds {name}, which is no file of this release"):
        release(run_dir, tmp_path / "model")
    assert list(elsewhere.iterdir()) == []


def test_a_full_disk_is_told_beforehand(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        UserError, match=r"are to be written to .*model\.partial, and 0\.00 GB are free(.|\n)*free the disk"
    ):
        release(run_dir, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_disk_that_fills_up_is_no_traceback(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish.os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device(.|\n)*the same command goes on"):
        release(run_dir, tmp_path / "model")
    assert not (tmp_path / "model").exists()
