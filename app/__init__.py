"""gllm, the service: an observable gateway in front of language-model engines."""
