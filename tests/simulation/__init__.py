"""The real gateway on virtual time: scripted engines, seeded faults, and a checker of what came of it.

`python -m tests.simulation 1234` runs one seed, `--seeds 0:5000` many.
"""
