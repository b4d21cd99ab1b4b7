"""What a graph decides, and how layers are called, in words."""

from l2c.graph.cache_graph import CacheGraph
from l2c.report.decisions import decisions, kind_in_words, meaning, named_blocks, palette, printable


def graph(**changes):
    given = {
        "rows": ["11", "11", "10", "01", "00"],
        "layers": ("blocks.0.attn", "blocks.0.mlp"),
        "timesteps": (9, 7, 5, 3, 1),
        "reuse": ("hold", "hold", "hold", "linear", "fitted"),
        "slopes": ((), (), (), (), (0.5, 0.25)),
        "model": "net",
        "solver": "ddim",
    }
    given["rows"] = [[bit == "1" for bit in row] for row in changes.pop("rows", given["rows"])]
    return CacheGraph(**{**given, **changes})


def test_each_entry_has_its_decision():
    assert decisions(graph()) == (
        ("compute", "compute"),
        ("compute", "compute"),
        ("compute", "hold"),
        ("linear", "compute"),
        ("fitted", "fitted"),
    )


def test_linear_with_one_output_is_held():
    assert decisions(graph(rows=["11", "01"], timesteps=(9, 7), reuse=("hold", "linear"), slopes=()))[1][0] == "hold"


def test_a_sum_of_one_output_is_held():
    weights = ((), (), (), (), ((1.0,), (1.5, -0.5)))
    found = decisions(graph(reuse=("hold",) * 4 + ("weighted",), slopes=(), weights=weights))
    assert found[4] == ("hold", "weighted")


def test_layers_are_called_by_block_and_kind():
    names = (
        "in_blocks.0.attn1",
        "in_blocks.0.attn2",
        "in_blocks.0.ff",
        "mid.attn",
        "mid.mlp",
        "tail.3",
        "norm.0.gate",
    )
    found = named_blocks(names)
    assert [(b.family, b.label) for b in found] == [("in_blocks", "0"), ("", "mid"), ("tail", "3"), ("norm", "0")]
    assert [b.kinds for b in found] == [
        ("attention 1", "attention 2", "MLP"),
        ("attention", "MLP"),
        (),
        ("gate",),
    ]
    assert [b.layers for b in found] == [(0, 1, 2), (3, 4), (5,), (6,)]
    assert kind_in_words("single.3.proj_out") == "MLP"


def test_colours_differ_also_for_decisions_to_come():
    colours = palette(["linear", "compute", "taylor", "hold", "fitted", "other"])
    assert list(colours)[:4] == ["compute", "hold", "linear", "fitted"]
    assert len(set(colours.values())) == 6
    assert meaning("taylor") == "reused: taylor"


def test_text_stays_on_one_line_without_control_characters():
    assert printable("a\nb\x1b[31m") == "a b?[31m"
