"""How Python itself is set, for a process that is a gateway and nothing else."""

import gc
import sys

NEW_OBJECTS = 5_000
"""So many more than there were, and those are looked through for garbage: one to two milliseconds, in which no stream
goes on. Python's own 700 is a dozen requests; with 5,000, a hundred at once come and go without a look."""
YOUNG_LOOKS = 1_000
"""So many looks at new ones until one at all that have survived: tens of milliseconds with a thousand streams open. No
request leaves garbage; what of it there is (of httpx, by our probes) is new."""
LET_GO_S = 0.0005
"""A thread that makes a page of metrics, or packs spans, lets the loop's go on after so long. With Python's own 5 ms
all streams stand still in the meantime."""


def settle() -> None:
    """What is built by now lives as long as the process. Looking through it for garbage, again and again, took a tenth
    of each request's CPU (`python -m bench.http_stack`); what requests leave behind is hardly ever cyclic.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, YOUNG_LOOKS)
    sys.setswitchinterval(LET_GO_S)
