"""Tables of galleries: random ones, and a reader that follows the documentation alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from service.report.analysis.gallery import GalleryTable


def read_columns(content: dict[str, Any]) -> dict[str, list[Any]]:
    """Reads the columns of a page as those of `list_values`."""
    count = len(content["truth"])
    ids = [content["id_start"] + name for name in content["ids"]]
    table: dict[str, list[Any]] = {"row": [], "truth": content["truth"], "ids": ids}
    for gap in content["gaps"]:
        table["row"].append(gap + (table["row"][-1] if table["row"] else 0))
    table["class0"] = [content["errors"].get(image, content["truth"][image]) for image in range(count)]
    table["loss"] = [content["losses"].get(image, 0) for image in range(count)]
    for place, rests in enumerate(content["rests"]):
        table[f"rest{place}"] = rests
        if place:
            table[f"class{place}"] = content["others"][place - 1]
    if "clusters" in content:
        table["cluster"] = content["clusters"]
    return table


@st.composite
def tables(draw: st.DrawFn) -> GalleryTable:
    """Draws a table of up to 40 images."""
    count = draw(st.integers(0, 40))
    classes = draw(st.sampled_from([2, 3, 256]))
    top = draw(st.integers(1, 3))
    rows = sorted(draw(st.sets(st.integers(0, 2**31), min_size=count, max_size=count)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shares = generator.dirichlet(np.ones(4), count).cumsum(axis=1)[:, :top]
    start = draw(st.sampled_from(["", "photos/", "photos/a"]))
    name = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).map(lambda end: start + end)
    truths = generator.integers(0, classes, count)
    most_probable = generator.integers(0, classes, (count, top))
    losses = generator.integers(0, 64_473, count)
    return GalleryTable(
        rows=np.array(rows, np.int64),
        truths=truths,
        top=most_probable,
        rests=np.rint((1 - shares) * 9_999).astype(np.int64),  # no predicted class has probability 0
        losses=np.where(truths == most_probable[:, 0], 0, losses),
        ids=draw(st.lists(name, min_size=count, max_size=count)),
        clusters=draw(st.sampled_from([None, generator.integers(-1, 20, count)])),
    )


def list_values(table: GalleryTable) -> dict[str, list[Any]]:
    """Lists the values that a reader must find, by the name of their column."""
    columns = {"row": table.rows, "truth": table.truths, "loss": table.losses}
    for place in range(table.top.shape[1]):
        columns[f"class{place}"] = table.top[:, place]
        columns[f"rest{place}"] = table.rests[:, place]
    if table.clusters is not None:
        columns["cluster"] = table.clusters
    return {name: column.tolist() for name, column in columns.items()} | {"ids": list(table.ids)}
