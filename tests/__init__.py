"""The specification. What holds for all of it stands here."""

from hypothesis import settings

# Two busy cores are slow at times; what is always slow is seen without a deadline.
settings.register_profile("gllm", deadline=None)
settings.load_profile("gllm")
