"""Whether a process has ended is known on its own machine, and nowhere else."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from irpo_megatron.claims import process_identity
from irpo_megatron.claims.process_identity import ProcessIdentity

_SAY_WHO = (
    "import dataclasses, json, sys; from irpo_megatron.claims.process_identity import ProcessIdentity; "
    "print(json.dumps(dataclasses.asdict(ProcessIdentity.own())), flush=True); sys.stdin.read()"
)


def test_this_process_lives() -> None:
    own = ProcessIdentity.own()
    assert own.pid == os.getpid()
    assert own == ProcessIdentity.own()
    assert not own.is_gone()


def test_a_process_is_gone_when_it_has_ended_even_if_nobody_has_reaped_it() -> None:
    import json

    child = subprocess.Popen([sys.executable, "-c", _SAY_WHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    identity = ProcessIdentity(**json.loads(child.stdout.readline()))
    assert identity.pid == child.pid
    assert not identity.is_gone()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identity.is_gone()
    child.communicate()
    assert identity.is_gone()


def test_a_number_that_is_used_again_is_another_process() -> None:
    own = ProcessIdentity.own()
    assert own.started is not None
    assert dataclasses.replace(own, started=own.started - 1).is_gone()


@pytest.mark.parametrize("field", ["host", "boot", "namespace"])
def test_what_is_elsewhere_cannot_be_seen(field: str) -> None:
    assert not dataclasses.replace(ProcessIdentity.own(), **{field: "another"}, pid=2**22, started=1).is_gone()


def test_a_system_that_shows_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_identity, "_read", lambda path: "")
    identity = ProcessIdentity.own()
    assert identity.started is None
    assert not dataclasses.replace(identity, pid=2**22, started=1).is_gone()
