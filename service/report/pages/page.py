"""The page: sections into views, views into HTML, figures and pictures into the manifest."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jinja2

from pipelines.storage import write_atomically
from service.report.analysis.run_facts import About
from service.report.drawing import formatting
from service.report.drawing.album import Album, Picture
from service.report.drawing.plots import Plot
from service.report.drawing.thumbnails import thumbnail
from service.report.pages.scripts import Script, policy, scripts, with_pictures_inside
from service.report.pages.summary import Summary, doubts, verdict
from service.report.publish import KIND, MANIFEST, PAGE, VERSION
from service.report.subject import Section, Subject

T = TypeVar("T")

VIEWS = (  # name, title and sections of every view; a section that stands nowhere gets a view of its own
    ("overview", "Overview", ("diagnosis", "curves")),
    ("data", "Data", ("training_images", "augmentation", "rejected")),
    ("predictions", "Predictions", ("predictions", "confusion", "samples")),
    ("image", "Image", ("gradcam", "saliency")),
    ("layers", "Layers", ("activations",)),
    ("filters", "Filters", ("patterns", "weights", "edges")),
    ("trust", "Trust", ("trust", "distillation")),
    ("compare", "Compare", ("compare",)),
)
WIDE = 2  # times as wide as high: a picture of many channels
THUMBNAILS = (
    "predictions",
    "image",
    "filters",
    "layers",
    "data",
)  # views whose pictures stand for a run, the best ones first


@dataclass(frozen=True)
class View:
    """One part of the page that is looked at by itself."""

    name: str
    title: str
    sections: tuple[Section, ...]
    picture: Picture | None = None


@dataclass(frozen=True)
class Check:
    """Something a section holds the model to.

    Attributes:
        name: In few words.
        passed: Whether it holds.
        words: In one sentence.
    """

    name: str
    passed: bool
    words: str


@dataclass(frozen=True)
class Page:
    """Everything a report's page is written from.

    Attributes:
        subject: What it is about.
        about: Where that came from.
        summary: Its figures.
        sections: In the order of the parts.
        album: Its pictures.
        made_of: What the page depends on; with the same it need not be made again.
        home: Relative link to the page over all runs; empty for none.
        single_file: Put the pictures into the page.
    """

    subject: Subject
    about: About
    summary: Summary
    sections: Sequence[Section]
    album: Album
    made_of: Mapping[str, Any]
    home: str = ""
    single_file: bool = False

    @cached_property
    def views(self) -> list[View]:
        """The views that have something to show; the overview always."""
        left = {section.id: section for section in self.sections}
        found = []
        for name, title, ids in VIEWS:
            sections = tuple(left.pop(id_) for id_ in ids if id_ in left)
            if sections or name == "overview":
                found.append(self._view(name, title, sections))
        return found + [self._view(section.id, section.title, (section,)) for section in left.values()]

    @property
    def checks(self) -> list[Check]:
        """What the sections hold the model to."""
        found = [check for section in self.sections for check in section.figures.get("checks", ())]
        return [Check(str(check["name"]), bool(check["passed"]), str(check["words"])) for check in found]

    def _view(self, name: str, title: str, sections: tuple[Section, ...]) -> View:
        pictures = [picture for section in sections for picture in instances(section.values, Picture)]
        sheets = (
            [picture for picture in pictures if picture.width > WIDE * picture.height]
            if name in ("layers", "filters")
            else []
        )
        first = (sheets or pictures)[:1]
        return View(name, title, sections, thumbnail(self.album, first[0]) if first else None)


def write(directory: Path, page: Page) -> None:
    """Writes `index.html` and `manifest.json` beside the album's pictures. Same content, same bytes."""
    inside = scripts(
        any(not plot.is_empty for section in page.sections for plot in instances(section.values, Plot))
    )
    html = render(
        "page.html",
        inside,
        page=page,
        subject=page.subject,
        summary=page.summary,
        verdict=verdict(page.summary),
        **_notes(page),
    )
    if page.single_file:
        html = with_pictures_inside(html, directory)
        shutil.rmtree(directory / Album.FOLDER)
    write_atomically(directory / PAGE, html)
    write_json(directory / MANIFEST, manifest(page))


def render(template: str, inside: list[Script], **values: Any) -> str:
    """A page from its template, with these scripts inside."""
    return templates().get_template(template).render(scripts=inside, policy=policy(inside), **values)


def manifest(page: Page) -> dict[str, Any]:
    """What a report is made of and what it found."""
    subject, about = page.subject, page.about
    of_views = {view.name: view.picture for view in page.views}
    thumbnails = [picture for name in THUMBNAILS if (picture := of_views.get(name)) and not page.single_file]
    return {
        "kind": KIND,
        "version": VERSION,
        "name": subject.name,
        "checkpoint": subject.model_digest,
        "shards": subject.shards_digest,
        "scale": subject.scale,
        "options": subject.options.model_dump(mode="json"),
        "made_of": dict(page.made_of),
        "about": {
            key: getattr(about, key) for key in ("source", "preset", "model", "state", "finished", "seconds")
        },
        "verdict": verdict(page.summary),
        "checks": [
            {"name": check.name, "passed": check.passed, "words": check.words} for check in page.checks
        ],
        "thumbnails": [asdict(picture) for picture in thumbnails],
        "single_file": page.single_file,
        "figures": {"summary": page.summary.figures()}
        | {section.id: section.figures for section in page.sections},
        "pictures": [page.album.entries[file] for file in sorted(page.album.entries)],
    }


def write_json(path: Path, content: Any) -> None:
    """Writes a whole JSON file or none of it; null for NaN and infinity."""
    write_atomically(path, json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def templates() -> jinja2.Environment:
    """The templates of all pages; what they print is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("service.report", "html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "sort_keys": True,
        "separators": (",", ":"),
    }  # every byte is loaded with the first view
    environment.filters |= {
        name: getattr(formatting, name) for name in ("percent", "number", "signed", "points", "duration")
    }
    return environment


def instances(values: Any, kind: type[T]) -> Iterator[T]:
    """Everything of a kind in what a template is given, in order."""
    if isinstance(values, kind):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from instances(value, kind)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from instances(value, kind)
    elif is_dataclass(values):
        yield from instances(vars(values), kind)


def _notes(page: Page) -> dict[str, Any]:
    return {
        "failed": [check for check in page.checks if not check.passed],
        "doubts": doubts(page.summary, page.about.state),
    }


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
