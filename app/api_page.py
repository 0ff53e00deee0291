"""docs/api.md, made from the OpenAPI document: `make docs` runs `python -m app.api_page docs/api.md`."""

import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from app.errors import PROBLEM_MEDIA_TYPE
from app.main import create_app
from app.negotiation import JSON_MEDIA_TYPE
from app.settings import AppSettings

Schema = Mapping[str, Any]

_HEAD = """\
# API reference

Every address of the service, with what it takes and answers. The running service has the same at `/docs`, \
and as OpenAPI at `/openapi.json`. [HTTP](http.md) tells how jobs, waiting, errors and keys work. \
This page is made from that document by `make docs`.
"""
_ERRORS_IN_COMMON = ("401", "403", "default")  # of all addresses that take a key
_MAX_EXAMPLE = 800  # characters; longer ones are left out
_NOT_RUN = "<!-- long: with an id or a file of yours -->\n"


def document() -> dict[str, Any]:
    """Return the OpenAPI document, of which the page shows nothing that depends on settings."""
    settings = AppSettings(redis_url="redis://127.0.0.1:1", weights_dir=Path(__file__).parents[1] / "weights")
    return create_app(settings).openapi()


def page_of(document: Mapping[str, Any]) -> str:
    """Return the page: the operations by tag, then the shapes that they name."""
    shapes: Mapping[str, Schema] = document["components"]["schemas"]
    parts = [_HEAD]
    bodies: dict[str, str] = {}  # shapes that are shown where they are sent → where
    for tag in document["tags"]:
        heading = tag.get("x-displayName", tag["name"].capitalize())
        parts.append(f"\n## {heading}\n{tag['description']}\n")
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation["tags"]:
                    bodies |= dict.fromkeys(_refs_of_body(operation), f"{method.upper()} {path}")
                    parts.append("".join(_operation(method, path, operation, shapes)))
    parts.append("\n## Shapes\nOf bodies and of what is in them, by name.\n")
    for name, shape in sorted(shapes.items()):
        parts.append("".join(_shape(name, shape, bodies.get(name))))
    return "".join(parts)


def _operation(method: str, path: str, operation: Schema, shapes: Mapping[str, Schema]) -> Iterator[str]:
    summary = operation["summary"] + ("" if operation["summary"].endswith("?") else ".")
    yield f"\n### {method.upper()} {path}\n**{summary}** {operation.get('description', '')}\n"
    parameters = operation.get("parameters", ())
    if parameters:
        yield "\n| parameter | in | type | default | meaning |\n|---|---|---|---|---|\n"
    for each in parameters:
        default = "required" if each.get("required") else _literal(each["schema"].get("default"))
        told = (type_of(each["schema"]), default, each.get("description", ""))
        yield _row(f"`{each['name']}`", each["in"], *told)
    content = operation.get("requestBody", {}).get("content", {})
    for media_type, body in content.items():
        schema = _resolved(body.get("schema", {}), shapes)
        if "properties" in schema:
            yield f"\n| field of `{media_type}` | type | default | meaning |\n|---|---|---|---|\n"
            yield from _fields(schema, shows_default=True)
        else:
            yield f"\nBody: `{media_type}`, {type_of(schema)}. {schema.get('description', '')}\n"
    yield "\n| answer | with | when |\n|---|---|---|\n"
    for status, response in sorted(operation["responses"].items()):
        if status[0] in "123":
            when = response["description"].replace("Successful Response", "Always.")
            yield _row(f"`{status}`", _contents(response), when)
    yield from _errors(operation["responses"])
    yield from _example(method, path, operation, content)


def _errors(responses: Mapping[str, Schema]) -> Iterator[str]:
    """Yield the failures of an operation on one line: by status, with the codes that it may have."""
    told = []
    for status, response in sorted(responses.items()):
        if status[0] in "123" or status in _ERRORS_IN_COMMON:
            continue
        told.append(f"{status} {', '.join(f'`{code}`' for code in _codes_of(response))}")
    if told:
        yield f"\nErrors: {'; '.join(told)}.\n"


def _codes_of(response: Schema) -> Iterable[str]:
    content = response["content"]
    if PROBLEM_MEDIA_TYPE in content:
        return list(content[PROBLEM_MEDIA_TYPE]["examples"])
    return [content[JSON_MEDIA_TYPE]["example"]["error"]["code"]]  # below /v1


def _contents(response: Schema) -> str:
    content = response.get("content", {})
    files = [media_type for media_type in content if media_type.startswith(("image/", "audio/", "video/"))]
    others = [
        f"`{media_type}` {_link_in(each.get('schema', {}))}".strip()
        for media_type, each in content.items()
        if media_type not in files
    ]
    headers = [f"`{name}`" for name in response.get("headers", ())]
    told = ", ".join([*others, *(f"`{media_type}`" for media_type in files)])
    return told + (f"; headers {', '.join(headers)}" if headers else "")


def _link_in(schema: Schema) -> str:
    kind = type_of(schema)
    return kind if "](#" in kind else ""


def _example(method: str, path: str, operation: Schema, content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the request as a command, with the first example of everything that it needs."""
    for each in operation.get("parameters", ()):
        if each["in"] == "path":
            path = path.replace(f"{{{each['name']}}}", str(each["schema"].get("examples", ["…"])[0]))
    command = f"curl -s {'' if method == 'get' else f'-X {method.upper()} '}localhost:8000{path}"
    if JSON_MEDIA_TYPE in content:
        examples = list(content[JSON_MEDIA_TYPE].get("examples", {}).values())
        body = examples[0]["value"] if examples else {}
        text = json.dumps(body, ensure_ascii=False)
        command = f"curl -s localhost:8000{path} -H 'Content-Type: application/json' -d {shlex.quote(text)}"
    elif content:
        return
    is_run = method == "get" and "{" not in path and not operation.get("parameters")
    if len(command) <= _MAX_EXAMPLE:
        yield f"\n{'' if is_run else _NOT_RUN}```sh\n{command}\n```\n"


def _shape(name: str, shape: Schema, sent_to: str | None) -> Iterator[str]:
    yield f"\n### {name}\n{shape.get('description', '')}\n"
    if sent_to is not None:
        yield f"The body of [{sent_to}](#{_anchor(sent_to)}).\n"
    elif "properties" in shape:
        yield "\n| field | type | meaning |\n|---|---|---|\n"
        yield from _fields(shape, shows_default=False)
    else:
        yield f"\n{type_of(shape)}\n"


def _fields(schema: Schema, *, shows_default: bool) -> Iterator[str]:
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        default = "required" if name in required else _literal(field.get("default"))
        defaults = [default] if shows_default else []
        yield _row(f"`{name}`", type_of(field), *defaults, field.get("description", ""))


def type_of(schema: Schema) -> str:
    """Return a schema's type and bounds in few words; null is left out, as a default tells it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{_anchor(name)})"
    if "anyOf" in schema:
        kinds = [type_of(each) for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return _literal(schema["const"])
    if "enum" in schema:
        return ", ".join(map(_literal, schema["enum"]))
    match schema.get("type"):
        case "array":
            first = [*schema.get("prefixItems", ()), {}][0]  # of a tuple
            items = type_of(schema.get("items", first))
            return f"list of {items}{_length(schema, 'Items', ' items')}"
        case "object":
            values = schema.get("additionalProperties")
            return f"object of {type_of(values)}" if isinstance(values, Mapping) else "object"
        case "string":
            kind = "a file" if schema.get("format") == "binary" else schema.get("format", "text")
            return f"{kind}{_length(schema, 'Length', ' characters')}"
        case "integer" | "number" as kind:
            return f"{'whole number' if kind == 'integer' else 'number'}{_bounds(schema)}"
        case "boolean":
            return "`true`, `false`"
    return "anything"


def _bounds(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f", {_number(low)} to {_number(high)}"
    bounds = {
        "above": schema.get("exclusiveMinimum"),
        "at least": low,
        "at most": high,
        "below": schema.get("exclusiveMaximum"),
    }
    return "".join(f", {words} {_number(bound)}" for words, bound in bounds.items() if bound is not None)


def _number(number: float) -> str:
    return f"{int(number) if number == int(number) else number:,}"


def _length(schema: Schema, of: str, unit: str = "") -> str:
    low, high = schema.get(f"min{of}"), schema.get(f"max{of}")
    if high is None:
        return ""
    return f", {low or 0} to {high:,}{unit}" if low else f", at most {high:,}{unit}"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _literal(value: Any) -> str:
    return "none" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _row(*cells: str) -> str:
    texts = (re.sub(r"\s+", " ", cell).replace("|", "\\|").strip() for cell in cells)
    return f"| {' | '.join(texts)} |\n"


def _resolved(schema: Schema, shapes: Mapping[str, Schema]) -> Schema:
    return shapes[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _refs_of_body(operation: Schema) -> set[str]:
    """Return the names of the shapes that are shown where they are sent."""
    bodies: Iterable[Schema] = operation.get("requestBody", {}).get("content", {}).values()
    return {body["schema"]["$ref"].rpartition("/")[2] for body in bodies if "$ref" in body.get("schema", {})}


def main() -> None:
    """Write the page to the path that is named."""
    Path(sys.argv[1]).write_text(page_of(document()))


if __name__ == "__main__":
    main()
