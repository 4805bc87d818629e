"""Bodies as real clients send them, by endpoint: what must be accepted, in the words of those who send it."""

from typing import Any

from app.generation import Route

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at https://example.com",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "$ref": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
TREE = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "$ref": "#/definitions/Node",
    "definitions": {
        "Node": {
            "type": "object",
            "description": "see https://example.com//",
            "properties": {"next": {"anyOf": [{"$ref": "#/definitions/Node"}, {"type": "null"}]}},
        }
    },
}
PIXEL = "data:image/png;base64,iVBORw0KGgo="

CHAT: dict[str, dict[str, Any]] = {
    "the smallest": {"messages": HELLO},
    "curl from vLLM's quickstart": {
        "model": "Qwen/Qwen2.5-1.5B-Instruct",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Who won the world series in 2020?"},
        ],
    },
    "the openai SDK with everything": {
        "model": "demo",
        "messages": HELLO,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "logit_bias": {"50256": -100, "1": 5.5},
        "logprobs": True,
        "top_logprobs": 5,
        "max_completion_tokens": 100,
        "metadata": {"run": "7"},
        "modalities": ["text"],
        "n": 2,
        "parallel_tool_calls": False,
        "prediction": {"type": "content", "content": "Hello"},
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "reasoning_effort": "low",
        "response_format": {"type": "text"},
        "safety_identifier": "s",
        "seed": 42,
        "service_tier": "auto",
        "stop": ["\n\n", "END"],
        "store": False,
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "temperature": 0.7,
        "tool_choice": "auto",
        "tools": [WEATHER],
        "top_p": 1,
        "user": "u-1",
        "verbosity": "low",
    },
    "nulls where a client has nothing to say": {
        "model": "demo",
        "messages": [
            {"role": "user", "content": "Hi", "name": None, "tool_calls": None},
            {"role": "assistant", "content": None, "function_call": None, "tool_calls": [], "refusal": None},
            {"role": "user", "content": "?"},
        ],
        "stop": None,
        "max_tokens": None,
        "temperature": None,
        "n": None,
        "stream": None,
        "stream_options": None,
        "tools": None,
        "tool_choice": None,
        "response_format": None,
        "logit_bias": None,
        "user": None,
        "seed": None,
    },
    "a tool called and its result, by langchain": {
        "model": "demo",
        "messages": [
            {"role": "user", "content": "Weather in Paris?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "type": "function",
                        "id": "call_1",
                        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "18 °C"},
        ],
        "stream": False,
        "temperature": 0.0,
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    },
    "an answer of the openai SDK, dumped back into the conversation": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "content": "Hello!",
                "refusal": None,
                "role": "assistant",
                "annotations": [],
                "audio": None,
                "function_call": None,
                "tool_calls": None,
                "parsed": None,
                "reasoning_content": "They greet me.",
            },
            {"role": "user", "content": "And now?"},
        ]
    },
    "parts, with an image inside": {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {
                "role": "user",
                "content": [
                    {
                        "type": "text",
                        "text": "What is this? https://example.com",
                        "cache_control": {"type": "ephemeral"},
                    },
                    {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                    {"type": "image_url", "image_url": PIXEL, "uuid": "img-1"},
                    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
                    {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,UklGRg=="}},
                    {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
                    {
                        "type": "file",
                        "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
                    },
                ],
            },
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "user", "content": "Please."},
        ]
    },
    "a schema for the answer, by the openai SDK's parse": {
        "messages": HELLO,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "Node", "strict": True, "schema": TREE},
        },
    },
    "any JSON": {"messages": HELLO, "response_format": {"type": "json_object"}},
    "structural tags": {
        "messages": HELLO,
        "response_format": {
            "type": "structural_tag",
            "structures": [{"begin": "<f>", "schema": TREE, "end": "</f>"}],
            "triggers": ["<f"],
        },
    },
    "vLLM's own words": {
        "messages": HELLO,
        "top_k": -1,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "length_penalty": 1.0,
        "min_tokens": 0,
        "stop_token_ids": [2, 32000],
        "include_stop_str_in_output": False,
        "ignore_eos": True,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "allowed_token_ids": [1, 2],
        "bad_words": ["damn"],
        "truncate_prompt_tokens": -1,
        "truncation_side": "left",
        "prompt_logprobs": 0,
        "logprob_token_ids": [5, 7],
        "add_special_tokens": False,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "use_beam_search": False,
        "best_of": 1,
        "echo": False,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "include_reasoning": True,
        "chat_template_kwargs": {"enable_thinking": False},
        "structured_outputs": {"choice": ["yes", "no"]},
        "thinking_token_budget": 100,
    },
    "the switches of Qwen's, GLM's and Seed's templates": {
        "messages": HELLO,
        "chat_template_kwargs": {"preserve_thinking": True, "clear_thinking": False, "thinking_budget": -1},
    },
    "token counts that go on": {
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "a function called in the old way": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"},
        ]
    },
}

COMPLETIONS: dict[str, dict[str, Any]] = {
    "the smallest": {"prompt": "Once"},
    "curl from vLLM's quickstart": {"model": "m", "prompt": "San Francisco is a", "max_tokens": 7, "temperature": 0},
    "several prompts": {"prompt": ["a", "b"], "n": 2, "best_of": 2},
    "token ids": {"prompt": [1, 2, 3], "max_tokens": 1},
    "several prompts of token ids": {"prompt": [[1, 2], [3]], "max_tokens": 1},
    "the evaluation harness": {
        "model": "m",
        "prompt": [[1, 2, 3], [4, 5]],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "echo": True,
        "seed": 1234,
    },
    "vLLM's bench": {
        "model": "m",
        "prompt": "x",
        "repetition_penalty": 1.0,
        "max_tokens": 128,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    },
    "an editor's fill in the middle": {"prompt": "def f(", "suffix": "return x", "stop": "\n", "stream": False},
}

EMBEDDINGS: dict[str, dict[str, Any]] = {
    "a text": {"input": "Hello"},
    "the openai SDK": {"input": ["a", "b"], "model": "m", "encoding_format": "base64"},
    "langchain, which tokenizes itself": {"input": [[1, 2], [3]], "model": "m", "encoding_format": "float"},
    "shortened": {"input": [1, 2, 3], "dimensions": 256, "user": "u", "truncate_prompt_tokens": -1},
}

RESPONSES: dict[str, dict[str, Any]] = {
    "a text": {"model": "m", "input": "Hello"},
    "vLLM's words": {
        "input": "Hello",
        "top_k": 5,
        "seed": 7,
        "stop": ["\n"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": 1},
        "ignore_eos": False,
        "include_stop_str_in_output": False,
        "skip_special_tokens": True,
        "include_reasoning": True,
        "chat_template_kwargs": {"enable_thinking": False},
        "structured_outputs": {"choice": ["yes", "no"]},
    },
    "a conversation with everything": {
        "model": "m",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "https://example.com"},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?"},
                    {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
                    {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
                ],
            },
            {"type": "function_call", "call_id": "c", "name": "open", "arguments": '{"url":"https://example.com"}'},
            {"type": "function_call_output", "call_id": "c", "output": '{"image_url":"https://example.com"}'},
            {
                "type": "message",
                "role": "assistant",
                "content": [
                    {
                        "type": "output_text",
                        "text": "A page.",
                        "annotations": [{"type": "url_citation", "url": "https://example.com", "title": "x"}],
                    }
                ],
            },
        ],
        "stream": True,
        "max_output_tokens": 100,
        "temperature": 1,
        "top_p": 1,
        "tools": [{"type": "function", "name": "open", "parameters": TREE, "strict": True}],
        "tool_choice": {"type": "function", "name": "open"},
        "parallel_tool_calls": True,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "Node", "schema": TREE, "strict": True}},
        "truncation": "disabled",
        "include": ["reasoning.encrypted_content"],
        "metadata": {},
        "store": False,
        "service_tier": "auto",
        "user": "u",
    },
}

MESSAGES: dict[str, dict[str, Any]] = {
    "the smallest": {"model": "m", "max_tokens": 100, "messages": HELLO},
    "an agent's": {
        "model": "m",
        "max_tokens": 1_000,
        "system": [{"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "tool_use", "id": "t", "name": "fetch", "input": {"url": "https://example.com"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t",
                        "is_error": False,
                        "content": [{"type": "text", "text": "x"}],
                    }
                ],
            },
        ],
        "tools": [{"name": "fetch", "description": "x", "input_schema": TREE}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled", "budget_tokens": 500},
        "metadata": {"user_id": "u"},
        "stop_sequences": ["END"],
        "stream": True,
        "temperature": 1,
        "top_k": 5,
        "top_p": 0.9,
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": []},
        "output_config": {"effort": "low"},
    },
}

TOKENIZE: dict[str, dict[str, Any]] = {
    "a text": {"model": "m", "prompt": "Hello", "add_special_tokens": False, "return_token_strs": True},
    "a conversation": {"messages": HELLO, "add_generation_prompt": True, "tools": [WEATHER]},
}

DETOKENIZE: dict[str, dict[str, Any]] = {"token ids": {"model": "m", "tokens": [1, 2, 3]}}

BODIES: dict[Route, dict[str, dict[str, Any]]] = {
    Route.CHAT: CHAT,
    Route.COMPLETIONS: COMPLETIONS,
    Route.EMBEDDINGS: EMBEDDINGS,
    Route.RESPONSES: RESPONSES,
    Route.MESSAGES: MESSAGES,
    Route.TOKENIZE: TOKENIZE,
    Route.DETOKENIZE: DETOKENIZE,
}

ACCEPTED = [(route, name) for route, bodies in BODIES.items() for name in bodies]
