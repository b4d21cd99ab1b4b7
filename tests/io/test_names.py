"""Names in messages, and names that are folders or on the Hub."""

import pytest

from l2c.io.names import check_folder_or_hub, near_names


@pytest.mark.parametrize("name", ["/nope", "./nope", "a/b/c", "../x", "~/pipe"])
def test_a_missing_folder_is_called_one(name):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*; give the pipeline as a folder"):
        check_folder_or_hub("pipeline", name)


def test_folders_and_names_on_the_hub_pass(tmp_path):
    for name in (str(tmp_path), "PixArt-alpha/PixArt-XL-2-512x512", "sdxl.turbo"):
        check_folder_or_hub("pipeline", name)


def test_near_names_take_a_prefix():
    assert near_names("penaltyy", ["penalty", "seed"], "router.") == "did you mean router.penalty?"
    assert near_names("zzz", ["penalty", "seed"], "router.") == "known are router.penalty, router.seed"
