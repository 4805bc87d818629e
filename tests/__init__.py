"""The specification. What holds for all of it stands here."""

from hypothesis import settings

settings.register_profile(
    "gllm", deadline=None
)  # two busy cores are slow at times; what is slow always is seen by people
settings.load_profile("gllm")
