"""IP-Adapters on pipelines with a graph: cached with one is what is replaced by hand, and they count as adapters."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[diffusers]'")

from test_pipeline_composition import graph_of, swapped_by_hand
from tiny_pipelines import tiny_pipeline

import l2c
from l2c.backbones.digest import weights_digest
from l2c.integrations.diffusers import applied, denoiser_of
from l2c.integrations.diffusers.adapters import at_work, effective_weights

PICTURE = 12  # width of what a picture was encoded to


def weights_of(model):
    """Return a tiny IP-Adapter of a model, of four tokens."""
    generator = torch.Generator().manual_seed(0)
    unet = hasattr(model.config, "cross_attention_dim")
    width = model.config.cross_attention_dim if unet else model.config.joint_attention_dim
    attentions = [name.removesuffix(".processor") for name in model.attn_processors]
    if unet:
        attentions = [name for name in attentions if name.endswith("attn2")]
    else:
        attentions = [name for name in attentions if not name.startswith("single")]

    def draw(*shape):
        return 0.5 * torch.randn(*shape, generator=generator)

    projection = {"proj.weight": draw(4 * width, PICTURE), "proj.bias": draw(4 * width)}
    projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    inside = {}
    for place, name in enumerate(attentions):
        inner = model.get_submodule(name).to_q.out_features
        for part in ("to_k_ip", "to_v_ip"):
            key = f"{2 * place + 1 if unet else place}.{part}"
            inside |= {f"{key}.weight": draw(inner, width), **({} if unet else {f"{key}.bias": draw(inner)})}
    return {"image_proj": projection, "ip_adapter": inside}


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_ip_adapter(name):
    tiny = tiny_pipeline(name)
    pipe, model = tiny.pipe, denoiser_of(tiny.pipe)
    pipe.set_progress_bar_config(disable=True)
    plain, weights = tiny.draw(), weights_of(model)
    graph = graph_of(pipe, tiny.draw).replace(fingerprint=weights_digest(model.state_dict()))
    picture = torch.randn(1, 1, PICTURE, generator=torch.Generator().manual_seed(1))
    guided = name != "flux"  # the unconditional branch has a picture too
    given = {"ip_adapter_image_embeds": [torch.cat([picture, 0 * picture]) if guided else picture]}
    given |= {} if guided else {"negative_ip_adapter_image_embeds": [0 * picture]}

    def load():
        if guided:
            pipe.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
        else:
            model._load_ip_adapter_weights([weights])
        pipe.set_ip_adapter_scale(0.6)

    with applied(pipe, graph):
        tiny.draw()
        load()
        assert at_work(model) == {"IP-Adapter": "at [0.6]"}
        with pytest.raises(ValueError, match=r"now \(IP-Adapter at \[0.6\]\); call pipe.unload_ip_adapter\(\)"):
            tiny.draw(**given)
    with swapped_by_hand(model, graph):
        expected = tiny.draw(**given)
    with applied(pipe, graph, any_adapters=True):
        for _ in range(2):
            torch.testing.assert_close(tiny.draw(**given), expected, rtol=1e-4, atol=1e-4)
    own = graph.replace(fingerprint=weights_digest(effective_weights(model)))
    with applied(pipe, own):
        torch.testing.assert_close(tiny.draw(**given), expected, rtol=1e-4, atol=1e-4)
        pipe.set_ip_adapter_scale(0.3)
        with pytest.raises(ValueError, match=r"now \(IP-Adapter at \[0.3\]\)"):
            tiny.draw(**given)
    pipe.set_ip_adapter_scale(0.0)
    l2c.apply(pipe, graph)  # it adds nothing
    pipe.unload_ip_adapter()
    cached = tiny.draw()
    l2c.remove(pipe)
    assert not torch.allclose(cached, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(tiny.draw(), plain)
