"""Whose a file in a run folder is: pictures and pages of ours say so, those of others are left alone."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from l2c.report.figures import save_figure, save_pixels
from l2c.report.own_results import check_results, is_drawn
from l2c.report.page import page_html


def drawing():
    figure = Figure()
    figure.add_subplot().plot([0, 1], label="Matplotlib")
    return figure


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_of_ours_is_told_from_one_of_matplotlib(tmp_path, suffix):
    ours, theirs = tmp_path / f"graph.{suffix}", tmp_path / f"samples.{suffix}"
    save_figure(drawing(), ours)
    drawing().savefig(theirs)
    assert (is_drawn(ours), is_drawn(theirs)) == (True, False)
    (tmp_path / "results.json").write_text('{"command": 1, "machine": 1, "results": 1}')
    with pytest.raises(ValueError, match=f"samples.{suffix} would be overwritten, which is no result of an earlier"):
        check_results(tmp_path, ["samples.*", "graph.*"])
    check_results(tmp_path, ["graph.*"])
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.png").mkdir()
    check_results(tmp_path, ["cells/*"])  # whose files are looked at where they are made
    with pytest.raises(ValueError, match="cells is no file, and the run writes one of that name"):
        check_results(tmp_path, ["cell*"])


def test_images_and_pages_say_whose_they_are(tmp_path):
    pixels = Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8))
    save_pixels(pixels, tmp_path / "image-0000.png")
    pixels.save(tmp_path / "image-0001.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image-0000.png")), np.asarray(pixels))
    (tmp_path / "report.html").write_text(page_html("title", "lead", {}, ()))
    (tmp_path / "page.html").write_text("<!doctype html><title>mine</title>")
    files = ("image-0000.png", "image-0001.png", "report.html", "page.html")
    assert [is_drawn(tmp_path / file) for file in files] == [True, False, True, False]
