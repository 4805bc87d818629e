"""What is wrong with a setting, in one sentence that names it."""

from typing import Any

from pydantic_core import ErrorDetails

MAY_HOLD_SECRETS = ("value_error", "string_type")
"""Our own checks say all that there is to say; a password in a URL is none of the log's business."""


def sentence(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if len(error["loc"]) < 2:  # a whole branch is at odds with itself: its check has said a full sentence
        return f"{context['error']}"
    shown = "" if kind in MAY_HOLD_SECRETS else f", not {_shown(error['input'])}"
    return f"{error['loc'][1]} {_fault(kind, context)}{shown}."


def _fault(kind: str, context: dict[str, Any]) -> str:
    match kind:
        case "int_parsing" | "int_from_float" | "int_type" | "int_parsing_size":
            return "must be a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return "must be a number"
        case "bool_parsing" | "bool_type":
            return "must be true or false"
        case "greater_than":
            return f"must be more than {context['gt']:g}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:.15g}"
        case "literal_error":
            return f"must be {context['expected']}"
        case "value_error":
            return str(context["error"])
    return "is not acceptable"


def _shown(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
