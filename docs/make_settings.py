"""Writes settings.md from picows_fast.options: python docs/make_settings.py

The options say everything about a setting; this only lays it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from picows_fast.options import KIB, MIB, ClientOptions, ConnectionOptions, ServerOptions

TARGET = Path(__file__).with_name("settings.md")

HEAD = """\
# Settings

Keyword arguments of `ws_connect` and `ws_create_server`, and of `ClientOptions` and
`ServerOptions`, which `connect` and `serve` take as one object. They are checked when the function
is called or the object is made: `TypeError` or `ValueError` names the one that is wrong.

This page is made from `picows_fast.options` by `docs/make_settings.py`.
"""


def default(field: Field[Any], value: object) -> str:
    """How a default is written, with its unit."""
    unit = field.metadata["unit"]
    if field.name == "auto_ping_strategy":
        return "`PING_WHEN_IDLE`"
    if field.name == "flags" and value:
        return "`socket.AI_PASSIVE`"
    if field.name == "user_agent":
        return "picows_fast/*version* Python/*version*"
    if value is None or not unit:
        return f"`{value!r}`"
    if unit == "bytes" and isinstance(value, int):
        for size, name in ((MIB, "MiB"), (KIB, "KiB")):
            if value >= size and value % size == 0:
                return f"{value // size} {name}"
    return f"{value} {unit}"


def rows(options: type[ConnectionOptions], *, own: bool) -> Iterator[str]:
    shared = {field.name: field for field in fields(ConnectionOptions)}
    server = {field.name: field for field in fields(ServerOptions)}
    yield "| setting | default | |"
    yield "|---|---|---|"
    for field in fields(options):
        if own and field.name in shared:
            continue
        shown = default(field, field.default)
        if not own and server[field.name].default != field.default:
            shown += f", server: {default(field, server[field.name].default)}"
        text = field.metadata["doc"].replace("|", "\\|")
        yield f"| `{field.name}` | {shown} | {text} |"


def render() -> str:
    """The text of settings.md."""
    parts = [HEAD]
    for title, options, own in (
        ("Both", ConnectionOptions, False),
        ("`ws_connect` only", ClientOptions, True),
        ("`ws_create_server` only", ServerOptions, True),
    ):
        parts += [f"## {title}\n", "\n".join(rows(options, own=own)) + "\n"]
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
