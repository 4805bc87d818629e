"""People who use a gateway: how they ask, what they hold it to, and what they write down.

`sse`, `answer`, `promises`, `levels` and `settings` are plain Python; the rest stands on Locust, which changes the
process that imports it.
"""
