"""Measurements that anyone can repeat. What they print is what the documents quote."""
