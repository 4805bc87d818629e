"""`python -m gllm.cli` is `gllm`: for those who start it by the interpreter that they run in."""

import sys

from gllm.cli import main

sys.exit(main())
