"""What the command line tells of attacks: the list, and one attack's card with its parameters."""

from typing import Any

from pydantic_core import PydanticUndefined

from muaudit import registry as attacks
from muaudit.errors import EnvironmentFault


def listing() -> list[dict[str, Any]]:
    """One dictionary a registered attack; one that does not load says why under `error`."""
    rows: list[dict[str, Any]] = []
    for name, found in attacks.registered().items():
        if isinstance(found, attacks.Broken):
            rows.append({"name": name, "package": found.package, "error": found.reason})
        else:
            kind = found.attack
            rows.append({"name": name, "package": found.package, "access": kind.access, "summary": kind.summary})
    return rows


def card(name: str) -> dict[str, Any]:
    """One attack: what it does, source, access, cost, and each parameter with type, default and meaning.

    Raises:
        UsageError: There is no such attack.
        EnvironmentFault: It is registered but does not load.
    """
    found = attacks.find(name)
    if isinstance(found, attacks.Broken):
        raise EnvironmentFault(f"{found.reason}; mend or uninstall {found.package}")
    kind = found.attack
    described = kind.model_json_schema().get("properties", {})
    meanings = _meanings(kind.__doc__ or "")
    parameters = [
        {
            "name": field,
            "type": _type(described.get(field, {})),
            "default": None if info.default is PydanticUndefined else info.default,
            "meaning": meanings.get(field, info.description or ""),
        }
        for field, info in kind.model_fields.items()
    ]
    return {
        "name": name, "package": found.package, "version": kind.version, "summary": kind.summary, "source": kind.source,
        "access": kind.access, "sided": kind.sided, "cost": kind.cost, "parameters": parameters,
        "informational": kind.informational,
    }  # fmt: skip


def text(value: list[dict[str, Any]] | dict[str, Any]) -> str:
    """The list or the card as lines for a terminal."""
    if isinstance(value, list):
        return "\n".join(
            f"{row['name']:<20} "
            + (f"does not load: {row['error']}" if "error" in row else f"{row['access']} · {row['summary']}")
            for row in value
        )
    lines = [f"{value['name']} {value['version']} ({value['package']})", f"  {value['summary']}"]
    lines += [f"  {key:<8} {value[key]}" for key in ("source", "access", "sided", "cost")]
    if value["informational"]:
        lines.append(f"  a pass says little: {value['informational']}")
    lines += ["", f"  parameters, under [attacks.{value['name']}]:"]
    lines += [
        f"    {row['name']} = {row['default']!r}  ({row['type']})\n      {row['meaning']}".rstrip()
        for row in value["parameters"]
    ]
    return "\n".join(lines)


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _meanings(docstring: str) -> dict[str, str]:
    """The lines under `Attributes:` of a Google-style docstring, by name."""
    found: dict[str, str] = {}
    last = ""
    for line in docstring.partition("Attributes:")[2].splitlines():
        name, colon, meaning = line.strip().partition(":")
        if colon and name.isidentifier():
            found[last := name] = meaning.strip()
        elif last and line.strip():
            found[last] += " " + line.strip()
    return found
