"""Every random choice, from the run's one seed.

Seeds are named, not counted: what a thing draws depends on its name alone, never on what was drawn before it. So the
output is the same whatever the batch, the shard, the order or the number of interruptions.
"""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, *names: str | int) -> int:
    """A 63-bit seed for whatever `names` name, e.g. `derive_seed(0, "sample", iteration, prompt_id, index)`."""
    text = "\x1f".join(str(name) for name in (run_seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
