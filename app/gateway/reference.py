"""The OpenAPI document as a page to read. It needs no script and nothing from elsewhere: gateways often stand where
there is no way out, and a page that takes part in an operator's session should load nobody's code.
"""

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from app.generation import Route

Schema = dict[str, Any]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

_OPERATORS = ("/admin/", "/add_worker", "/load_model", "/release_gpus")
_FASTAPIS = "Successful Response"
"""Of an answer that nobody has described."""
_BOUNDS = {
    "minimum": "&ge; {}",
    "exclusiveMinimum": "&gt; {}",
    "maximum": "&le; {}",
    "minLength": "at least {} long",
    "maxLength": "at most {} long",
    "minItems": "at least {}",
    "maxItems": "at most {}",
}
_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem 1.5rem 4rem }
code, .method { font: .9em/1.4 ui-monospace, monospace }
h2 { margin-top: 3rem; border-bottom: 1px solid #8886 }
h3 { margin: 2rem 0 .3rem }
p { margin: .3rem 0 }
.method { display: inline-block; min-width: 4.5em; font-weight: bold; text-transform: uppercase }
.get { color: #2a7ab0 } .post { color: #2b8a3e } .delete { color: #c0392b }
table { border-collapse: collapse; margin: .6rem 0; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #8883 }
td:first-child { white-space: nowrap; width: 16rem }
.quiet { opacity: .7 }
"""


def page(document: dict[str, Any]) -> str:
    title, version = escape(document["info"]["title"]), escape(document["info"]["version"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title} {version}: what it answers</title><style>{_STYLE}</style>"
        f"<h1>{title} {version}</h1><p>{escape(document['info']['description'])}"
        "<p>A key goes into <code>Authorization: Bearer …</code>, where the operator gives them out. "
        "For programs, the same is <a href='openapi.json'>openapi.json</a>."
        f"{''.join(_operations(document))}{_errors(document)}{''.join(_shapes(document))}</html>"
    )


def _operations(document: dict[str, Any]) -> Iterator[str]:
    groups: dict[str, list[str]] = {"Models": [], "The gateway": [], "Operators": []}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups[_group(path)].append(_operation(method, path, operation))
    for name, told in groups.items():
        yield f"<h2>{name}</h2>{''.join(told)}"


def _group(path: str) -> str:
    if path in set(Route):
        return "Models"
    return "Operators" if path.startswith(_OPERATORS) else "The gateway"


def _operation(method: str, path: str, operation: Schema) -> str:
    return (
        f"<h3 id='{escape(operation['operationId'])}'><span class='method {method}'>{method}</span>"
        f"<code>{escape(path)}</code></h3><p>{escape(operation['summary'])}."
        f"{_prose(operation)}{_rows(map(_parameter, operation.get('parameters', ())))}"
        f"{_body('Takes', operation.get('requestBody', {}))}{''.join(_answers(operation['responses']))}"
    )


def _prose(told: Schema) -> str:
    return f"<p>{escape(told['description'])}" if told.get("description") else ""


def _parameter(parameter: Schema) -> tuple[str, str]:
    needed = "" if parameter["required"] else " <span class=quiet>(optional)</span>"
    return escape(parameter["name"]), f"{_type(parameter['schema'])}, in the {parameter['in']}{needed}"


def _answers(responses: Schema) -> Iterator[str]:
    for status, response in responses.items():
        if status < "400":
            said = response["description"]
            verb = f"Answers {status}" + ("" if said == _FASTAPIS else f" <span class=quiet>({escape(said)})</span>")
            yield _body(verb, response) or f"<p>{verb}"


def _body(verb: str, body: Schema) -> str:
    """Each type that it may be of, with its shape where it has one."""
    kinds = [
        f"<code>{escape(media)}</code>{': ' + _type(told['schema']) if told.get('schema') else ''}"
        for media, told in body.get("content", {}).items()
    ]
    return f"<p>{verb} {' or '.join(kinds)}" if kinds else ""


def _errors(document: dict[str, Any]) -> str:
    codes: dict[str, dict[str, None]] = {}
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    found = (code for code in response["description"].split(", ") if code.isidentifier())
                    codes.setdefault(status, {}).update(dict.fromkeys(found))
    rows = ((status, ", ".join(f"<code>{escape(code)}</code>" for code in codes[status])) for status in sorted(codes))
    return f"<h2 id=errors>Errors</h2><p>All have {_link('ErrorBody')}, and one of these codes in it.{_rows(rows)}"


def _shapes(document: dict[str, Any]) -> Iterator[str]:
    yield "<h2>Shapes</h2>"
    for name, schema in sorted(document["components"]["schemas"].items(), key=lambda each: _short(each[0])):
        needed = schema.get("required", ())
        fields = (
            (escape(field), _type(of) + ("" if field in needed else " <span class=quiet>(optional)</span>"))
            for field, of in schema.get("properties", {}).items()
        )
        told = _rows(fields) if "properties" in schema else f"<p>{_type(schema)}"
        yield f"<h3 id='{escape(name)}'>{escape(_short(name))}</h3>{_prose(schema)}{told}"


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        return _link(schema["$ref"].rpartition("/")[2])
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(each) for each in choices if each.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"<code>{escape(str(each))}</code>" for each in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    bounds = "".join(", " + told.format(schema[name]) for name, told in _BOUNDS.items() if name in schema)
    match schema.get("type"):
        case "array":
            return f"list of {_type(schema.get('items') or {})}{bounds}"
        case "object" if isinstance(values := schema.get("additionalProperties"), dict) and values:
            return f"object of {_type(values)}"
        case None:
            return "anything"
        case kind:
            return f"{kind}{bounds}"


def _link(name: str) -> str:
    return f"<a href='#{escape(name)}'>{escape(_short(name))}</a>"


def _short(name: str) -> str:
    """Of two that have the same name, the document has the whole one."""
    return name.rpartition(".")[2]


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    told = "".join(f"<tr><td><code>{name}</code><td>{text}" for name, text in rows)
    return f"<table>{told}</table>" if told else ""
