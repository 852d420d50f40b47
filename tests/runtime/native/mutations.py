"""Changes to JSON documents that nobody vouches for: hypothesis draws where, what kind, and the strange value."""
from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

NOT_READ = ("golden", "provenance", "parity")  # fields of bundle.json that the C library passes over


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value below a node, what the C library does not read left out."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        if path or name not in NOT_READ:
            yield (*path, name)
            yield from places(child, (*path, name))


def at(node: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        node = node[name]
    return node


STRANGE_TEXTS = st.sampled_from(
    ["", "..", "../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "-", "x\0y", "x\n", "x\x7f\x1b[2J", "\u202ereversed",
     "\u2028", "ü", "\U0001f600", "x" * 128, "x" * 129, "y" * 5000, "fp32", "float32", "float16", "k", "batch", "lookwhere",
     "segment", "0" * 64, "A" * 64, "selector", "-> prefix", "lowres(batch"]
)  # fmt: skip
STRANGE_NUMBERS = st.sampled_from(
    [-(10**30), -(2**63), -1, 0, 1, 2, 64, 65536, 65537, 2**31, 2**63 - 1, 2**64, 10**30, 1 << 1100,
     0.5, 1.0, -0.0, 1e-4, 1e300]
)  # fmt: skip
STRANGE = (
    STRANGE_TEXTS
    | STRANGE_NUMBERS
    | st.sampled_from([None, True, False, float("nan"), float("inf"), [], {}, [[]], [None], {"": 0}, "nested", "nested too"])
    | st.text(max_size=8)
    | st.integers(-3, 1200)
    | st.floats(-2, 2)
)


def nested(value: Any) -> Any:
    """Put 300 brackets where a value says so."""
    for name, step in (("nested", lambda inner: [inner]), ("nested too", lambda inner: {"a": inner})):
        if value == name:
            for _ in range(300):
                value = step(value)
    return value


def mutated(data: st.DataObject, document: Any) -> None:
    """Change one thing in a document."""
    path = data.draw(st.sampled_from(list(places(document))))
    parent, name = at(document, path[:-1]), path[-1]
    own = "rename" if isinstance(parent, dict) else "twice"
    change = data.draw(st.sampled_from(["set", "set", "drop", "copy", "add", own]))
    if change == "set":
        parent[name] = nested(data.draw(STRANGE))
    elif change == "copy":
        parent[name] = copy.deepcopy(at(document, data.draw(st.sampled_from(list(places(document))))))
    elif change == "drop":
        del parent[name]
    elif change == "rename":
        parent[data.draw(STRANGE_TEXTS)] = parent.pop(name)
    elif change == "twice":
        parent.insert(name, copy.deepcopy(parent[name]))
    elif isinstance(parent, list):
        parent.insert(name, data.draw(STRANGE))
    else:
        parent[data.draw(STRANGE_TEXTS)] = data.draw(STRANGE)
