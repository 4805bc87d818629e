"""What bad input gets: an honest error in one shape, from the gateway itself. Nothing of it reaches an engine."""

import json
from typing import Any

import pytest

from tests.gateway.conftest import Build, House, asking

MESSAGES = '"messages":[{"role":"user","content":"Hello"}]'


def body(extra: str) -> bytes:
    return ("{" + MESSAGES + "," + extra + "}").encode()


NOT_JSON = {
    "empty": b"",
    "truncated": b'{"messages":[',
    "trailing comma": body('"n":1')[:-1] + b",}",
    "byte order mark": b"\xef\xbb\xbf" + body('"n":1'),
    "two documents": body('"n":1') + body('"n":1'),
    "NaN": body('"temperature":NaN'),
    "Infinity": body('"temperature":Infinity'),
    "not UTF-8": b'{"messages":[{"role":"user","content":"\xff"}]}',
    "not UTF-8 in a field that is not looked at": body('"structured_outputs":{"a":"\\u00e9')[:-1] + b'\xff"}}',
    "lone surrogate": body('"user":"\\ud800"'),
    "control character": body('"user":"a\nb"'),
}


@pytest.mark.parametrize("case", NOT_JSON)
async def test_what_is_not_json_is_400(house: House, case: str) -> None:
    done = await house.post(NOT_JSON[case])
    assert (done.status, done.error["code"]) == (400, "invalid_json")
    assert house.engine.calls == []


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"messages":[{"role":"user","content":['])
async def test_nesting_without_end_is_400(house: House, opening: str) -> None:
    done = await house.post((opening * 100_000).encode())
    assert done.status == 400
    assert house.engine.calls == []


async def test_deep_nesting_inside_a_field_that_is_not_looked_at_is_400(house: House) -> None:
    done = await house.post(body('"structured_outputs":' + "[" * 50_000 + "]" * 50_000))
    assert (done.status, done.error["code"]) == (400, "nesting_too_deep")


@pytest.mark.parametrize("text", ["null", "[]", '"x"', "1"])
async def test_a_body_that_is_no_object_is_400(house: House, text: str) -> None:
    done = await house.post(text.encode())
    assert (done.status, done.error["code"]) == (400, "invalid_type")


DANGEROUS = """
    api_base base_url api_key chat_template prompt_embeds kv_transfer_params vllm_xargs cache_salt extra_body
    guided_decoding_backend request_id priority mm_processor_kwargs documents functions
""".split()


@pytest.mark.parametrize("field", [*DANGEROUS, "no_such_field"])
async def test_a_field_that_an_engine_might_obey_is_refused_by_name(house: House, field: str) -> None:
    done = await house.post(body(f'"{field}":"x"'))
    assert (done.status, done.error["code"], done.error["param"]) == (400, "unsupported_parameter", field)
    assert house.engine.calls == []


async def test_template_switches_that_models_document_pass_and_others_do_not(house: House) -> None:
    assert (await house.post(body('"chat_template_kwargs":{"enable_thinking":false}'))).status == 200
    done = await house.post(body('"chat_template_kwargs":{"tokenize":true}'))
    assert (done.status, done.error["param"]) == (400, "chat_template_kwargs.tokenize")


WRONG: list[tuple[str, str]] = [
    *[("n", value) for value in ("0", "-1", "1000000000", "2.5", '"3"', "true", "17")],
    *[("max_tokens", value) for value in ("0", "-5", "9223372036854775808", "1e18", '"100"')],
    *[("temperature", value) for value in ("-1", "1e9", "[]", '"hot"', "1e400", "2.1")],
    *[("top_p", value) for value in ("0", "1.1")],
    *[("presence_penalty", value) for value in ("-3", "3")],
    *[("seed", value) for value in (str(2**70), "1.5")],
    *[("stream", value) for value in ('"yes"', "1")],
    *[("stop", value) for value in ('[""]', "[1]", '""', json.dumps(["x"] * 17))],
    *[("logit_bias", value) for value in ('{"abc":1}', '{"1":1e9}', '{"1\\n":1}', "[]")],
    *[("tools", value) for value in ('[{"type":"function","function":{"name":"a b"}}]', '[{"type":"x"}]', "{}")],
    *[("user", value) for value in (json.dumps("x" * 5_000), "1")],
    *[("metadata", value) for value in (json.dumps({str(i): "x" for i in range(1_000)}), "[]")],
    *[("model", value) for value in ("[]", "1", '""', json.dumps("m" * 10_000))],
    *[("response_format", value) for value in ('{"type":"yaml"}', '"json"')],
    ("stream_options", '{"include_usage":5}'),
    ("top_logprobs", "3"),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
async def test_a_wrong_value_is_400_and_names_its_field(house: House, field: str, value: str) -> None:
    done = await house.post(body(f'"{field}":{value}'))
    assert done.status == 400
    assert done.error["param"].split(".")[0].split("[")[0] == field
    assert len(done.error["message"]) <= 512
    assert house.engine.calls == []


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ("[]", "messages"),
        ("{}", "messages"),
        ('[{"role":"wizard","content":"x"}]', "messages[0].role"),
        ('[{"role":"user","content":"x"},{"role":"user","content":5}]', "messages[1].content"),
        ('[{"role":"user","content":null}]', "messages[0].content"),
        ('[{"role":"user","content":[]}]', "messages[0].content"),
        ('[{"content":"x"}]', "messages[0].role"),
        ('[{"role":"user","content":"x","secret":1}]', "messages[0].secret"),
    ],
)
async def test_a_wrong_message_is_named_by_its_place(house: House, messages: str, param: str) -> None:
    done = await house.post(f'{{"messages":{messages}}}'.encode())
    assert (done.status, done.error["param"]) == (400, param)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "gopher://x", "http://127.0.0.1:6379", "http://[::ffff:127.0.0.1]", "https://a\\@b/", "//x"],
)
async def test_nothing_is_fetched_on_behalf_of_a_request(house: House, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    done = await house.post({"messages": [{"role": "user", "content": [part]}]})
    assert (done.status, done.error["code"]) == (400, "image_url_not_allowed")
    assert house.engine.calls == []


async def test_a_schema_with_a_remote_reference_or_of_monstrous_size_is_400(house: House) -> None:
    remote = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://x/y"}}}
    huge = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["y" * 70_000]}}}
    for schema in (remote, huge):
        done = await house.post(asking(response_format=schema))
        assert (done.status, done.error["code"]) == (400, "invalid_schema")


async def test_a_key_that_stands_twice_counts_as_its_last_value(house: House) -> None:
    assert (await house.post(body('"model":"nope","model":"demo"'))).status == 200
    assert (await house.post(body('"model":"demo","model":"nope"'))).status == 404


@pytest.mark.parametrize("model", ["nope", "../../etc/passwd", "http://169.254.169.254/", "x\\nSet-Cookie: y"])
async def test_an_unknown_model_is_404(house: House, model: str) -> None:
    done = await house.post(body(f'"model":"{model}"'))
    assert (done.status, done.error["code"], done.error["param"]) == (404, "model_not_found", "model")
    assert house.engine.calls == []


@pytest.mark.parametrize(
    "content_type",
    [b"text/plain", b"multipart/form-data", b"", b"application/json; charset=utf-16", b"application/jsonp"],
)
async def test_what_is_not_declared_as_json_is_415(house: House, content_type: bytes) -> None:
    headers = [(b"content-type", content_type)] if content_type else []
    done = await house.post(asking(), headers=headers)
    assert (done.status, done.error["code"]) == (415, "unsupported_media_type")


async def test_a_compressed_body_is_415(house: House) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
    assert (await house.post(asking(), headers=headers)).status == 415


@pytest.mark.parametrize("content_type", [b"application/json; charset=UTF-8", b"Application/JSON ; charset=utf-8"])
async def test_json_may_say_that_it_is_utf8(house: House, content_type: bytes) -> None:
    assert (await house.post(asking(), headers=[(b"content-type", content_type)])).status == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "TRACE", "OPTIONS", "PATCH"])
async def test_another_method_is_405_and_says_which_is_allowed(house: House, method: str) -> None:
    done = await house.post(b"", method=method)
    assert (done.status, done.headers["allow"], done.error["code"]) == (405, "POST", "method_not_allowed")
    assert "access-control-allow-origin" not in done.headers


@pytest.mark.parametrize(
    "path",
    ["/invocations", "/collective_rpc", "//v1/models", "/V1/Models", "/v1/../admin", "/pause", "/v1/models/", "/x"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_path_is_404_and_never_forwarded(house: House, path: str, method: str) -> None:
    done = await house.get(path, method)
    assert done.status == (404 if path != "/v1/models/" or method == "GET" else 405)
    assert done.error["code"] in ("not_found", "model_not_found", "method_not_allowed")
    assert house.engine.calls == []


async def test_a_body_over_the_limit_is_refused_while_it_arrives(build: Build) -> None:
    house = await build(settings={"MAX_BODY_BYTES": 1_024})
    done = await house.post(b"", body_parts=[b"x" * 600] * 1_000)
    assert (done.status, done.error["code"], done.headers["connection"]) == (413, "request_too_large", "close")
    declared = [(b"content-type", b"application/json"), (b"content-length", b"5000")]
    assert (await house.post(b"", headers=declared, body_parts=[])).status == 413


@pytest.mark.parametrize("value", [b"soon", b"-1", b"0", b"1.5", b"1e3", b"9" * 30])
async def test_a_deadline_that_is_no_number_is_400(house: House, value: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"x-request-timeout-ms", value)]
    done = await house.post(asking(), headers=headers)
    assert (done.status, done.error["param"]) == (400, "X-Request-Timeout-Ms")


async def test_a_header_that_must_stand_once_and_stands_twice_is_400(house: House) -> None:
    headers = [(b"content-type", b"application/json")] * 2
    assert (await house.post(asking(), headers=headers)).error["code"] == "ambiguous_header"


@pytest.mark.parametrize("given", [b"<script>", b"x" * 65, b"", b"a b"])
async def test_a_request_id_that_is_no_id_is_made_anew(house: House, given: bytes) -> None:
    done = await house.post(asking(), headers=[(b"content-type", b"application/json"), (b"x-request-id", given)])
    assert done.headers["x-request-id"] != given.decode()


async def test_a_request_id_that_is_one_is_kept_and_reaches_the_engine(house: House) -> None:
    done = await house.post(asking(), headers=[(b"content-type", b"application/json"), (b"x-request-id", b"abc-1")])
    assert done.headers["x-request-id"] == "abc-1"
    assert house.engine.calls[0].id == "abc-1"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", True),
        ("00-" + "0" * 32 + "-" + "b" * 16 + "-01", False),
        ("ff-" + "a" * 32 + "-" + "b" * 16 + "-01", False),
        ("nonsense", False),
    ],
)
async def test_a_trace_goes_on_if_it_is_one(house: House, given: str, kept: bool) -> None:
    headers = [(b"content-type", b"application/json"), (b"traceparent", given.encode())]
    assert (await house.post(asking(), headers=headers)).status == 200
    assert house.engine.calls[0].traceparent == (given if kept else None)


async def test_without_keys_the_gateway_answers_its_own_machine_only(build: Build) -> None:
    house = await build()
    for path in ("/v1/chat/completions", "/v1/models", "/metrics"):
        done = await house.post(asking(), path=path, server=("10.0.0.1", 8000))
        assert (done.status, done.error["code"]) == (403, "not_allowed")
    assert (await house.post(b"", path="/livez", method="GET", server=("10.0.0.1", 8000))).status == 200
    open_house = await build(settings={"ALLOW_ANONYMOUS": True})
    assert (await open_house.post(asking(), server=("10.0.0.1", 8000))).status == 200


async def test_bad_input_leaves_the_gateway_well(house: House) -> None:
    bad: list[Any] = [*NOT_JSON.values(), b"[" * 100_000, body('"api_base":"x"'), b"{}"]
    for each in bad:
        assert (await house.post(each)).status == 400
    assert (await house.post(asking())).status == 200
