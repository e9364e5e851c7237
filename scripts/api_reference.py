#!/usr/bin/env python3
"""Writes docs/api.md from the service's OpenAPI document.

.venv/bin/python scripts/api_reference.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import Settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"

_HEAD = """\
# API reference

Written by `scripts/api_reference.py` from the OpenAPI document that the service gives at `/openapi.json`, not by hand.
"""
_PROBLEM = "ProblemOut"
_JSON = "application/json"

Schema = Mapping[str, Any]


def render(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document."""
    named: dict[str, Schema] = dict(document["components"]["schemas"])
    routes = [
        line
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        for line in _route(method, path, operation, named)
    ]
    objects = [line for name in sorted(named) for line in _object(name, named[name], named)]
    return "\n".join([_HEAD, *routes, "## Objects", "", *objects]).rstrip() + "\n"


def _route(method: str, path: str, operation: Mapping[str, Any], named: dict[str, Schema]) -> Iterator[str]:
    yield f"## `{method.upper()} {path}`"
    yield ""
    yield _one_line(operation["description"])
    yield ""
    if parameters := operation.get("parameters"):
        yield "| parameter | in | type | |"
        yield "|---|---|---|---|"
        for parameter in parameters:
            note = _note(parameter["schema"], parameter.get("description", ""), required=parameter["required"])
            yield f"| `{parameter['name']}` | {parameter['in']} | {_type(parameter['schema'], named)} | {note} |"
        yield ""
    if body := operation.get("requestBody"):
        yield "| body | |"
        yield "|---|---|"
        for media_type, content in body["content"].items():
            yield f"| `{media_type}` | {_content(content, named)} |"
        yield ""
    yield "| answer | |"
    yield "|---|---|"
    problems = []
    for status, response in sorted(operation["responses"].items()):
        content = response.get("content", {})
        if "application/problem+json" in content:
            named.setdefault(_PROBLEM, content["application/problem+json"]["schema"])
            problems.append(f"`{status}`")
            continue
        told = response["description"]
        sentences = [] if told == "Successful Response" else [_one_line(told)]
        for media_type, body in content.items():
            shape = _content(body, named) if body.get("schema") else ""
            sentences.append(shape if media_type == _JSON and shape else f"`{media_type}` {shape}".strip())
        yield f"| `{status}` | {' '.join(sentences)} |"
    if problems:
        yield f"| {_link(_PROBLEM)} | {', '.join(problems)} |"
    yield ""


def _content(content: Mapping[str, Any], named: dict[str, Schema]) -> str:
    """The shape of a body; one that is spelled out in place gets a section of its own, or is described here."""
    schema = content.get("schema", {})
    if schema.get("type") == "object" and schema.get("properties"):
        if title := schema.get("title"):
            for name, inner in schema.get("$defs", {}).items():
                named.setdefault(name, inner)
            named.setdefault(title, schema)
            return _link(title)
        required = schema.get("required", ())
        return ", ".join(
            f"`{name}`{'' if name in required else '?'}: {_type(field, named)}"
            for name, field in schema["properties"].items()
        )
    return _type(schema, named)


def _object(name: str, schema: Schema, named: Mapping[str, Schema]) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    if "description" in schema:
        yield _one_line(schema["description"])
        yield ""
    if fields := schema.get("properties"):
        yield "| field | type | |"
        yield "|---|---|---|"
        for field, inner in fields.items():
            note = _note(inner, inner.get("description", ""), required=field in schema.get("required", ()))
            yield f"| `{field}` | {_type(inner, named)} | {note} |"
        yield ""
    elif "enum" in schema:
        yield _type(schema, named)
        yield ""


def _type(schema: Schema, named: Mapping[str, Schema]) -> str:
    if "$ref" in schema:
        return _link(schema["$ref"].rpartition("/")[2])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(_type(option, named) for option in schema[choice]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value if isinstance(value, str) else json.dumps(value)}`" for value in schema["enum"])
    match schema.get("type"):
        case "array":
            return f"list of {_type(schema.get('items', {}), named)}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return f"object of {_type(schema['additionalProperties'], named)}"
        case str(kind):
            return "file" if schema.get("format") == "binary" else kind
        case _:
            return "any"


def _note(schema: Schema, description: str, *, required: bool) -> str:
    """What there is to say of a field beside its type."""
    bounds = {
        "minimum": "at least {}",
        "exclusiveMinimum": "above {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "below {}",
        "minLength": "at least {} characters",
        "maxLength": "at most {} characters",
        "minItems": "at least {} items",
        "maxItems": "at most {} items",
    }
    options = [schema, *schema.get("anyOf", ())]
    parts = [_one_line(description)] if description else []
    parts += [words.format(option[key]) for option in options for key, words in bounds.items() if key in option]
    if schema.get("default") not in (None, [], {}):
        parts.append(f"default `{schema['default']}`")
    elif not required:
        parts.append("optional")
    return "; ".join(parts)


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(create_app(Settings()).openapi()))


if __name__ == "__main__":
    main()
