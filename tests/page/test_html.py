import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from ticketlab.figures import encode
from ticketlab.page import html as pages
from ticketlab.page.blocks import Page, Picture, Section, Table, Text

VOID = {"meta", "link", "br", "img"}


class Outline(HTMLParser):
    """Names and attributes of all elements; fails where one is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open, self.found = [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outline(text):
    parser = Outline()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser.found


def html(page):
    return pages.html(page, {picture.name: encode(picture.figure, "svg")["svg"] for picture in page.pictures})


def drawing(name="curve"):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4], color="black", label="a < b")
    axes.set_title("x & y")
    axes.legend()
    return Picture(name, "a line", 'goes "up" & on', figure)


@pytest.fixture
def page():
    table = Table("numbers", "all <numbers>", ("level", "accuracy"), [("0", "97.5"), ("1", "<b>98</b>")])
    blocks = [Text("plain & simple"), Text("method: imp\n  <x>", is_code=True), table, drawing("one"), drawing("two")]
    return Page("run-1 <i>", ["It <went> well."], [Section("all", "All & sundry", blocks)], "stand-in & data")


def test_the_page_is_well_formed_and_escapes_what_comes_from_outside(page):
    text = html(page)
    tags = [tag for tag, _ in outline(text)]
    assert tags.count("svg") == 2 and tags.count("table") == 1 and tags.count("pre") == 1
    assert not {"b", "i", "went", "x", "numbers"} & set(tags)
    assert "&lt;b&gt;98&lt;/b&gt;" in text and "stand-in &amp; data" in text


def test_the_page_loads_nothing_and_runs_nothing(page):
    found = outline(html(page))
    assert not {"script", "img", "iframe", "object"} & {tag for tag, _ in found}
    links = [attributes[name] for _, attributes in found for name in ("href", "src") if name in attributes]
    assert links and all(re.match(r"#|data/|figures/|data:,$", link) for link in links)
    assert "@import" not in html(page) and not re.search(r"url\((?!#)", html(page))


def test_drawings_keep_their_text_follow_the_pages_colours_and_say_what_they_show():
    picture = drawing()
    text = str(pages.inline_svg(picture, encode(picture.figure, "svg")["svg"]))
    drawn = ElementTree.fromstring(text)
    assert drawn.attrib["role"] == "img" and drawn.attrib["aria-label"] == 'goes "up" & on'
    said = {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"x & y", "a < b"} <= said
    assert "#000000" not in text and "#ffffff" not in text and "currentColor" in text


def test_names_inside_drawings_do_not_meet(page):
    names = [attributes["id"] for _, attributes in outline(html(page)) if "id" in attributes]
    assert len(names) == len(set(names))
    one = {name for name in names if name.startswith("one-")}
    assert "one-figure_1" in one and "two-figure_1" in names
    references = re.findall(r'(?:url\(#|href="#)([\w.-]+)', html(page))
    assert set(references) <= {*names, "all"}


def test_the_same_page_is_the_same_file(page):
    assert html(page) == html(page)


def test_a_table_without_data_of_its_own_is_kept_as_it_is_shown(page):
    assert page.tables[0].records() == [{"level": "0", "accuracy": "97.5"}, {"level": "1", "accuracy": "<b>98</b>"}]
