"""The errors addressed to someone.

`UserError` is for what the user can mend (a file, a key, a number): the command line prints it without a
traceback and exits 2. `StageError` is for a stage whose process failed: exit 1, and the message names its log.
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
