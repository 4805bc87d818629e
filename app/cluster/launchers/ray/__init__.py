"""Workers on the nodes of a Ray cluster that exists already (ADR 19).

    launcher ── keeper ── driver ~~ Ray ~~ seat (an actor) ── keeper ── gllm worker ── keeper ── engine
    (no ray here)         (a Ray job)      (on some node)

The job owns the actors and their placement groups: with the driver, however it ends, all of them end.
"""
