"""An engine process over `transformers`' continuous batching: it speaks OpenAI's wire format and looks like vLLM.

Nothing is imported here: torch belongs to the process that `python -m app.engines.transformers` starts, to no other.
"""
