"""What is told about requests: one narrow interface and its backends."""
