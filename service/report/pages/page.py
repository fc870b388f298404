"""Writes the report page: groups sections into views, renders HTML, and records figures in the manifest."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2
from markupsafe import Markup, escape

from pipelines.storage import write_atomically
from pipelines.text import WHITE_SPACE, escape_html, escape_name
from service.report.analysis.run_facts import shorten_source
from service.report.drawing import formatting
from service.report.drawing.album import Album, Picture
from service.report.drawing.plots import Plot
from service.report.drawing.thumbnails import add_thumbnail
from service.report.options import PageOptions
from service.report.pages.scripts import (
    Script,
    build_policy,
    embed_pictures,
    embed_scripts,
    load_scripts,
)
from service.report.pages.summary import Summary, format_verdict, list_warnings
from service.report.pages.tutorials import list_tutorial_pictures
from service.report.pages.view_files import add_view_file
from service.report.publish import KIND, PAGE, VERSION, write_page_manifest
from service.report.sections.section import Section

if TYPE_CHECKING:  # it loads Keras, which the pages without a model do not need
    from service.report.sections.examples import ShownExample
    from service.report.subject import Subject

T = TypeVar("T")

OPTION = re.compile(r"--[a-z][a-z-]*")  # of the command line, in a note
PART_END = re.compile(r"[/_]+(?=.)")  # of a part of a path or of a name
LONG_NAME = 16  # characters

# Name, title and sections of every view; a section that is not listed gets a separate view.
VIEWS = (
    ("overview", "Overview", ("diagnosis", "curves", "dynamics")),
    ("data", "Data", ("health", "training_images", "augmentation", "rejected")),
    (
        "predictions",
        "Predictions",
        ("predictions", "confusion", "class_scores", "thresholds", "calibration", "embedding", "samples"),
    ),
    ("gallery", "Gallery", ("gallery",)),
    ("network", "Network", ("architecture",)),
    ("image", "Heatmaps", ("gradcam", "attention", "saliency")),
    ("layers", "Activations", ("activations",)),
    ("filters", "Filters", ("patterns", "ablation", "weights", "edges")),
    ("trust", "Sanity checks", ("trust", "image_checks", "linear_probes")),
    ("compare", "Checkpoints", ("compare",)),
)
# Sections that fill one of the two columns of a wide window when two of them follow each other.
HALF_WIDTH = frozenset(
    {
        "confusion",
        "class_scores",
    }
)
WIDE = 2  # ratio of width to height above which a picture is a sheet of channels
# Views whose thumbnails represent a run, the best first.
THUMBNAILS = ("predictions", "image", "filters", "layers", "data")


@dataclass(frozen=True)
class View:
    """One view of the page, shown alone.

    Attributes:
        name: Name of the view, part of its anchor.
        title: Title of the view in the navigation.
        sections: Sections of the view, in order.
        picture: Thumbnail that represents the view; None if it has no picture.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
    picture: Picture | None = None

    @property
    def examples(self) -> tuple[ShownExample, ...]:
        """The images among which the selector of the view chooses; none for a view without a selector."""
        return max((section.examples for section in self.sections), key=len, default=())

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the elements of the view that a link may lead to."""
        anchors = sorted(anchor for section in self.sections for anchor in section.anchors)
        return (*(section.id for section in self.sections), *anchors)

    @property
    def half_width(self) -> frozenset[str]:
        """Ids of the sections that share a row with a neighbour in a wide window."""
        return pair_sections([section.id for section in self.sections])


@dataclass(frozen=True)
class CheckResult:
    """The result of a check that a section reports.

    Attributes:
        name: Name of the check.
        is_passed: Whether the check passed; None if that cannot be decided.
        message: One sentence on the result.
    """

    name: str
    is_passed: bool | None
    message: str

    def figures(self) -> dict[str, Any]:
        """Returns the result for the manifest."""
        return {"name": self.name, "passed": self.is_passed, "words": self.message}


@dataclass(frozen=True)
class Page:
    """Content of a report's page.

    Attributes:
        subject: Model, data and options of the report.
        summary: Figures of the verdict.
        sections: Sections in the order in which they were built.
        album: Pictures of the sections.
        options: Format of the page.
        fingerprint: Digests of the report's inputs; a report with the same ones need not be rendered again.
    """

    subject: Subject
    summary: Summary
    sections: Sequence[Section]
    album: Album
    options: PageOptions
    fingerprint: Mapping[str, Any]

    @cached_property
    def views(self) -> list[View]:
        """The views that have sections, and always the overview."""
        return arrange_views(self.sections, self.album, required=("overview",))

    @property
    def checks(self) -> list[CheckResult]:
        """The results of all checks, in the order of the sections."""
        return [
            CheckResult(str(check["name"]), check["passed"], str(check["words"]))
            for section in self.sections
            for check in section.figures.get("checks", ())
        ]

    @property
    def anchors(self) -> frozenset[str]:
        """The ids inside sections that other sections may link to."""
        return frozenset(anchor for section in self.sections for anchor in section.anchors)

    @property
    def alerts(self) -> list[str]:
        """Warnings of the sections about mistakes that make the scores of the page wrong."""
        return [str(alert) for section in self.sections for alert in section.figures.get("alerts", ())]


def pair_sections(ids: Sequence[str]) -> frozenset[str]:
    """Selects the sections that are drawn in pairs: two of half width that follow each other.

    Args:
        ids: Ids of the sections of a view, in order.
    """
    paired: set[str] = set()
    for first, second in itertools.pairwise(ids):
        if first in HALF_WIDTH and second in HALF_WIDTH and first not in paired:
            paired |= {first, second}
    return frozenset(paired)


def arrange_views(sections: Sequence[Section], album: Album, required: Collection[str] = ()) -> list[View]:
    """Groups sections in views, in the order of `VIEWS`.

    Args:
        sections: Sections of a page.
        album: Album that receives the thumbnails of the views.
        required: Names of views that a page has even without sections.
    """
    remaining = {section.id: section for section in sections}
    views = []
    for name, title, ids in VIEWS:
        members = tuple(remaining.pop(section_id) for section_id in ids if section_id in remaining)
        if members or name in required:
            views.append(_build_view(album, name, title, members))
    for section in remaining.values():
        views.append(_build_view(album, section.id, section.title, (section,)))
    return views


def _build_view(album: Album, name: str, title: str, sections: tuple[Section, ...]) -> View:
    pictures = [picture for section in sections for picture in find_instances(section.values, Picture)]
    if name in ("layers", "filters"):
        # Prefer a sheet of channels to the photo above it.
        sheets = [picture for picture in pictures if picture.width > WIDE * picture.height]
        pictures = sheets or pictures
    return View(name, title, sections, add_thumbnail(album, pictures[0]) if pictures else None)


def write(directory: Path, page: Page) -> None:
    """Writes `index.html`, the files of its views and `manifest.json`; deterministic to the byte.

    Args:
        directory: Directory of the page, with the album's pictures.
        page: Content of the page.
    """
    plots = [plot for section in page.sections for plot in find_instances(section.values, Plot)]
    scripts = load_scripts(plots=any(not plot.is_empty for plot in plots))
    templates = load_templates(page.sections)
    values = {
        "page": page,
        "subject": page.subject,
        "facts": page.subject.facts,
        "summary": page.summary,
        "verdict": format_verdict(page.summary),
        "anchors": page.anchors,
        "failed_checks": [check for check in page.checks if check.is_passed is False],
        "tutorial_pictures": list_tutorial_pictures([section.id for section in page.sections]),
        "warnings": [*page.alerts, *list_warnings(page.summary, page.subject.facts.state)],
    }
    view_files = {}
    if not page.options.single_file:
        for view in page.views[1:]:
            html = fill_template(templates, "view.html", view=view, **values)
            view_files[view.name] = add_view_file(directory, view.name, html)
    html = fill_template(
        templates,
        "page.html",
        scripts=scripts,
        policy=build_policy(scripts),
        view_files={name: entry["file"] for name, entry in view_files.items()},
        **values,
    )
    if page.options.single_file:
        html = embed_pictures(html, directory)
        shutil.rmtree(directory / Album.FOLDER)
    write_atomically(directory / PAGE, html)
    write_page_manifest(directory, build_manifest(page, list(view_files.values())))


def render(template: str, scripts: Sequence[Script], sections: Sequence[Section] = (), **values: Any) -> str:
    """Renders a page that holds all of its views.

    Args:
        template: File name of the template.
        scripts: Scripts to embed.
        sections: Sections of the page, some of which may have their own template.
        **values: Values for the template.
    """
    templates = load_templates(sections)
    policy = build_policy(scripts)
    return fill_template(templates, template, scripts=scripts, policy=policy, view_files={}, **values)


def fill_template(templates: jinja2.Environment, name: str, /, **values: Any) -> str:
    """Fills in a template, and removes indentation from the result."""
    return remove_indentation(templates.get_template(name).render(**values))


def remove_indentation(html: str) -> str:
    """Removes indentation and empty lines from a page, except in elements where white space counts."""
    return re.sub(
        r"<(script|pre|textarea)\b.*?</\1>|\n\s+",
        lambda match: match[0] if match[1] else "\n",
        html,
        flags=re.DOTALL,
    )


def build_manifest(page: Page, view_files: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Builds the manifest: the inputs of a report, and the figures it shows.

    Args:
        page: Content of the page.
        view_files: Entries of the files of its views, see `add_view_file`.
    """
    subject = page.subject
    facts = subject.facts
    thumbnails = []
    if not page.options.single_file:
        pictures = {view.name: view.picture for view in page.views}
        thumbnails = [asdict(picture) for name in THUMBNAILS if (picture := pictures.get(name))]
    figures = {"summary": page.summary.figures()}
    for section in page.sections:
        figures[section.id] = section.figures
    return {
        "kind": KIND,
        "version": VERSION,
        "name": subject.name,
        "checkpoint": subject.model_digest,
        "shards": subject.shards_digest,
        **subject.interpretation.describe(),
        "classes": list(subject.classes),
        "matching": subject.match.note,
        "options": subject.options.model_dump(mode="json"),
        "made_of": dict(page.fingerprint),
        "about": {
            key: getattr(facts, key) for key in ("source", "preset", "model", "state", "finished", "seconds")
        },
        "verdict": format_verdict(page.summary),
        "checks": [check.figures() for check in page.checks],
        "thumbnails": thumbnails,
        "single_file": page.options.single_file,
        "figures": figures,
        "views": list(view_files),
        "pictures": [page.album.entries[file] for file in sorted(page.album.entries)],
    }


def load_templates(sections: Sequence[Section] = ()) -> jinja2.Environment:
    """Loads the templates of all pages; they escape what they print.

    Args:
        sections: Sections that may have their own template.
    """
    own_templates = {
        f"{section.id}.html": section.template.read_text(encoding="utf-8")
        for section in sections
        if section.template is not None
    }
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.DictLoader(own_templates), jinja2.PackageLoader("service.report", "html")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_format_value,
    )
    environment.policies["json.dumps_function"] = _dump_json
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    environment.filters["embed_scripts"] = embed_scripts
    environment.filters["percent"] = formatting.percent
    environment.filters["number"] = formatting.number
    environment.filters["quantity"] = formatting.quantity
    environment.filters["points"] = formatting.points
    environment.filters["duration"] = formatting.duration
    environment.filters["anchor"] = formatting.anchor
    environment.filters["sizes"] = formatting.sizes
    environment.filters["decimal"] = formatting.decimal
    environment.filters["source_name"] = shorten_source
    environment.filters["breakable"] = break_name
    environment.filters["keep_options"] = _keep_options
    return environment


def _keep_options(text: str) -> Markup:
    """Keeps options of the command line, such as `--offset`, in one line: browsers break after a hyphen."""
    return Markup(OPTION.sub(r'<span class="option">\g<0></span>', escape_html(text)))


def _format_value(value: Any) -> Any:
    """Returns what a template prints for a value; jinja then escapes the markup in it.

    Numbers that are printed without a format, as for sorting, have six significant digits. Invisible
    characters of names, such as right-to-left marks, become visible escapes.
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return escape_name(value, kept=WHITE_SPACE) if is_text else value


def break_name(name: str) -> Markup:
    """Returns a name, such as that of a layer or a file, with markup that allows line breaks between parts.

    Elsewhere in a name, lines are only broken where a part alone is too long; short names are not broken.
    """
    text = escape(escape_name(name, kept=WHITE_SPACE))
    return text if len(name) < LONG_NAME else Markup(PART_END.sub(r"\g<0><wbr>", str(text)))


def _dump_json(value: Any, **options: Any) -> str:
    """Returns the JSON of what scripts show, with the names in it escaped as those in the markup."""
    return json.dumps(_escape_names(value), **options)


def _escape_names(value: Any) -> Any:
    if isinstance(value, str):
        return escape_name(value, kept=WHITE_SPACE)
    if isinstance(value, Mapping):
        return {_escape_names(key): _escape_names(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escape_names(item) for item in value]
    return value


def find_instances(values: Any, kind: type[T]) -> Iterator[T]:
    """Finds everything of one type in the values of a template, in order.

    Args:
        values: Nested mappings, sequences and dataclasses.
        kind: Type to look for.
    """
    if isinstance(values, kind):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from find_instances(value, kind)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from find_instances(value, kind)
    elif is_dataclass(values):
        yield from find_instances(vars(values), kind)
