"""Stands where `gllm worker` will: writes down how it was started, and goes on until it is told otherwise.

    python stand_in.py FOLDER FLAGS...

Has a kept child, as a worker has an engine. `FOLDER/NAME.dies`, when it appears, ends it with code 3.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from app.cluster.launchers.process import kept

folder, flags = Path(sys.argv[1]), sys.argv[2:]
told = dict(zip((flag.removeprefix("--") for flag in flags[::2]), flags[1::2], strict=True))
name = told["name"]

child = subprocess.Popen(kept(["sleep", "600"], 1.0), stdin=subprocess.PIPE, start_new_session=True)
started = {"pids": [os.getpid(), child.pid], "flags": told, "env": dict(os.environ)}
with (folder / f"{name}.starts").open("a") as starts:
    starts.write(json.dumps(started) + "\n")
print(f"{name} is up", flush=True)
dies = folder / f"{name}.dies"
while not dies.exists():
    time.sleep(0.05)
dies.unlink()
print("out of memory, say", flush=True)
sys.exit(3)
