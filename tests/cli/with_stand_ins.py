"""`gllm` whose children are stand-ins: everything of the command itself is real."""

import sys
from pathlib import Path

from gllm.cli import child, main

child.GLLM = (sys.executable, str(Path(__file__).with_name("stand_in.py")))

if __name__ == "__main__":
    sys.exit(main())
