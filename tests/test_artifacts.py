"""A stage's directory appears whole or not at all, whenever its process is killed, and knows what it was made from."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irpo_megatron import artifacts
from irpo_megatron.artifacts import (
    Plan,
    Progress,
    ProgressWriter,
    commit_stage,
    create_json,
    file_digest,
    flatten,
    is_pruned,
    json_digest,
    manifest_digest,
    open_stage,
    partial_directory,
    prune,
    publish,
    read_json,
    read_manifest,
    read_progress,
    seconds_so_far,
    stage_clock,
    write_json,
)
from irpo_megatron.errors import UserError

PLAN = Plan(stage="score", config={"seed": 0, "loss.alpha": 1.0}, inputs={"problems": "aa" * 32})
OTHER = replace(PLAN, config={"seed": 1, "loss.alpha": 1.0})
SCAFFOLDING = {"manifest.json", "plan.json", "progress.json", "seconds.json"}


def work_in(partial: Path, text: str) -> None:
    """A stage of two shards, that goes on from the shards that it finds."""
    progress = ProgressWriter(partial, total=2, unit="shards")
    (partial / "sub").mkdir(exist_ok=True)
    for shard in (partial / "a.json", partial / "sub" / "b.json"):
        if not shard.exists():
            write_json(shard, {"text": text})
        progress.advance(1)


def make(directory: Path, plan: Plan, *, redo: bool = False) -> bool:
    """Whether there was anything to do."""
    partial = open_stage(directory, plan, redo=redo)
    if partial is None:
        return False
    work_in(partial, str(plan.config["seed"]))
    commit_stage(directory)
    return True


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def assert_whole(directory: Path, plan: Plan) -> None:
    """`directory` is committed from `plan`: every file is there, and the manifest says the truth about it."""
    content = json.dumps({"text": str(plan.config["seed"])}, indent=1).encode() + b"\n"
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = json.loads((directory / "manifest.json").read_bytes())
    assert manifest.pop("seconds") >= 0
    assert manifest == {
        "stage": "score",
        "config": plan.config,
        "inputs": plan.inputs,
        "outputs": {"a.json": entry, "sub/b.json": entry},
    }
    assert files(directory) - SCAFFOLDING == {"a.json", "sub/b.json"}
    assert (directory / "a.json").read_bytes() == (directory / "sub" / "b.json").read_bytes() == content


# Opening, committing, skipping


def test_a_stage_is_made_once(tmp_path: Path) -> None:
    directory = tmp_path / "iteration-01" / "scores"
    assert make(directory, PLAN)
    assert_whole(directory, PLAN)
    assert files(directory) == {"manifest.json", "a.json", "sub/b.json"}
    assert not partial_directory(directory).exists()
    assert not make(directory, PLAN)


def test_work_in_progress_is_beside_the_directory(tmp_path: Path) -> None:
    partial = open_stage(tmp_path / "scores", PLAN)
    assert partial == tmp_path / "scores.partial"
    assert read_json(partial / "plan.json") == {
        "stage": "score",
        "config": {"seed": 0, "loss.alpha": 1.0},
        "inputs": {"problems": "aa" * 32},
    }
    with pytest.raises(UserError) as caught:
        read_manifest(tmp_path / "scores")
    assert caught.value.seen == f"{tmp_path / 'scores'} is not complete"
    assert caught.value.rule == "a stage reads only committed directories of earlier stages"
    assert "run the earlier stage first" in caught.value.remedy


def test_finished_shards_are_found_again(tmp_path: Path) -> None:
    partial = open_stage(tmp_path / "scores", PLAN)
    assert partial is not None
    write_json(partial / "a.json", {"text": "0"})
    assert open_stage(tmp_path / "scores", PLAN) == partial
    assert files(partial) == {"plan.json", "a.json"}


@pytest.mark.parametrize(
    ("plan", "difference"),
    [
        (OTHER, "config.seed was 0, is 1"),
        (replace(PLAN, config={"seed": 0}), "config.loss.alpha was 1.0, is null"),
        (replace(PLAN, config={**PLAN.config, "task": "math"}), 'config.task was null, is "math"'),
        (
            replace(PLAN, inputs={"problems": "bb" * 32}),
            f'inputs.problems was "{"a" * 36}..., is "{"b" * 36}...',
        ),
        (
            replace(PLAN, stage="pairs", inputs={"generations": "cc"}),
            'inputs.generations was null, is "cc"; '
            f'inputs.problems was "{"a" * 36}..., is null; stage was "score", is "pairs"',
        ),
        (replace(PLAN, config={"seed": [0], "loss.alpha": 1.0}), "config.seed was 0, is [0]"),
    ],
)
@pytest.mark.parametrize("state", ["committed", "partial"])
def test_another_plan_is_refused_with_the_differences(tmp_path: Path, state: str, plan: Plan, difference: str) -> None:
    directory = tmp_path / "scores"
    if state == "committed":
        make(directory, PLAN)
        kept = directory
    else:
        opened = open_stage(directory, PLAN)
        assert opened is not None
        kept = opened
        work_in(kept, "0")
    before = {name: (kept / name).read_bytes() for name in files(kept)}
    with pytest.raises(UserError) as caught:
        open_stage(directory, plan)
    assert caught.value.seen == f"{kept} was made from something else: {difference}"
    assert "kept only while its inputs and its part of the configuration are the same" in caught.value.rule
    assert caught.value.remedy == "use another name=..., undo the change, or pass --redo to compute the stage again"
    assert {name: (kept / name).read_bytes() for name in files(kept)} == before


@pytest.mark.parametrize("state", ["committed", "partial"])
def test_redo_throws_away_what_another_plan_made(tmp_path: Path, state: str) -> None:
    directory = tmp_path / "scores"
    if state == "committed":
        make(directory, PLAN)
    else:
        partial = open_stage(directory, PLAN)
        assert partial is not None
        work_in(partial, "0")
    assert make(directory, OTHER, redo=True)
    assert_whole(directory, OTHER)


def test_redo_keeps_what_the_same_plan_made(tmp_path: Path) -> None:
    make(tmp_path / "scores", PLAN)
    inode = (tmp_path / "scores").stat().st_ino
    assert not make(tmp_path / "scores", PLAN, redo=True)
    assert (tmp_path / "scores").stat().st_ino == inode


def test_numbers_of_the_same_value_are_no_difference(tmp_path: Path) -> None:
    make(tmp_path / "scores", PLAN)
    assert not make(tmp_path / "scores", replace(PLAN, config={"seed": 0, "loss.alpha": 1}))


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damage_to_a_committed_file_is_refused(tmp_path: Path, damage: str) -> None:
    directory = tmp_path / "scores"
    make(directory, PLAN)
    file = directory / "sub" / "b.json"
    if damage == "missing":
        file.unlink()
        seen = f"{file} is missing"
    else:
        file.write_bytes(file.read_bytes()[:5])
        seen = f"{file} has 5 bytes"
    with pytest.raises(UserError) as caught:
        open_stage(directory, PLAN)
    assert caught.value.seen == seen
    assert caught.value.rule == "its manifest says 17 bytes"  # {\n "text": "0"\n}\n
    assert caught.value.remedy == f"restore the file, or delete {directory} so that it is computed again"


def test_what_is_pruned_is_gone_and_the_stage_stays_what_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "training"
    make(directory, PLAN)
    digest = manifest_digest(directory)
    assert not is_pruned(directory)
    prune(directory, ["sub"])
    assert is_pruned(directory)
    assert not (directory / "sub").exists()
    assert manifest_digest(directory) == digest
    assert "sub/b.json" in read_manifest(directory)["outputs"]
    assert not make(directory, PLAN), "the stage is still made"
    (directory / "a.json").unlink()
    with pytest.raises(UserError, match=r"a\.json is missing"):
        open_stage(directory, PLAN)


def test_pruning_that_was_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    directory = tmp_path / "training"
    make(directory, PLAN)
    manifest = read_manifest(directory)
    write_json(directory / "manifest.json", {**manifest, "pruned": ["sub"]})  # killed before anything was removed
    prune(directory, [])
    assert not (directory / "sub").exists()


def test_a_directory_that_nobody_committed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        open_stage(tmp_path / "scores", PLAN)
    assert (tmp_path / "scores" / "mine.txt").read_text() == "x"


def test_an_empty_directory_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores.partial").mkdir()
    assert make(tmp_path / "scores", PLAN)
    assert_whole(tmp_path / "scores", PLAN)


@pytest.mark.parametrize("obstacle", ["run", "run/scores", "run/scores.partial"])
def test_a_place_that_cannot_be_written(tmp_path: Path, obstacle: str) -> None:
    (tmp_path / obstacle).parent.mkdir(exist_ok=True)
    (tmp_path / obstacle).write_text("a file")
    with pytest.raises(UserError) as caught:
        open_stage(tmp_path / "run" / "scores", PLAN)
    assert caught.value.seen.startswith(f"cannot write to {tmp_path / 'run'}")
    assert caught.value.seen.endswith((": File exists", ": Not a directory"))
    assert caught.value.rule == "the run directory must be writable"
    assert caught.value.remedy == "choose another folder with runs=FOLDER, or free the disk"
    assert (tmp_path / obstacle).read_text() == "a file"


def test_leftovers_of_killed_writers_are_neither_hashed_nor_kept(tmp_path: Path) -> None:
    partial = open_stage(tmp_path / "scores", PLAN)
    assert partial is not None
    work_in(partial, "0")
    for name in (".a.json.17.tmp", "sub/.b.json.tmp", ".manifest.json.3.tmp"):
        (partial / name).write_text("half")
    commit_stage(tmp_path / "scores")
    assert_whole(tmp_path / "scores", PLAN)
    assert files(tmp_path / "scores") == {"manifest.json", "a.json", "sub/b.json"}


def test_a_file_named_like_a_record_below_the_top_is_an_output(tmp_path: Path) -> None:
    partial = open_stage(tmp_path / "scores", PLAN)
    assert partial is not None
    (partial / "model").mkdir()
    write_json(partial / "model" / "plan.json", {})
    commit_stage(tmp_path / "scores")
    assert set(read_manifest(tmp_path / "scores")["outputs"]) == {"model/plan.json"}


# Killed at every instant

_CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def killed_before(change: int, root: Path, action: Callable[[], object]) -> bool:
    """Run `action` in a child that dies, as by SIGKILL, before its n-th change below `root`; whether it died."""

    def is_below(path: str) -> bool:
        # A recursive removal names files relative to their folder.
        return not os.path.isabs(path) or path.startswith(f"{root}/")

    child = os.fork()
    if child == 0:
        left = change

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in _CHANGES and is_below(str(arguments[0])):
                left -= 1
                if left == 0:
                    os._exit(9)

        status = 1
        try:
            sys.addaudithook(hook)
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def visible(directory: Path) -> bool:
    """What the stages that come later take for complete."""
    try:
        read_manifest(directory)
    except UserError:
        return False
    return True


def test_killed_at_any_instant_of_a_first_attempt(tmp_path: Path) -> None:
    change = 0
    while True:
        change += 1
        root = tmp_path / str(change)
        root.mkdir()
        directory = root / "run" / "scores"
        killed = killed_before(change, root, lambda directory=directory: make(directory, PLAN))  # type: ignore[misc]
        if visible(directory):
            assert_whole(directory, PLAN)
        make(directory, PLAN)  # without redo: it resumes or commits again
        assert_whole(directory, PLAN)
        assert not partial_directory(directory).exists()
        assert not list(directory.rglob(".*"))
        if not killed:
            break
    assert change > 12  # plan, two shards, progress, manifest, rename, clearing up


def test_killed_at_any_instant_of_a_resumed_attempt(tmp_path: Path) -> None:
    change, kept = 0, True
    while kept:
        change += 1
        root = tmp_path / str(change)
        root.mkdir()
        directory = root / "scores"
        partial = open_stage(directory, PLAN)
        assert partial is not None
        write_json(partial / "a.json", {"text": "0"})
        finished = (partial / "a.json").stat().st_ino
        kept = killed_before(change, root, lambda directory=directory: make(directory, PLAN))  # type: ignore[misc]
        if visible(directory):
            assert_whole(directory, PLAN)
        make(directory, PLAN)
        assert_whole(directory, PLAN)
        assert (directory / "a.json").stat().st_ino == finished  # computed once
    assert change > 10


@pytest.mark.parametrize("state", ["committed", "partial"])
def test_killed_at_any_instant_of_a_redo(tmp_path: Path, state: str) -> None:
    change, killed = 0, True
    while killed:
        change += 1
        root = tmp_path / str(change)
        root.mkdir()
        directory = root / "scores"
        if state == "committed":
            make(directory, PLAN)
        else:
            partial = open_stage(directory, PLAN)
            assert partial is not None
            work_in(partial, "0")
        redo = lambda directory=directory: make(directory, OTHER, redo=True)  # noqa: E731
        killed = killed_before(change, root, redo)
        if visible(directory):  # the old one or the new one, never something between
            seed = read_manifest(directory)["config"]["seed"]
            assert_whole(directory, (PLAN, OTHER)[seed])
        redo()
        assert_whole(directory, OTHER)
        assert not partial_directory(directory).exists()
    assert change > 12


# Manifest digests


def digest_of(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    directory = tmp_path / "scores"
    if not directory.exists():
        make(directory, PLAN)
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    changed = tmp_path / "changed"
    changed.mkdir(exist_ok=True)
    (changed / "manifest.json").write_text(json.dumps(manifest))
    return manifest_digest(changed)


def test_manifest_digest_leaves_only_the_seconds_out(tmp_path: Path) -> None:
    same = digest_of(tmp_path, lambda manifest: None)
    assert digest_of(tmp_path, lambda manifest: manifest.update(seconds=99.5)) == same
    assert (
        digest_of(tmp_path, lambda manifest: manifest.update(config=dict(reversed(manifest["config"].items())))) == same
    )

    def set_at(*keys: str) -> Callable[[dict[str, Any]], None]:
        def change(manifest: dict[str, Any]) -> None:
            for key in keys[:-1]:
                manifest = manifest[key]
            manifest[keys[-1]] = "changed"

        return change

    places = [
        ("stage",),
        ("config", "seed"),
        ("config", "new"),
        ("inputs", "problems"),
        ("inputs", "new"),
        ("outputs", "a.json", "sha256"),
        ("outputs", "a.json", "bytes"),
        ("outputs", "new"),
        ("further",),
    ]
    digests = {digest_of(tmp_path, set_at(*keys)) for keys in places}
    assert len(digests | {same}) == len(places) + 1


def test_manifest_digest_of_a_stage_is_a_function_of_what_it_is(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(tmp_path / name / "scores", PLAN)
    make(tmp_path / "three" / "scores", OTHER)
    one, two, three = (manifest_digest(tmp_path / name / "scores") for name in ("one", "two", "three"))
    assert one == two != three
    with pytest.raises(UserError, match="is not complete"):
        manifest_digest(tmp_path / "four" / "scores")


def test_digests() -> None:
    # The order of the keys does not matter; text is hashed as UTF-8.
    assert json_digest({"b": "é", "a": 1}) == hashlib.sha256('{"a": 1, "b": "é"}'.encode()).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 1 << 22, (1 << 22) + 1])
def test_file_digest(tmp_path: Path, size: int) -> None:
    data = bytes(index % 251 for index in range(1000)) * (size // 1000 + 1)
    (tmp_path / "f").write_bytes(data[:size])
    assert file_digest(tmp_path / "f") == hashlib.sha256(data[:size]).hexdigest()


# Wall time and progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands until it is set."""
    now = [1000.0]
    monkeypatch.setattr(artifacts.time, "monotonic", lambda: now[0])
    return now


def test_wall_time_is_summed_over_attempts(tmp_path: Path, clock: list[float]) -> None:
    directory = tmp_path / "scores"
    partial = open_stage(directory, PLAN)
    assert partial is not None
    assert seconds_so_far(partial) == 0.0

    def failed_attempt() -> None:
        with stage_clock(partial):
            clock[0] += 2.5
            raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        failed_attempt()
    assert seconds_so_far(partial) == 2.5
    clock[0] += 100  # between two attempts
    with stage_clock(partial):
        clock[0] += 1.2504
        work_in(partial, "0")
    commit_stage(directory)
    assert read_manifest(directory)["seconds"] == 3.75  # to the millisecond
    assert_whole(directory, PLAN)


def test_progress_is_written_at_most_twice_a_second_and_at_the_end(tmp_path: Path, clock: list[float]) -> None:
    assert read_progress(tmp_path) is None
    writer = ProgressWriter(tmp_path, total=10, unit="problems", done=3)
    assert read_progress(tmp_path) == Progress(done=3, total=10, unit="problems")
    writer.advance(2)
    assert read_progress(tmp_path) == Progress(done=3, total=10, unit="problems")
    clock[0] += 0.4
    writer.advance(1)
    assert read_progress(tmp_path) == Progress(done=3, total=10, unit="problems")
    clock[0] += 0.1
    writer.advance(1)
    assert read_progress(tmp_path) == Progress(done=7, total=10, unit="problems")
    writer.advance(3)
    assert read_progress(tmp_path) == Progress(done=10, total=10, unit="problems")


# Several processes


def test_of_several_that_create_a_file_one_does(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return create_json(path, {"number": number})

    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(create, range(8)))
    assert sum(created) == 1
    assert read_json(path) == {"number": created.index(True)}
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_whose_success_was_reported_as_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system repeats a request whose answer was lost."""
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    (tmp_path / "mine").touch()
    assert publish(tmp_path / "mine", tmp_path / "x")
    (tmp_path / "another").touch()
    assert not publish(tmp_path / "another", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_system_without_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match=r"cannot link .*x\.json: Operation not permitted"):
        create_json(tmp_path / "x.json", {})
    assert not list(tmp_path.iterdir())


def test_what_workers_tell_each_other_is_not_committed(tmp_path: Path) -> None:
    directory = tmp_path / "x"
    partial = open_stage(directory, PLAN)
    assert partial is not None
    work_in(partial, "0")
    (partial / "claims" / "leases" / "deep").mkdir(parents=True)
    (partial / "claims" / "leases" / "deep" / "b.0").touch()
    commit_stage(directory)
    assert set(read_manifest(directory)["outputs"]) == {"a.json", "sub/b.json"}
    assert not (directory / "claims").exists()


# JSON

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just([])
TREES = st.recursive(
    LEAVES, lambda inner: st.dictionaries(st.text("abé", min_size=1, max_size=3), inner, max_size=4), max_leaves=12
).filter(lambda tree: isinstance(tree, dict))


def paths(tree: Any, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {path: leaf for key, value in tree.items() for path, leaf in paths(value, (*prefix, key)).items()}


@given(TREES)
def test_flatten_joins_every_path_with_dots(tree: dict[str, Any]) -> None:
    assert flatten(tree) == ({".".join(path): leaf for path, leaf in paths(tree).items()} if tree else {})


def test_flatten_example() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": [{"f": 2}]}) == {"a.b.c": 1, "a.d": {}, "e": [{"f": 2}]}


@given(TREES)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.json"
    write_json(path, tree)
    assert read_json(path) == tree == json.loads(path.read_text(encoding="utf-8"))


def test_json_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def refuse(source: Path, target: Path) -> None:
        raise OSError("no rename")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="no rename"):
            write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff", b"{} {}"])
def test_malformed_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(tmp_path / "x.json")
    assert caught.value.seen.startswith(f"{tmp_path / 'x.json'}: ")
    assert (caught.value.rule, caught.value.remedy) == ("the file holds one JSON object", "restore or delete it")


@pytest.mark.parametrize(("content", "kind"), [("[]", "list"), ("null", "NoneType"), ("3", "int")])
def test_json_that_is_no_object(tmp_path: Path, content: str, kind: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read_json(tmp_path / "x.json")
    assert caught.value.seen == f"{tmp_path / 'x.json'} holds a {kind}"
    assert (caught.value.rule, caught.value.remedy) == ("the file holds one JSON object", "restore or delete it")


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_json(tmp_path / "x.json")
