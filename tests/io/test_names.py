"""Names in messages, and names that are folders or on the Hub."""

import pytest

from l2c.io.names import folder_or_hub, near_names


@pytest.mark.parametrize("name", ["/nope", "./nope", "a/b/c", "../x", "~/pipe"])
def test_a_missing_folder_is_called_one(name):
    sentence = r"there is no folder .*; give the pipeline as a folder"
    with pytest.raises(FileNotFoundError, match=sentence), folder_or_hub("pipeline", name):
        pass


def test_folders_and_names_on_the_hub_pass(tmp_path):
    read = []
    for name in (str(tmp_path), "PixArt-alpha/PixArt-XL-2-512x512", "sdxl.turbo"):
        with folder_or_hub("pipeline", name):
            read.append(name)
    assert len(read) == 3


def test_what_the_hub_does_not_give_is_said_in_one_sentence(tmp_path):
    sentence = r"no folder nothing here, and the Hub gives no pipeline"
    with pytest.raises(FileNotFoundError, match=sentence), folder_or_hub("pipeline", "nothing"):
        raise OSError("a paragraph\nof several lines")
    with pytest.raises(OSError, match="of several lines"), folder_or_hub("pipeline", str(tmp_path)):
        raise OSError("a paragraph\nof several lines")


def test_near_names_take_a_prefix():
    assert near_names("penaltyy", ["penalty", "seed"], "router.") == "did you mean router.penalty?"
    assert near_names("zzz", ["penalty", "seed"], "router.") == "known are router.penalty, router.seed"
    assert near_names("ddmi", ["ddpm", "ddim"]) == "did you mean ddim or ddpm?"


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("steps", ["graph", "num_evaluations"], "num_evaluations"),
        ("num_steps", ["num_inference_steps", "prompts"], "num_inference_steps"),
        ("cfg", ["cfg_scale", "eta"], "cfg_scale"),
        ("cfg_scale", ["guidance_scale", "budget"], "guidance_scale"),
    ],
)
def test_words_of_others_for_one_thing_are_understood(word, known, meant):
    assert near_names(word, known) == f"did you mean {meant}?"
