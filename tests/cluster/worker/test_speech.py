import pytest

from app.cluster.worker.speech import part_of


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00,  2.04it/s]", 0.5),
        ("(EngineCore_DP0 pid=71) Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]", 0.0),
        ("Loading pt checkpoint shards: 100% Completed | 1/1 [00:01<00:00,  1.32s/it]", 1.0),
        ("Multi-thread loading shards:  40% Completed | 2/5 [00:01<00:02,  1.1it/s]", 0.4),
        ("Loading safetensors using Runai Model Streamer:   7% Completed | 1/14 [00:01<00:02,  1.1it/s]", 0.07),
        ("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  34%|███▍      | 23/67 [00:01<00:03]", None),
        ("Fetching 4 files:  25%|██▌       | 1/4 [00:01<00:03,  1.2s/it]", 0.25),
        ("Loading weights:  87%|████████▋ | 254/290 [00:00<00:00, 1402.11it/s]", 0.87),
        ("engine: importing at=0.0s", 0.0),
        ("engine: loading model=/models/demo at=3.1s", 0.25),
        ("engine: loading weights device=cpu dtype=float32 at=3.2s", 0.5),
        ("engine: warming up at=3.4s", 0.75),
        ("engine: ready url=http://127.0.0.1:8100 seconds=3.9 at=3.9s", 1.0),
        ("INFO 11-27 [loggers.py:123] Engine 000: GPU KV cache usage: 50%", None),
        ("engine: failed it is readying nothing", None),
        ("", None),
    ],
)
def test_what_engines_say_about_how_far_they_are(line: str, part: float | None) -> None:
    assert part_of(line) == part
