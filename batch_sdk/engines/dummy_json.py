"""JSON that fits a schema, or just does not, drawn from a seed: the dummy engine's structured output."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

_FORMATS = {
    "date": "2024-05-17",
    "date-time": "2024-05-17T12:30:00Z",
    "time": "12:30:00",
    "duration": "PT1H",
    "uuid": "5f0c1a52-7c5e-4c0e-9f5c-0d9a3a1d8d7e",
    "email": "ada@example.org",
    "uri": "https://example.org/",
}
_ITEMS = 3


def draw_json(schema_text: str, draws: random.Random, words: Sequence[str]) -> str:
    """Return JSON text under a schema that `typed_schema` accepts. Patterns are not followed."""
    schema = json.loads(schema_text)
    return json.dumps(_Drawer(schema, draws, words).value(schema), ensure_ascii=False)


def break_json(text: str, draws: random.Random) -> str:
    """Return a response that does not fit: cut in the middle, no JSON at all, or JSON of another shape."""
    return draws.choice([text[: len(text) // 2], f"Sure! Here it is: {text}", '[["another shape"]]'])


class _Drawer:
    def __init__(self, root: Any, draws: random.Random, words: Sequence[str]) -> None:
        self._root = root
        self._draws = draws
        self._words = words

    def value(self, schema: dict[str, Any]) -> Any:
        draws = self._draws
        while "$ref" in schema or "allOf" in schema:
            schema = self._target(schema["$ref"]) if "$ref" in schema else schema["allOf"][0]
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return self.value(draws.choice(schema[union]))
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return draws.choice(schema["enum"])
        kind = schema.get("type", "object")
        kind = draws.choice(kind) if isinstance(kind, list) else kind
        if kind == "object":
            required = schema.get("required", [])
            some = {n: p for n, p in schema["properties"].items() if n in required or draws.random() < 0.5}
            return {name: self.value(part) for name, part in some.items()}
        if kind == "array":
            least = schema.get("minItems", 0)
            count = draws.randint(least, schema.get("maxItems", least + _ITEMS))
            return [self.value(schema["items"]) for _ in range(count)]
        return self._scalar(kind, schema)

    def _target(self, ref: str) -> Any:
        found = self._root
        for part in ref[1:].split("/")[1:]:
            found = found[part.replace("~1", "/").replace("~0", "~")]
        return found

    def _scalar(self, kind: str, schema: dict[str, Any]) -> Any:
        draws = self._draws
        if kind == "string":
            text = _FORMATS.get(schema.get("format", ""), " ".join(draws.choices(self._words, k=2)))
            return text.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]
        if kind == "boolean":
            return draws.random() < 0.5
        if kind == "null":
            return None
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        low = schema.get("minimum", None if above is None else above + 1)
        high = schema.get("maximum", None if below is None else below - 1)
        if low is None:
            low = 0 if high is None else high - 100
        high = low + 100 if high is None else high
        return draws.randint(low, high) if kind == "integer" else draws.uniform(low, high)
