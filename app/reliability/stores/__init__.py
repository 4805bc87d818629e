"""What policies remember beyond one process: SQLite for one gateway, Redis for several."""
