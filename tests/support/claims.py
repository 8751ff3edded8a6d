"""Workers that never lived, on nodes that never were, and a clock that is told to pass."""

from __future__ import annotations

from irpo_megatron.claims.process_identity import ProcessIdentity

LEASE_SECONDS = 60.0


class Clock:
    """Monotonic seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def on_node(host: str) -> ProcessIdentity:
    """A process of another node: nothing here can see whether it lives."""
    return ProcessIdentity(host=host, boot="another", namespace="pid:[1]", pid=7, started=11)


def dead_process() -> ProcessIdentity:
    """A process of this machine that is no more: its number is another's by now."""
    own = ProcessIdentity.own()
    return ProcessIdentity(host=own.host, boot=own.boot, namespace=own.namespace, pid=own.pid, started=1)
