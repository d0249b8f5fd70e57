"""The report: its numbers and figures, and that the file stands alone."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from voc_rl.errors import VOCError
from voc_rl.reports.plots import DARK, LIGHT, Theme
from voc_rl.reports.report import FIGURES, ReportData, write_report
from voc_rl.reports.run_report import write_run_report

NRMSE = {"constant": 0.152, "td": 0.0801, "voc": 0.0652, "mc": 0.0601, "one_step": 0.1203, "voc_head": 0.0588}


EMPTY = np.zeros(0)
NO_PICTURES: dict[str, Any] = {
    "predictions": {},
    "episode_values": {},
    "real_futures": EMPTY,
    "sampled_futures": EMPTY,
    "originals": EMPTY,
    "reconstructions": EMPTY,
    "code_counts": EMPTY,
    "curves": [],
}


def full_metrics() -> dict[str, Any]:
    """The metrics of a small run with everything in it."""
    rows: dict[str, dict[str, Any]] = {
        name: {"error": 0.1 + v, "nrmse": v, "mae": 8 * v, "bias": -0.25, "cpu_seconds": 61.4}
        for name, v in NRMSE.items()
    }
    rows["voc"] |= {"spearman": 0.837, "pearson": 0.861}
    rows["constant"] |= {"spearman": None, "pearson": float("nan")}
    return {
        "task": "walker-walk",
        "gamma": 0.9,
        "r_max": 2.0,
        "methods": rows,
        "seconds": {"collect": 71.3, "train_quantizer": 84.0},
        "stage_peak_memory_bytes": {"collect": 1.5e9, "train_quantizer": None},
        "quantizer": {"use": 0.93, "perplexity": 141.2, "psnr": 27.31},
        "versions": {"python": "3.11.9"},
    }


def some_data(**changes: Any) -> ReportData:
    """What the report of that run shows."""
    rng = np.random.default_rng(0)
    truth = rng.gamma(4.0, 1.5, 60)
    spread = {"voc": 1.0, "voc_head": 0.8, "mc": 0.8, "td": 1.2, "one_step": 2.0, "constant": 0.0}
    predictions = {name: truth + rng.normal(0, s, 60) if s else np.full(60, 6.0) for name, s in spread.items()}
    frames = rng.integers(0, 255, (30, 3, 16, 16), dtype=np.uint8)
    futures = rng.integers(0, 255, (2, 3, 4, 3, 16, 16), dtype=np.uint8)
    data = ReportData(
        metrics=full_metrics(),
        truth=truth,
        predictions=predictions,
        intervals={name: (predictions[name] - 1, predictions[name] + 1) for name in ("voc", "voc_head")},
        covers={"voc": "90 % for the mean over samples"},
        episode_frames=frames,
        episode_truth=np.where(np.arange(30) < 20, np.sin(np.arange(30)), np.nan),
        episode_values={"voc": (np.ones(30), np.zeros(30), 2 * np.ones(30))},
        gammas=(0.5, 0.8, 0.95),
        context_frames=frames[:2],
        real_futures=futures,
        sampled_futures=futures[::-1],
        originals=frames[:4],
        reconstructions=frames[1:5],
        code_counts=rng.integers(0, 9, (4, 24)),
        curves=[{"stage": "occupancy", "step": i, "loss": 2 / (i + 1), "head": 3 / (i + 1)} for i in range(9)],
    )
    return replace(data, **changes)


@pytest.fixture(scope="module", autouse=True)
def coarse_figures() -> None:
    """As sharp as they are for users: pictures are what is tested here."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of the small run."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, some_data())
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """All tags of a page, and whether they are nested and closed rightly."""

    EMPTY = frozenset({"meta", "img", "source", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def text_of(page: str) -> str:
    """The words of a page in one line."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_report_shows_the_numbers_of_the_run(page: str) -> None:
    words = text_of(page)
    for text in (
        "walker-walk",
        "γ = 0.9",
        "6.5 %",
        "5.9 %",
        "15.2 %",
        "0.84",
        "0.86",
        "−0.25",
        "61",
        "r_max = 2.",
    ):
        assert text in words
    assert "93 % of the codes in use" in words
    assert "PSNR 27.3 dB" in words
    assert "2 min 35 s all stages together, before this report" in words
    assert "1.50 GB peak memory, before this report" in words
    assert "Interval of VOC samples: 90 % for the mean over samples (it holds" in words
    assert "Interval of VOC head: what it covers was not recorded" in words
    assert "nan" not in words.lower()


def test_report_says_the_standing_of_both_estimates(page: str) -> None:
    words = text_of(page)
    assert "The VOC head has the lowest error (NRMSE 5.9 %)" in words
    rows = re.findall(r'<tr><td><b>(VOC [a-z]+)</b></td>((?:<td class="(?:win|tie|loss)">[^<]*</td>)+)</tr>', page)
    cells = {name: re.findall(r'class="(\w+)">([^<]*)<', row) for name, row in rows}
    assert cells["VOC samples"][0] == ("tie", "≈ ties +8 %")  # against mc: 0.0652 / 0.0601
    assert [outcome for outcome, _ in cells["VOC samples"]] == ["tie", "win", "win", "win"]
    assert [outcome for outcome, _ in cells["VOC head"]] == ["tie", "win", "win", "win"]


def test_report_stands_alone_and_is_well_formed(page: str) -> None:
    tags = Tags(page)
    assert tags.open == []
    assert not any(tag in ("script", "link", "iframe", "object") for tag, _ in tags.found)
    for tag, attributes in tags.found:
        for key in ("src", "srcset", "href"):
            target = attributes.get(key) or "#"
            assert target.startswith(("data:image/png;base64,", "#")), f"{tag} {key} leads outside"
        if tag == "img":
            assert attributes["alt"]
    anchors = {a["href"][1:] for tag, a in tags.found if tag == "a" and a["href"]}
    assert anchors == {a["id"] for tag, a in tags.found if tag == "section" and "id" in a}
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)


def test_every_figure_is_there_for_light_and_dark(page: str) -> None:
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) == 2 * len(FIGURES)
    corners = []
    for data in pictures:
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        picture.load()
        corners.append("#" + np.asarray(picture.convert("RGB"))[0, -1].tobytes().hex())
    assert set(corners[0::2]) == {DARK.background}
    assert set(corners[1::2]) == {LIGHT.background}


def test_texts_from_outside_are_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&'
    metrics = full_metrics() | {
        "task": evil,
        evil: evil,
        "versions": {evil: [evil]},
        "methods": {evil: {"nrmse": 0.1}, "voc": {"nrmse": 0.2}},
    }
    write_report(tmp_path / "r.html", some_data(metrics=metrics, covers={"voc": evil}, **NO_PICTURES))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;") >= 7
    assert Tags(text).open == []


def test_a_large_run_stays_below_three_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)  # noise is the worst case for a PNG

    def noise(*shape: int) -> Any:
        return rng.integers(0, 255, (*shape, 3, 84, 84), dtype=np.uint8)

    many = rng.normal(size=5000)
    data = some_data(
        truth=many,
        predictions={name: many + rng.normal(size=5000) for name in NRMSE},
        intervals={"voc": (many - 1, many + 1)},
        episode_frames=noise(30),
        context_frames=noise(5),
        real_futures=noise(5, 3, 6),
        sampled_futures=noise(5, 3, 6),
        originals=noise(12),
        reconstructions=noise(12),
        code_counts=rng.integers(0, 99, (75, 1024)),
    )
    pictures = write_report(tmp_path / "r.html", data)
    assert (tmp_path / "r.html").stat().st_size < 3_000_000
    assert pictures.keys() == FIGURES.keys()
    assert max(map(len, pictures.values())) < 300_000


def test_missing_parts_are_said_and_nan_is_drawn(tmp_path: Path) -> None:
    bare = some_data(metrics={}, truth=EMPTY, intervals={}, **NO_PICTURES)
    write_report(tmp_path / "bare.html", bare)
    words = text_of((tmp_path / "bare.html").read_text(encoding="utf-8"))
    assert "No method has a score" in words
    assert words.count("recorded.") == len(FIGURES)
    holes = np.full(60, np.nan)
    broken = some_data(**NO_PICTURES | {
        "truth": holes, "predictions": {"voc": holes}, "intervals": {"voc": (holes, holes)},
        "episode_truth": np.full(30, np.nan), "episode_values": {"voc": (np.ones(30), np.zeros(30), 2 * np.ones(30))},
    })  # fmt: skip
    write_report(tmp_path / "nan.html", broken)


def test_files_of_figures_are_the_pictures_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, Theme]] = []

    def counted(name: str, draw: Callable[[ReportData, Theme], Figure | None]) -> Callable[..., Figure | None]:
        def once(data: ReportData, theme: Theme) -> Figure | None:
            drawn.append((name, theme))
            return draw(data, theme)

        return once

    monkeypatch.setattr("voc_rl.reports.plots.DPI", 60)
    for name, draw in FIGURES.items():
        monkeypatch.setitem(FIGURES, name, counted(name, draw))
    shown = {"originals": EMPTY, "reconstructions": EMPTY, "code_counts": EMPTY, "curves": []}
    write_run_report(tmp_path, some_data(**shown))
    assert all(drawn.count((name, theme)) == 1 for name in FIGURES for theme in (LIGHT, DARK))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    files = sorted((tmp_path / "figures").iterdir())
    assert [file.name for file in files] == ["episode.png", "futures.png", "scatter.png"]
    for file in files:
        assert f'<img src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"' in text


@pytest.mark.parametrize(("changes", "words"), [
    ({"predictions": {"voc": np.zeros(3)}}, "predictions of voc has 3 entries; truth has 60"),
    ({"gammas": (0.9,)}, "2 contexts and 1 discounts"),
])  # fmt: skip
def test_bad_input_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(VOCError, match=re.escape(words)):
        some_data(**changes)


def test_import_is_light() -> None:
    code = (
        "import sys, voc_rl.reports.report; "
        "heavy = 'mujoco gymnasium dm_control matplotlib.pyplot'; "
        "print([name for name in heavy.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
