"""What commands workers: GLLM's three endpoints, and those for operators."""
