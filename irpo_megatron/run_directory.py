"""The directory of a run: where each stage's directory stands, and how a stage becomes one.

runs/<name>/
  config.yaml  environment.json  inputs.json  metrics.jsonl  results.json  report.html
  problems/  base-model/                          (base-model/ where it is made here)
  iteration-00/ checkpoint-megatron/ evaluation/  (M_0)
  iteration-01/ generations/ scores/ pairs/ reference/ training/ selection/ checkpoint-hf/ evaluation/
  iteration-NN/ checkpoint-fp8/                   (from 00 on, where the engine is to load FP8 copies)
  logs/ iteration-01-train.log  iteration-01-train.events/ ...  tensorboard/
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from irpo_megatron.artifacts import (
    MANIFEST,
    Plan,
    commit_stage,
    file_digest,
    flatten,
    json_digest,
    manifest_digest,
    open_stage,
    read_json,
    read_manifest,
    stage_clock,
    write_json,
)
from irpo_megatron.claims import how_far
from irpo_megatron.config import Config, is_neutral
from irpo_megatron.console import Console
from irpo_megatron.environment import record_environment
from irpo_megatron.errors import UserError
from irpo_megatron.launch.launchers import launcher_of
from irpo_megatron.launch.protocol import Launcher, OneProcess, Shape
from irpo_megatron.requests import EvaluateRequest, GenerateRequest, JudgeRequest, Request, WorkerRequest

# The directory of each stage below `iteration-NN/`.
DIRECTORIES = {
    "generate": "generations",
    "score": "scores",
    "pairs": "pairs",
    "reference": "reference",
    "train": "training",
    "select": "selection",
    "convert": "checkpoint-hf",
    "quantise": "checkpoint-fp8",
    "evaluate": "evaluation",
}
# At iteration 0 conversion goes the other way: the base model, into Megatron.
MEGATRON_BASE = "checkpoint-megatron"
_LOCK_SECONDS = 5.0


class RunDirectory:
    """A run's directory and configuration, while this process works in it."""

    def __init__(self, config: Config, console: Console, *, redo: bool) -> None:
        self.config = config
        self.path = config.run_dir
        self.console = console
        self.redo = redo
        self.has_news = not (self.path / "report.html").is_file()
        """Whether the report lacks something: it is made anew only then."""

    @cached_property
    def launcher(self) -> Launcher:
        """What starts the stages' processes."""
        return launcher_of(self.config)

    def stage_directory(self, stage: str, iteration: int) -> Path:
        """Where a stage is committed."""
        name = MEGATRON_BASE if (stage, iteration) == ("convert", 0) else DIRECTORIES[stage]
        return self.path / f"iteration-{iteration:02d}" / name

    def make(
        self,
        name: str,
        iteration: int,
        module: str,
        request_type: type[Request],
        *,
        directory: Path | None = None,
        inputs: Mapping[str, Path | None] | None = None,
        made_from: Mapping[str, Path] | None = None,
        options: Mapping[str, Any] | None = None,
        shape: Shape = OneProcess(),  # noqa: B008 (frozen)
    ) -> None:
        """Make a stage's directory by one module, unless it is made.

        Args:
            module: Its `run` takes a `request_type`.
            directory: Where, if not in the iteration's directory.
            inputs: Paths for the request's fields of these names; their contents identify what the stage is made from.
            made_from: Further contents that do.
            options: Further fields of the request.
            shape: The processes that it runs in.
        """
        directory = directory or self.stage_directory(name, iteration)
        inputs = inputs or {}
        identified = {**inputs, **(made_from or {})}
        with self.stage(name, iteration, directory, reads=[request_type], inputs=identified) as work:
            if work is not None:
                fields = {**request_type.config_values(self.config), **inputs, **(options or {})}
                request = request_type(output=work, iteration=iteration, **fields)
                self.process(name, module, request, shape=shape)

    @contextmanager
    def stage(
        self,
        name: str,
        iteration: int,
        directory: Path,
        *,
        reads: Sequence[type[Request]],
        inputs: Mapping[str, Path | None],
    ) -> Iterator[Path | None]:
        """Make `directory` in a `with` block, or find it made.

        Yields the directory to work in, or None where the stage is done; leaving the block commits it.

        Args:
            reads: The requests whose part of the configuration the stage depends on.
            inputs: What it is made from; None entries are inputs that this method does not have.

        Raises:
            UserError: it was made from something else.
        """
        config: dict[str, Any] = {}
        for request_type in reads:
            config |= request_type.recorded_config(self.config)
        digests = {key: self.digest(path) for key, path in inputs.items() if path is not None}
        plan = Plan(stage=name, config=config, inputs=digests)
        work = open_stage(directory, plan, redo=self.redo)
        if work is None:
            yield None
            return
        with self.console.stage(iteration, name, lambda: how_far(work)), stage_clock(work):
            yield work
        commit_stage(directory)
        self.has_news = True
        self.console.finished(iteration, name, float(read_manifest(directory)["seconds"]))

    def process(
        self,
        name: str,
        module: str,
        request: Request,
        *,
        shape: Shape = OneProcess(),  # noqa: B008 (frozen)
    ) -> None:
        """Run a stage's module on a request, in processes of its own; before that, workers sample what it reads.

        Raises:
            UserError: the stage found a mistake of the user's.
            StageError: it failed otherwise.
        """
        stem = self.path / "logs" / f"iteration-{request.iteration:02d}-{name}"
        if isinstance(request, GenerateRequest | JudgeRequest | EvaluateRequest):
            self._sample(stem, WorkerRequest.of(request))
        path = stem.with_suffix(".request.json")
        write_json(path, request.model_dump(mode="json"))
        log = stem.with_suffix(".log")
        self.launcher.run(module, request, path, shape=shape, log=log, watch=self.console.refresh)

    def _sample(self, stem: Path, request: WorkerRequest) -> None:
        """Have workers sample into the stage's partial directory, with engines that are gone when this returns."""
        path = stem.with_name(f"{stem.name}-workers.request.json")
        write_json(path, request.model_dump(mode="json"))
        self.launcher.sample(request, path, logs=stem, watch=self.console.refresh, say=self.console.say)

    def digest(self, path: Path) -> str:
        """Identity of an input.

        The bytes of files from outside a run are hashed once, and remembered by size and time of change.
        """
        if not path.exists():
            raise UserError(
                f"{path} is not there",
                "a stage reads the committed directories of the stages before it",
                "run the earlier stage first, or `irpo run`, which runs what is missing",
            )
        # Only what a run made has a manifest to be believed: a folder from elsewhere is known by its bytes.
        if path.resolve().is_relative_to(self.config.runs.resolve()) and (path / MANIFEST).is_file():
            return manifest_digest(path)
        cache_path = self.path / "inputs.json"
        cache = read_json(cache_path) if cache_path.is_file() else {}
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        digests = []
        for file in files:
            stat = file.stat()
            entry = cache.get(str(file))
            if entry is None or (entry["bytes"], entry["modified_ns"]) != (stat.st_size, stat.st_mtime_ns):
                entry = {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns, "sha256": file_digest(file)}
                cache[str(file)] = entry
            digests.append([str(file.relative_to(path)), entry["sha256"]])
        write_json(cache_path, cache)
        return json_digest(digests)


@contextmanager
def open_run(config: Config, console: Console, *, redo: bool, patient: bool = False) -> Iterator[RunDirectory]:
    """Create or re-enter the run directory, and hold it: two processes never work in one.

    Args:
        patient: Wait for whoever works there now, however long, instead of refusing.

    Raises:
        UserError: it cannot be written, another process holds it, or it was made by another configuration.
    """
    path = config.run_dir
    try:
        (path / "logs").mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(
            f"cannot write to {path}: {error.strerror}",
            "the run directory must be writable",
            "choose another folder with runs=FOLDER, or mend the permissions",
        ) from error
    try:
        _take(lock, path, within=math.inf if patient else _LOCK_SECONDS)
        _record_configuration(config, path, redo=redo)
        if changes := record_environment(path):
            console.say(f"other software than at this run's last start: {'; '.join(changes)}")
        yield RunDirectory(config, console, redo=redo)
    finally:
        os.close(lock)


def _take(lock: int, path: Path, *, within: float) -> None:
    deadline = time.monotonic() + within
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(
                    f"another process is working in {path}",
                    "a run directory has one driver at a time",
                    "wait for it, stop it, or use another name=...",
                ) from None
            time.sleep(0.1)
        except OSError as error:
            raise UserError(
                f"cannot lock {path}: {error.strerror}",
                "the file system of a run directory supports flock, so that two drivers never work in one",
                "choose another folder with runs=FOLDER",
            ) from error


def _record_configuration(config: Config, path: Path, *, redo: bool) -> None:
    """Save the resolved tree, or compare it with the one that the run was started with."""
    file = path / "config.yaml"
    tree = config.model_dump(mode="json")
    if file.is_file() and not redo:
        before, now = flatten(load_tree(file)), flatten(tree)
        changed = [
            f"{key} was {json.dumps(before.get(key))}, is {json.dumps(now.get(key))}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not is_neutral(key)
        ]
        if changed:
            raise UserError(
                f"{path} was made by another configuration: " + "; ".join(changed),
                "a run directory holds the results of one configuration",
                "use another name=..., undo the change, or pass --redo to compute again what depends on it",
            )
    temporary = file.with_name(".config.yaml.tmp")
    temporary.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    temporary.replace(file)


def load_tree(file: Path) -> dict[str, Any]:
    """The resolved tree that a run directory holds.

    Raises:
        UserError: there is none, or it is no mapping.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: {error}", "a run directory holds the config.yaml of its run", "name a run directory"
        ) from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} holds a {type(tree).__name__}", "config.yaml is a mapping", "restore it")
    return tree
