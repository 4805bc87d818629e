"""Replicas as living things: started, probed, leased, stopped."""
