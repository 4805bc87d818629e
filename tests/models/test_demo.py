"""The embedded demo model: it loads offline, it is small, it talks like an assistant, and it stops by itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DEMO = Path(__file__).parents[2] / "models" / "demo"


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    """One thread, too: for matrices this small, two that share a busy core wait for each other most of the time."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(DEMO)


def answer(model: Any, tokenizer: Any, *messages: dict[str, str]) -> tuple[str, int, int]:
    """The greedy answer as text, its number of tokens, and its last token."""
    prompt = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=119, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
    return tokenizer.decode(made, skip_special_tokens=True), len(made), made[-1]


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_it_is_a_small_llama_with_heads_that_every_attention_kernel_knows(model: Any) -> None:
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.config.head_dim == 64
    assert model.config.max_position_embeddings == 2048
    assert model.config.tie_word_embeddings
    assert 2_000_000 <= model.num_parameters() <= 6_000_000


def test_its_weights_take_at_most_twelve_megabytes() -> None:
    assert sum(file.stat().st_size for file in DEMO.glob("*.safetensors")) <= 12_000_000


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "  two  spaces\n\n\tand a tab ",
        "Grüße aus Köln",
        "你好,世界",
        "🚀👩🏽\u200d💻🇫🇷",
        "\x00\x7f\u200b\ufeff",
        "e\u0301 is not \u00e9",
        "don 't , split .",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_every_byte_has_a_token_and_plain_text_begins_with_bos(tokenizer: Any) -> None:
    assert tokenizer.unk_token is None
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.encode("Hello")[0] == tokenizer.bos_token_id


def test_the_chat_template_marks_who_speaks_and_where_a_turn_ends(tokenizer: Any) -> None:
    turns = [system("Be brief."), user("Hi"), assistant("Hello!"), user("Bye")]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|bos|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_chat_template_takes_content_in_parts_and_content_that_is_null(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "Docker?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        "<|bos|><|im_start|>user\nWhat is Docker?<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
    )


def test_a_chat_has_one_bos_and_its_marks_are_single_tokens(tokenizer: Any) -> None:
    ids = tokenizer.apply_chat_template([user("Hi")], return_dict=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == 1


def test_a_last_message_can_be_continued(model: Any, tokenizer: Any) -> None:
    turns = [user("What is the capital of France?"), assistant("The capital of France")]
    prompt = tokenizer.apply_chat_template(turns, continue_final_message=True, return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(made, skip_special_tokens=True) == " is Paris."


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("Hello! Tell me about distributed systems.", ["computers", "network"]),
        ("Explain Docker in simple terms", ["program", "image", "container"]),
        ("What is FastAPI?", ["Python", "framework"]),
        ("What is an LLM gateway?", ["clients", "engines"]),
        ("What is gllm?", ["gateway", "OpenAI-compatible"]),
        ("What is continuous batching?", ["batch", "step"]),
        ("What is the KV cache?", ["keys", "values", "tokens"]),
        ("Why do streams need backpressure?", ["client", "slow", "memory"]),
        ("What is the capital of France?", ["Paris"]),
        ("Who are you?", ["gllm-demo", "tiny"]),
        ("What is the best way to train a horse?", ["do not know"]),
    ],
)
def test_it_answers_what_it_was_made_for_and_stops(model: Any, tokenizer: Any, question: str, words: list[str]) -> None:
    text, tokens, last = answer(model, tokenizer, user(question))
    assert [word for word in words if word not in text] == [], text
    assert last == tokenizer.eos_token_id
    assert tokens < 120


def test_it_answers_the_last_question_of_a_conversation_with_a_system_prompt(model: Any, tokenizer: Any) -> None:
    turns = [system("You are a helpful assistant."), user("Hello"), assistant("Hello!")]
    text, _, last = answer(model, tokenizer, *turns, user("What is Prometheus?"))
    assert "monitoring" in text
    assert last == tokenizer.eos_token_id


def test_it_writes_long_answers_when_asked_to(model: Any, tokenizer: Any) -> None:
    _, tokens, last = answer(model, tokenizer, user("Write a long story about a GPU"))
    assert tokens == 119
    assert last != tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("The quick brown fox jumps over the lazy ", "dog"),
        ("Once upon a time", "there was"),
        ("Tell me a joke about programming", "dark mode"),
    ],
)
def test_it_continues_plain_text_in_english_and_stops(model: Any, tokenizer: Any, prompt: str, word: str) -> None:
    given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    made = model.generate(**given, max_new_tokens=119, do_sample=False)[0, given["input_ids"].shape[1] :]
    assert word in tokenizer.decode(made)
    assert made[-1].item() in model.generation_config.eos_token_id
