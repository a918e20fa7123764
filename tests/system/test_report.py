"""The sweep report in a browser without a network, and of a sweep that was really run."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import complaints
from sweep_store import SweepStore

from dashboards.report import main

COLUMN = "table => [...document.querySelectorAll(`#trials tbody td:nth-child(${table})`)].map(cell => cell.innerText)"
HOSTILE = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title='taken over'\">"

LEFT_WHEN_OPENED = """
new MutationObserver((_, observer) => {
  if (!document.documentElement?.dataset.opened) return;
  observer.disconnect();
  const left = [...document.querySelectorAll(".figure")].filter((figure) => !figure.firstChild);
  const seen = left.filter((figure) => {
    const { top, bottom } = figure.getBoundingClientRect();
    return bottom > 0 && top < innerHeight;
  });
  window.leftWhenOpened = [seen.length, left.length - seen.length];
}).observe(document, { attributes: true, subtree: true });
"""
"""How many figures were not drawn when the page said that it was open: on the screen, and elsewhere."""


@pytest.fixture
def opened(chromium):
    """Opens a report from its file, with the network off; ends with what the page complained of, which is nothing."""
    contexts, said = [], []

    def opens(path: Path, scheme: str = "light"):
        context = chromium.new_context(offline=True, color_scheme=scheme, viewport={"width": 1280, "height": 900})
        contexts.append(context)
        page = context.new_page()
        said.append(complaints(page))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached")
        return page

    yield opens
    for context in contexts:
        context.close()
    assert said == [[]] * len(said)


def drawn_figures(page) -> list[int]:
    """Marks (points, lines, bars, cells) in each figure."""
    marks = ".point, .js-line, .bars path, .contourlayer image, .heatmaplayer image, .contourbg path, .js-fill"
    return page.evaluate(
        "marks => [...document.querySelectorAll('.figure')].map(figure => figure.querySelectorAll(marks).length)", marks
    )


def background(page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_a_report_opens_from_its_file_draws_sorts_and_follows_the_color_scheme(opened, tmp_path):
    store = SweepStore(tmp_path)
    outcomes = [("finished", [9.0, 4.0 + number % 5, 1 + number / 7]) for number in range(9)]
    outcomes += [("stopped", [12.0]), ("failed", [30.0])]
    parent = store.sweep("browsed", outcomes, images=True)
    store.client.set_tag(store.children(parent)[10].info.run_id, "failure", HOSTILE)
    store.client.set_tag(parent, "mlflow.runName", HOSTILE)
    path = tmp_path / "report.html"
    assert main([parent, "--tracking-uri", store.uri, "--output", str(path)]) == 0

    page = opened(path)
    assert page.title() == f"{HOSTILE} · sweep report"
    assert HOSTILE in page.inner_text("h1")
    assert HOSTILE in page.inner_text("#trials")
    marks = drawn_figures(page)
    assert len(marks) >= 14
    assert all(marks), marks
    assert page.evaluate("document.documentElement.className") == ""  # no longer reading: the table shows
    assert page.locator("#trials tbody tr").last.bounding_box()["height"] > 10
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 50)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1280, "height": 900})

    assert page.evaluate(COLUMN, 2)[0] == "0"
    page.click("#trials th[title='fid'] button")
    column = page.evaluate("[...document.querySelectorAll('#trials th')].findIndex(th => th.title === 'fid') + 1")
    fids = [float(text) for text in page.evaluate(COLUMN, column)]
    assert fids == sorted(fids)
    page.click("#trials th[title='fid'] button")
    assert [float(text) for text in page.evaluate(COLUMN, column)] == sorted(fids, reverse=True)
    page.click("#trials th[title='rank'] button")
    assert page.evaluate(COLUMN, 1) == [*map(str, range(1, 10)), "–", "–"]
    page.click("#trials th[title='objective.gap_schedule'] button")

    assert background(page) == "rgb(255, 255, 255)"
    light = page.evaluate("getComputedStyle(document.querySelector('.figure .xtick text')).fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-drawn=dark]", state="attached")
    assert background(page) == "rgb(22, 25, 29)"
    assert page.evaluate("getComputedStyle(document.querySelector('.figure .xtick text')).fill") != light
    assert all(drawn_figures(page))

    page.evaluate("delete document.documentElement.dataset.drawn")
    page.locator(".figure").last.scroll_into_view_if_needed()
    page.set_viewport_size({"width": 1000, "height": 900})
    page.wait_for_selector("html[data-drawn=dark]", state="attached")
    too_wide = "box => Math.abs(box.offsetWidth - box.firstChild.offsetWidth) > 1"
    assert page.evaluate(f"[...document.querySelectorAll('.figure')].filter({too_wide}).length") == 0

    # Below all others, as a link to a panel leads: what is on the screen is drawn before what is not.
    anchored = page.context.new_page()
    anchored.add_init_script(LEFT_WHEN_OPENED)
    last = page.evaluate("[...document.querySelectorAll('.panel')].at(-1).id")
    anchored.goto(f"{path.as_uri()}#{last}")
    anchored.wait_for_selector("html[data-drawn]", state="attached")
    seen, unseen = anchored.evaluate("leftWhenOpened")
    assert seen == 0
    assert unseen > 0

    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 between the margins
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for selector, edge in (("h2, h3, .caption", "breakAfter"), (".figure, .strip, tr", "breakInside")):
        breaks = f"[...document.querySelectorAll('{selector}')].map(element => getComputedStyle(element).{edge})"
        assert set(page.evaluate(breaks)) == {"avoid"}

    dark = opened(path, "dark")
    assert dark.evaluate("document.documentElement.dataset.drawn") == "dark"
    assert dark.pdf(format="A4").startswith(b"%PDF")


def test_a_sweep_leaves_a_report_that_can_be_made_again_from_mlflow_alone(finished, opened, tmp_path):
    session, output = finished
    folder = session.storage / "one"
    assert f"report:      {folder / 'report.html'}" in output
    page = opened(folder / "report.html")
    runs = session.runs()
    parent = runs["one"]
    assert f"FID {parent.data.metrics['best/fid']:.4g}" in page.inner_text("#answer").replace("(", "").replace(")", "")
    rows = page.evaluate(
        "[...document.querySelectorAll('#trials tbody tr')].map(row => [...row.cells].map(cell => cell.dataset.value))"
    )
    names = page.evaluate("[...document.querySelectorAll('#trials th')].map(th => th.title)")
    for row in (dict(zip(names, row, strict=True)) for row in rows):
        metrics = runs[f"one-{int(row['trial']):04d}"].data.metrics
        for name in ("fid", "fid_2nfe", "time/train_s", "memory/peak_mib"):
            assert (float(row[name]) == metrics[name]) if row[name] else name not in metrics

    from mlflow import MlflowClient

    client = MlflowClient(session.tracking_uri)
    attached = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "study.journal", "sweep.yaml"} <= attached
    kept = client.download_artifacts(parent.info.run_id, "report.html", str(tmp_path))
    assert Path(kept).read_bytes() == (folder / "report.html").read_bytes()
    moved = folder.rename(folder.with_name("moved away"))
    again = tmp_path / "again.html"
    try:
        assert main(["one", "--tracking-uri", session.tracking_uri, "--output", str(again)]) == 0
    finally:
        moved.rename(folder)
    assert drawn_figures(opened(again)) == drawn_figures(page)
