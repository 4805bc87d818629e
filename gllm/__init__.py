"""What people import and type: `gllm serve`."""

__version__ = "0.1.0"
