"""From `tenants.toml` to tenants and their keys, or to one sentence that says what is wrong and in which line."""

import difflib
import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from app.tenant import Limits, Priority, Tenant
from app.tenants.keys import PREFIX
from app.tenants.roster import Key, Roster
from app.tenants.statements import Place, lines_of

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PRINTABLE = "must be printable text on one line"
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


class BadTenants(Exception):
    """One sentence for the person who wrote the file. It never shows a value: that may be a key."""

    def __init__(self, problem: str, line: int | None = None, path: Path | None = None) -> None:
        self.problem = problem
        self.line = line
        place = ", ".join(str(part) for part in (path, line and f"line {line}") if part)
        super().__init__(f"{place}: {problem}" if place else problem)


def load(path: Path) -> Roster:
    """Raises `BadTenants`, also for a file without tenants: nobody could come in."""
    roster = parse(read_text(path), path)
    if not roster.tenants:
        raise BadTenants("there is no [[tenant]] in it.", path=path)
    return roster


def read_text(path: Path) -> str:
    """As it is, line ends included."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise BadTenants(f"it cannot be read: {error.strerror}.", path=path) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadTenants("this is not UTF-8 text.", line, path) from None


def parse(text: str, path: Path | None = None) -> Roster:
    values = _toml(text, path)
    try:
        return _roster(_File.model_validate(values).tenant)
    except ValidationError as error:
        lines = lines_of(text)
        mistakes = error.errors(include_url=False, include_input=False)
        line, problem = min((_line(lines, each["loc"]), _sentence(each)) for each in mistakes)
        raise BadTenants(problem, line, path) from None
    except _Contradiction as error:
        lines = lines_of(text)
        problem = error.problem.format(line=_line(lines, error.other))
        raise BadTenants(problem, _line(lines, error.here), path) from None


# --- what may stand in it -----------------------------------------------------------------------------------------


def _name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise ValueError("must be 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first")
    if text.startswith(PREFIX):
        raise ValueError(f"must not begin with '{PREFIX}', as keys do")
    return text


def _digest(text: str) -> str:
    if _DIGEST.fullmatch(text) is None:
        raise ValueError(
            "must be the SHA-256 of a key, 64 hexadecimal digits, never a key itself: 'gllm keys new' writes it"
        )
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(_PRINTABLE)
    return text


Amount = Annotated[int, Field(ge=1, le=10**12)]
Text = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Limits(_Table):
    requests_per_minute: Amount | None = None
    tokens_per_minute: Amount | None = None
    concurrent: Amount | None = None

    def limits(self) -> Limits:
        return Limits(self.requests_per_minute, self.tokens_per_minute, self.concurrent)


class _Key(_Table):
    sha256: Annotated[str, AfterValidator(_digest)]
    label: Text | None = None
    created: date | None = None
    expires: date | None = None

    def key(self, tenant: Tenant) -> Key:
        return Key(bytes.fromhex(self.sha256), tenant, self.label or "", self.created, self.expires)


class _Tenant(_Limits):
    name: Annotated[str, AfterValidator(_name)]
    models: Annotated[list[Text], Field(min_length=1)] | None = None
    weight: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] = 1.0
    priority: Literal["interactive", "normal", "batch"] = "normal"
    admin: bool = False
    limits_by_model: Annotated[dict[Text, _Limits], Field(alias="limits")] = {}
    key: list[_Key] = []

    def tenant(self) -> Tenant:
        return Tenant(
            name=self.name,
            models=None if self.models is None else frozenset(self.models),
            weight=self.weight,
            priority=Priority[self.priority.upper()],
            limits=self.limits(),
            model_limits={model: each.limits() for model, each in self.limits_by_model.items()},
            admin=self.admin,
        )


class _File(_Table):
    tenant: list[_Tenant] = []


class _Contradiction(Exception):
    """Of two places; `{line}` in the problem becomes that of the other one."""

    def __init__(self, problem: str, here: Place, other: Place) -> None:
        self.problem, self.here, self.other = problem, here, other


def _roster(entries: list[_Tenant]) -> Roster:
    tenants: list[Tenant] = []
    keys: list[Key] = []
    names: dict[str, Place] = {}
    digests: dict[bytes, Place] = {}
    for number, entry in enumerate(entries):
        place: Place = ("tenant", number)
        tenant = entry.tenant()
        _once(tenant.name, names, (*place, "name"), f"tenant '{tenant.name}' stands in line {{line}} already.")
        _limits_apply(tenant, place)
        tenants.append(tenant)
        for index, each in enumerate(entry.key):
            key = each.key(tenant)
            _once(key.digest, digests, (*place, "key", index, "sha256"), "this key stands in line {line} already.")
            keys.append(key)
    return Roster(tuple(tenants), tuple(keys))


def _once(value: T, seen: dict[T, Place], here: Place, problem: str) -> None:
    before = seen.setdefault(value, here)
    if before is not here:
        raise _Contradiction(problem, here, before)


def _limits_apply(tenant: Tenant, place: Place) -> None:
    for model in tenant.model_limits:
        if not tenant.may_use(model):
            problem = "limits are for a model that is not among those of line {line}."
            raise _Contradiction(problem, (*place, "limits", model), (*place, "models"))


# --- what is wrong with it ----------------------------------------------------------------------------------------


def _toml(text: str, path: Path | None) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        words, at, place = str(error).partition(" (at ")
        found = re.match(r"line (\d+),", place)
        line = int(found[1]) if found else text.count("\n") + 1
        why = f": {words}" if at and PREFIX not in words else ""
        raise BadTenants(f"this is not valid TOML{why}.", line, path) from None
    except (RecursionError, ValueError):
        raise BadTenants("something in it is nested too deeply, or a number too long.", path=path) from None


def _line(lines: dict[Place, int], place: Place) -> int:
    """Of the thing itself, or of the nearest one around it that has a line."""
    return next((lines[place[:length]] for length in range(len(place), 0, -1) if place[:length] in lines), 1)


def _sentence(error: ErrorDetails) -> str:
    names = [each for each in error["loc"] if isinstance(each, str) and each != "[key]"]
    name = (names[-1] if names else "") or "a name"
    shown = "a key" if name.startswith(PREFIX) else name
    match error["type"]:
        case "missing":
            return f"{shown} is missing."
        case "extra_forbidden":
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            return f"{shown} is not a field that is known here{f' (did you mean {near[0]}?)' if near else ''}."
        case "list_type" | "model_type" if name in _HEADERS:
            return f"{shown} must be written as {_HEADERS[name]}, one for each."
    return f"{shown} {_fault(error['type'], error.get('ctx', {}))}."


_HEADERS = {"tenant": "[[tenant]]", "key": "[[tenant.key]]"}
_FIELDS = [field.alias or name for table in (_Tenant, _Key, _File) for name, field in table.model_fields.items()]


def _fault(kind: str, context: dict[str, Any]) -> str:
    match kind:
        case "string_type":
            return "must be text in quotes"
        case "string_unicode":
            return _PRINTABLE
        case "string_too_short":
            return "must not be empty"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "int_type":
            return "must be a whole number"
        case "float_type" | "finite_number":
            return "must be a number"
        case "bool_type":
            return "must be true or false"
        case "date_type":
            return "must be a date, such as 2030-01-31, without quotes"
        case "list_type":
            return "must be a list"
        case "too_short":
            return "must name at least one model; leave it out for all of them"
        case "dict_type" | "model_type":
            return "must be a table"
        case "greater_than":
            return f"must be more than {context['gt']:g}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:,}"
        case "literal_error":
            return f"must be {context['expected']}"
        case "value_error":
            return str(context["error"])
    return "is not acceptable"
