"""The report: well-formed, whole without the network, and true to the numbers."""

import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from mrcnn.report import Report, line_chart, loss_curves, write_report

FIGURES = {
    "segm": {"AP": 0.6123, "AP50": 0.9, "APl": -1.0, "AR100": 0.7},
    "bbox": {"AP": 0.5, "AP50": 0.8, "APl": -1.0, "AR100": 0.65},
}
HISTORY = [
    {"step": 10, "loss": 4.0, "loss_mask": 3.0, "loss_classifier": 1.0},
    {"step": 20, "loss": 2.0, "loss_mask": 1.5, "loss_classifier": 0.5},
    {"step": 20, "eval": {"segm": {"AP": 0.3}, "bbox": {"AP": 0.2}}},
]


class Page(HTMLParser):
    """Open and close tags in balance, and everything that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "path", "rect", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in ("path", "rect", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def page(tmp_path):
    """The text of a report, and it parsed."""
    report = Report(
        title="Cells <& more>",
        introduction="Trained on one image.",
        facts=[("mask AP", "0.612")],
        figures=FIGURES,
        evaluated_on="3 images",
        history=HISTORY,
        pictures=[[("prediction", Image.new("RGB", (30, 20), "red")), ("truth", Image.new("RGB", (30, 20)))]],
        settings={"Training": {"lr": 0.01}},
        next_commands=[("Predict:", "mrcnn predict a.safetensors b.png")],
    )
    write_report(tmp_path / "report.html", report)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_it_is_well_formed_and_escaped(page):
    text, parsed = page
    assert parsed.open == []
    assert "Cells &lt;&amp; more&gt;" in text
    words = " ".join(parsed.words)
    for expected in (
        "0.612",
        "Trained on one image.",
        "3 images",
        "0.01",
        "mrcnn predict a.safetensors b.png",
    ):
        assert expected in words


def test_it_needs_no_network(page):
    text, parsed = page
    assert all(source.startswith("data:image/jpeg;base64,") for source in parsed.sources)
    assert len(parsed.sources) == 2
    assert re.findall(r"https?://[^\"']+", text.replace("http://www.w3.org/2000/svg", "")) == []
    picture = Image.open(io.BytesIO(base64.b64decode(parsed.sources[0].partition(",")[2])))
    assert picture.size == (30, 20)
    red, green, blue = picture.convert("RGB").getpixel((15, 10))
    assert red > 240
    assert max(green, blue) < 20


def test_figures_stand_in_their_row_and_absent_sizes_are_dashes(page):
    rows = re.findall(r"<tr[^>]*><td>(\w+)</td><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td><td>", page[0])
    assert rows == [
        ("AP", "0.612", "0.500"),
        ("AP50", "0.900", "0.800"),
        ("APl", "–", "–"),
        ("AR100", "0.700", "0.650"),
    ]


def points(svg):
    """The lines of a chart, by name, in pixels."""
    space = {"s": "http://www.w3.org/2000/svg"}
    lines = ElementTree.fromstring(svg).findall("s:polyline", space)
    return {
        line.find("s:title", space).text: [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in lines
    }


def test_lines_are_drawn_to_scale():
    lines = points(line_chart({"a": [(0, 0.0), (50, 5.0), (100, 10.0)]}, "loss"))
    (x0, y0), (x1, y1), (x2, y2) = lines["a"]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y0 > y2  # up is more
    assert x2 > x0


def test_loss_curves_have_every_part():
    lines = points(loss_curves(HISTORY))
    assert set(lines) == {"total", "mask of a region", "class of a region"}
    assert lines["total"][0][1] < lines["mask of a region"][0][1]  # 4.0 is above 3.0


@pytest.mark.parametrize(
    "series",
    [{}, {"a": []}, {"a": [(1, 0.5)]}, {"a": [(1, float("nan")), (2, 1e-7)]}, {"a": [(0, 0.0)]}],
)
def test_charts_of_little_data_are_still_charts(series):
    ElementTree.fromstring(line_chart(series, "loss"))


def test_a_report_without_evaluation_or_pictures(tmp_path):
    report = Report("t", "i", [], {}, "nothing", [])
    write_report(tmp_path / "report.html", report)
    assert Page((tmp_path / "report.html").read_text()).open == []
