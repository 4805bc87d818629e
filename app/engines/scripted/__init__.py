"""An engine that does as it is told: it paces, stalls, fails, breaks off, dies and comes back on demand.

For what a real engine will not produce when asked: tests of faults and timing, simulation, drills, the self-test.
"""

from app.engines.scripted.engine import Scripted
from app.engines.scripted.script import Script
from app.engines.scripted.work import End, Work

__all__ = ["End", "Script", "Scripted", "Work"]
