"""vLLM as an engine: how it is started. vLLM itself runs in a process of its own."""
