"""The errors addressed to someone.

`UserError` is for what the user can mend (a file, a key, a number): the command line prints it without a
traceback and exits 2. `StageError` is for a stage whose process failed: exit 1, and the message names its log.
`Interrupted` is no error: somebody asked for a stop, and the same command goes on: exit 75, which is EX_TEMPFAIL.
Anything else is a defect of this package and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend: what was seen, which rule it breaks, and the remedy."""

    def __init__(self, seen: str, rule: str, remedy: str) -> None:
        super().__init__(f"{seen}\n  rule:   {rule}\n  remedy: {remedy}")
        self.seen = seen
        self.rule = rule
        self.remedy = remedy


class StageError(Exception):
    """A stage's process failed; `str()` names the stage, its exit status and its log."""


class Interrupted(Exception):
    """Stopped on request with everything kept; `str()` says where: 'stopped after step 37 of 120'."""
