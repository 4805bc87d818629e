"""Engines: whatever speaks the OpenAI wire format, seen from the gateway. Nothing here imports torch or vllm."""
