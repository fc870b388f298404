"""The report page: facts of a run, failed checks, formats, scripts, and the options of the command."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_samples import brightness_model, dim_and_bright, make_run, metrics, read_whole_page

from pipelines.registry import Registry
from pipelines.shards.manifest import load_manifest
from pipelines.shards.rejections import read_rejected_images
from service.cli import main
from service.models.metadata import ModelMetadata, append_metadata
from service.report.analysis.run_facts import (
    MAX_REJECTED,
    flatten_settings,
    format_setting,
    shorten_source,
)
from service.report.drawing.album import Album, Picture
from service.report.drawing.formatting import difference, duration, number, points
from service.report.drawing.plots import Line, Plot
from service.report.drawing.thumbnails import SIDE, add_thumbnail
from service.report.job import SECTIONS, list_sections, render, render_report
from service.report.options import PageOptions, ReportOptions
from service.report.pages.page import (
    break_name,
    find_instances,
    load_templates,
    pair_sections,
    remove_indentation,
)
from service.report.pages.scripts import build_policy, embed_pictures, load_scripts
from service.report.reported import find_shards
from service.report.sections import rejected
from service.report.sections.section import Section
from service.report.subject import open_model, open_run, read_manifest
from service.runs import Run

SMALL = ReportOptions(training_images=2, predictions=2)
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("page")
    shards = dim_and_bright(folder / "shards", ("train", "validation", "test"))
    load_manifest(shards).model_copy(update={"rejected": 60}).save(shards)
    lines = [f'{{"id": "a/{n}.jpg", "reason": "ends in the <middle>"}}\n' for n in range(60)]
    (shards / "rejected.jsonl").write_text("".join(lines))
    run = make_run(folder / "runs" / "tuesday", shards, brightness_model(), metrics(3))
    run.update_status(
        finished="2026-05-01T12:34:56+00:00",
        timings={"total": 3725.0},
        environment={"python": "3.11", "cpus": 2},
    )
    render_report(run, options=SMALL)
    return run


def render_sections(run: Run, out: Path, *sections: Section) -> Path:
    """Renders a page of these sections alone."""
    shards = find_shards(run)
    subject = open_run(run, shards, read_manifest(shards), SMALL)
    builders = {section.id: lambda subject, album, section=section: section for section in sections}
    return render(subject, out, PageOptions(), sections=builders)


def html_of(run: Run) -> str:
    return read_whole_page(run.report / "index.html")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("folder:/data/photos/", "photos"),
        ("folder:photos", "photos"),
        ("archive:/data/photos.zip", "photos.zip"),
        ("folder:s3://bucket/teams/photos", "photos"),
        ("synthetic:evidence", "synthetic:evidence"),
    ],
)
def test_the_name_of_a_source_is_the_last_part_of_its_path(source, name):
    assert shorten_source(source) == name


def test_two_sections_of_half_width_that_follow_each_other_share_a_row():
    assert pair_sections(["predictions", "confusion", "class_scores"]) == {"confusion", "class_scores"}
    assert pair_sections(["confusion", "gallery", "class_scores"]) == set()


def test_the_title_names_the_preset_the_data_and_the_run(run):
    html = html_of(run)
    assert re.search(r"<title>(.*?)</title>", html).group(1) == "tiny on tiny (tuesday) · glassbox"
    assert "trained in 1 h 2 min" in html
    assert "2026-05-01 12:34" in html


def test_the_settings_are_a_table(run):
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th><td>([^<]*)</td></tr>', html_of(run))
    assert ("data.image_size", "8\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}8") in rows
    assert ("preset", "tiny") in rows
    assert ("cpus", "2") in rows
    assert "{&#39;" not in html_of(run)  # no Python literals


def test_settings_are_formatted_for_readers():
    config = {
        "a": {"b": 0.001, "c": None},
        "stages": [{"epochs": 2}, {"epochs": 3}],
        "freeze": ["x", "y"],
        "on": True,
        "empty": {},
    }
    assert flatten_settings(config) == [
        ("a.b", "0.001"),
        ("a.c", "none"),
        ("stages.1.epochs", "2"),
        ("stages.2.epochs", "3"),
        ("freeze", "x, y"),
        ("on", "yes"),
        ("empty", "none"),
    ]
    assert format_setting([64, 64]) == "64\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}64"


def test_rejected_images_are_listed(run):
    html = html_of(run)
    assert "60 images of the source could not be used" in html
    assert "not among the 18 images of the shard set" in html  # the test split included
    assert "The first 50 are listed." in html
    assert html.count("ends in the &lt;middle&gt;") == 50


def test_deep_samples_are_reduced_as_for_the_training_of_the_model(run, tmp_path):
    """A bright image of 12 bits in a 16-bit PNG: 125 of 255 at levels 0:4095, nearly black at full levels."""
    file = tmp_path / "model.keras"
    brightness_model().save(file)
    append_metadata(file, ModelMetadata(("dim", "bright"), "00", (8, 8), 1, levels="0:4095"))
    Image.fromarray(np.full((8, 8), 2007, np.uint16)).save(tmp_path / "bright.png")
    shards = find_shards(run)
    subject = open_model(file, shards, read_manifest(shards), ReportOptions(samples=tmp_path))
    section = SECTIONS["samples"](subject, Album(tmp_path))
    assert section.values["predictions"][0]["top"][0]["name"] == "bright"


@pytest.mark.parametrize(
    "text", [None, "not json\n", '{"id": 3}\n', "", '{"id": "a", "reason": "cut"}\nnot json\n']
)
def test_a_list_of_rejected_images_that_is_gone_or_damaged_stops_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "rejected.jsonl").write_text(text)
    shown = read_rejected_images(tmp_path, MAX_REJECTED)
    assert shown == ((("a", "cut"),) if text and "cut" in text else ())
    section = rejected.build_section(7, shown, 2)
    assert section is not None
    html = load_templates().get_template("rejected.html").render(values=section.values)
    assert "7 images of the source could not be used" in html


def test_failed_checks_are_listed_first(run, tmp_path):
    checks = [
        {"name": "Pointing", "passed": False, "words": "It points <elsewhere>."},
        {"name": "Energy", "passed": True, "words": "Fine."},
    ]
    values = {"count": 1, "kept": 1, "listed": ()}
    section = Section("rejected", "Evaluated", values, {"checks": checks})
    html = read_whole_page(render_sections(run, tmp_path / "out", section))
    (failed,) = re.findall(r'<ul class="failed".*?</ul>', html, re.DOTALL)
    assert "<b>Pointing failed.</b> It points &lt;elsewhere&gt;." in failed
    assert "Energy" not in failed
    assert html.index("<ul class=") < html.index('class="tiles"')


def test_a_section_from_outside_brings_its_template(run, tmp_path):
    template = tmp_path / "colour.html"
    template.write_text("<p>Mean colour: {{ values.mean|number }}</p>")
    section = Section("colour", "Mean colour", {"mean": 127.5}, {"mean": 127.5}, template)
    html = read_whole_page(render_sections(run, tmp_path / "out", section))
    assert 'id="view-colour"' in html
    assert "<p>Mean colour: 128</p>" in html or "<p>Mean colour: 127.5</p>" in html


def test_registered_sections_follow_those_of_the_package(monkeypatch):
    registry = Registry("report section")
    registry.register("colour")(lambda subject, album: None)
    monkeypatch.setattr("service.report.job.MORE_SECTIONS", registry)
    assert list(list_sections()) == [*SECTIONS, "colour"]


def test_pictures_are_found_in_nested_values():
    one, two, three = (Picture(f"{n}.png", 1, 1, "") for n in range(3))
    values = {"a": [one, (two,)], "b": "text", "c": Plot("", "", [], (Line("", []),)), "d": {"e": three}}
    assert list(find_instances(values, Picture)) == [one, two, three]


def test_a_thumbnail_is_the_middle_of_a_photo_and_the_first_tiles_of_a_sheet(tmp_path):
    album = Album(tmp_path)
    photo = np.zeros((100, 140, 3), np.uint8)
    photo[:, 20:120] = 255
    sheet = np.zeros((100, 400, 3), np.uint8)
    sheet[:96, :96] = 255
    for pixels in (photo, sheet):
        small = add_thumbnail(album, album.add_sheet(pixels, "x", "words", shards="s"))
        with Image.open(tmp_path / small.file) as image:
            assert image.size == (SIDE, SIDE)
            assert min(low for low, _ in image.getextrema()) > 250
        assert small.alt == "words"
        assert album.entries[small.file]["made_from"][0]["shards"] == "s"


def test_a_single_file_needs_no_other(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\x89PNG")
    html = '<a href="pictures/a.png" class="x"><img src="pictures/a.png"></a> pictures/a.png'
    assert (
        embed_pictures(html, tmp_path)
        == '<a class="x"><img src="data:image/png;base64,iVBORw=="></a> pictures/a.png'
    )


def test_pages_without_plots_do_not_embed_the_plotting_library():
    assert len(load_scripts(plots=True)) == len(load_scripts(plots=False)) + 1
    assert "script-src 'none'" in build_policy([])


def test_indentation_is_removed_where_it_does_not_count():
    html = "<ul>\n\n  <li>a  b</li>\n\t<li>\n</ul>\n"
    assert remove_indentation(html) == "<ul>\n<li>a  b</li>\n<li>\n</ul>\n"
    kept = "<pre>\n  a\n\n  b</pre>\n<script>\n  run()\n</script>\n<textarea>\n  c</textarea>"
    assert remove_indentation(kept) == kept


def test_options_in_notes_are_kept_in_one_line():
    template = load_templates().from_string("{{ note|keep_options }}")
    shown = template.render(note="<b> from -1 to 1; override with --scale and --no-fit.")
    expected = '&lt;b&gt; from -1 to 1; override with <span class="option">--scale</span> and '
    assert shown == f'{expected}<span class="option">--no-fit</span>.'


def test_long_names_may_be_broken_between_their_parts():
    name = "folder/<b>_with__markup"
    assert break_name(name) == "folder/<wbr>&lt;b&gt;_<wbr>with__<wbr>markup"
    assert break_name("conv2d_3") == "conv2d_3"
    assert break_name("a" * 30 + "_") == "a" * 30 + "_"
    assert "\u202e" not in break_name("right_to_left_\u202ename")


def test_numbers_for_sorting_are_short():
    template = load_templates().from_string("{{ a }} {{ b }} {{ c }}")
    assert template.render(a=0.1234567891, b=1234567, c="0.1234567891") == "0.123457 1234567 0.1234567891"


def test_formats():
    assert [points(share) for share in (0.144, -0.144, 0.0, None)] == [
        "+14.4",
        f"{MINUS}14.4",
        "0.0",
        "\N{EN DASH}",
    ]
    assert difference(-0.25, digits=2, unit="%") == f"{MINUS}0.25%"
    assert number(-3.0) == f"{MINUS}3"
    assert [duration(seconds) for seconds in (0.04, 9.94, 45.4, 59.6, 200, 3600, 7500, 270000)] == [
        "0.0 s",
        "9.9 s",
        "45 s",
        "1 min",
        "3 min 20 s",
        "1 h",
        "2 h 5 min",
        "3 d 3 h",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of: runs, --model, --all. Received: none of them"),
        (["a", "--all", "b"], "one of: runs, --model, --all. Received: a --all b"),
        (["a", "b"], "one run, or --compare. Received: runs=a b"),
        (["--all", "b", "--compare"], "runs or models with --compare"),
        (["--all", "b", "--data", "c"], "--all without --data"),
        (["--model", "m.keras"], "--data and --out with --model"),
        (["a", "--out", "b"], "a run without --out"),
    ],
)
def test_options_that_do_not_fit_together(arguments, message, capsys):
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err
