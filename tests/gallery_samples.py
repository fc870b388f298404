"""Tables of galleries: random ones, and a decoder that follows the documentation alone."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st

from service.report.analysis.gallery import GalleryTable


def decode(content: dict[str, Any]) -> dict[str, list[Any]]:
    """Decodes a table one byte at a time."""
    data = zlib.decompress(base64.b64decode(content["data"]))
    count = content["count"]
    table: dict[str, list[Any]] = {}
    at = 0
    for name, width in content["columns"]:
        planes = [data[at + byte * count : at + (byte + 1) * count] for byte in range(width)]
        table[name] = [int.from_bytes(bytes(plane[i] for plane in planes), "little") for i in range(count)]
        at += width * count
    shifts = zip(table["truth"], table["shift"], strict=True)
    table["class0"] = [(truth + shift) % content["classes"] for truth, shift in shifts]
    table["row"] = np.cumsum(table["gap"], dtype=int).tolist()
    if "prefix" in table:
        table["id"] = []
        previous = b""
        for shared, length in zip(table["prefix"], table["suffix"], strict=True):
            previous = previous[:shared] + data[at : at + length]
            at += length
            table["id"].append(previous.decode())
    assert at == len(data)
    return table


@st.composite
def tables(draw: st.DrawFn) -> GalleryTable:
    """Draws a table of up to 40 images with labels of one, two and four bytes."""
    count = draw(st.integers(0, 40))
    classes = draw(st.sampled_from([2, 3, 256, 257, 70_000]))
    top = draw(st.integers(1, 3))
    rows = sorted(draw(st.sets(st.integers(0, 2**31), min_size=count, max_size=count)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shares = generator.dirichlet(np.ones(4), count).cumsum(axis=1)[:, :top]
    name = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
    names = st.lists(name, min_size=count, max_size=count)
    return GalleryTable(
        rows=np.array(rows, np.int64),
        truths=generator.integers(0, classes, count),
        classes=classes,
        top=generator.integers(0, classes, (count, top)),
        rests=np.rint((1 - shares) * 9_999).astype(np.int64),  # no predicted class has probability 0
        losses=generator.integers(0, 64_473, count),
        clusters=draw(st.sampled_from([None, generator.integers(-1, 20, count)])),
        ids=draw(st.one_of(st.none(), names)),
    )


def list_columns(table: GalleryTable) -> dict[str, list[Any]]:
    """Lists the values that a decoder must find, by the name of their column."""
    columns = {"row": table.rows, "truth": table.truths, "loss": table.losses}
    for place in range(table.top.shape[1]):
        columns[f"class{place}"] = table.top[:, place]
        columns[f"rest{place}"] = table.rests[:, place]
    if table.clusters is not None:
        columns["cluster"] = table.clusters + 1
    values = {name: column.tolist() for name, column in columns.items()}
    return values | ({} if table.ids is None else {"id": list(table.ids)})
