"""The program of a `HelperProcess` that does what a question says, the worst included."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from irpo_megatron.artifacts import Json
from irpo_megatron.tasks.helper_loop import Reply, main
from irpo_megatron.tasks.limits import Limits, limit_memory, stay_inside


def prepare(limits: Limits, arguments: list[str]) -> Reply:
    limit_memory(limits.memory_mib)
    if "inside" in arguments:
        stay_inside()
    if "unwilling" in arguments:
        sys.exit(1)
    return reply


def reply(question: Json) -> Json:
    match question["do"]:
        case "die":
            os._exit(3)
        case "raise":
            raise RuntimeError("as asked")
        case "spin":
            return {"digits": 9**9**9}  # in one call to C, which no handler of Python's interrupts
        case "sleep":
            time.sleep(60)
        case "eat":
            return {"eaten": len(bytearray(question["mib"] * 2**20))}
        case "print":
            print("not a reply")
        case "write":
            open("written", "w").close()
        case "delete":
            os.remove("kept")
        case "start":
            subprocess.run(["touch", "written"], check=False)
        case "fork":
            os.fork()
    return {"pid": os.getpid(), "hash": hash("text")}


if __name__ == "__main__":
    main(prepare)
