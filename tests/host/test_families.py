"""Families: layers are read from the UNet, and published numbers find their place in UNets that were cut down."""

from __future__ import annotations

import attention_edit.nodes  # noqa: F401 (defines every table)
import edits
import pytest
import tiny
import torch
from attention_edit.attention.engine.layers import COARSE, PAPER, RESOLUTION, layers_of
from attention_edit.attention.methods.cpam import CPAM
from attention_edit.attention.methods.fpe import FPE
from attention_edit.attention.methods.masactrl import MasaCtrl
from attention_edit.host.families import FAMILIES, SD1, SD2, SDXL, ByFamily, LayerByFamily, family_of
from attention_edit.host.work import FORWARD, forward_share, work

WHOLE = {"SD1": SD1, "SD2": SD2, "SDXL": SDXL}
every_unet = pytest.mark.parametrize("kind", [*WHOLE, *tiny.CUT_DOWN])
every_cut_down = pytest.mark.parametrize("kind", tiny.CUT_DOWN)


def own_kind(kind):
    return tiny.CUT_DOWN[kind][0] if kind in tiny.CUT_DOWN else kind


def called(model, kind):
    """(block, depth, tokens) of every self-attention in the order in which the UNet calls them."""
    seen = []

    def spy(n, context, value, extra):
        seen.append((extra["block"], extra["block_index"], n.shape[1]))
        return n, context, value

    probe = model.clone()
    probe.set_model_attn1_patch(spy)
    text = tiny.prompt(1, own_kind(kind))
    tiny.sample(probe, text, text, tiny.latent(0), torch.tensor([1.0, 0.0]), cfg=1.0)
    return seen


@every_unet
def test_layers_and_scales_are_those_that_the_unet_calls(kind):
    model = tiny.tiny_model(kind)
    layers = family_of(model).layers
    assert [(la.block, la.depth, (tiny.SIZE // la.scale) ** 2) for la in layers] == called(model, kind)
    assert [la.index for la in layers] == list(range(len(layers)))


def test_a_familys_own_unet_is_its_constant():
    for kind, family in WHOLE.items():
        assert family_of(tiny.tiny_model(kind)) is family
        assert family.is_whole and str(family) == family.name
        assert [family.at_place_of(i) for i in range(len(family.layers))] == list(range(len(family.layers)))


def test_models_with_the_same_unet_share_one_family():
    one, two = tiny.tiny_model("SSD1B"), tiny.tiny_model("SSD1B", seed=1)
    assert family_of(one) is family_of(two)
    assert family_of(one).name == "SDXL" and family_of(one).side == SDXL.side
    assert str(family_of(one)) == "SSD1B (SDXL with other layers)"


@pytest.mark.parametrize(
    ("kind", "published", "block", "depth"),
    [
        ("SSD1B", 44, ("output", 1), 0),  # MasaCtrl's first layer
        ("SSD1B", 54, ("output", 2), 0),  # CPAM's retain layer
        ("SSD1B", 59, ("output", 2), 5),  # block by block, whatever the depth of the others
        ("SSD1B", 24, ("output", 0), 0),  # the middle has no attention: what comes behind it
        ("Vega", 54, ("output", 2), 0),
        ("Vega", 9, ("input", 7), 1),  # the sixth of ten: the second of two
        ("KOALA", 34, ("output", 0), 0),
        ("KOALA", 44, ("output", 0), 3),  # a third of the stage, which has two blocks here and three there
        ("KOALA", 64, ("output", 2), 0),  # the first of scale 2, which KOALA's output 2 is and SDXL's output 3
        ("BK-SDM", 7, ("output", 2), 0),
        ("BK-SDM", 10, ("output", 4), 0),
        ("BK-SDM", 15, ("output", 7), 0),
    ],
)
def test_published_layers_are_found_at_their_place(kind, published, block, depth):
    family = family_of(tiny.tiny_model(kind))
    layer = family.layers[family.at_place_of(published)]
    assert (layer.block, layer.depth) == (block, depth)


@every_cut_down
def test_places_keep_the_order_and_the_stage(kind):
    family = family_of(tiny.tiny_model(kind))
    places = [family.at_place_of(i) for i in range(len(family.whole.layers))]
    assert places == sorted(places)
    assert set(places) <= set(range(len(family.layers)))
    stages = {layer.stage for layer in family.layers}
    for theirs, index in zip(family.whole.layers, places, strict=True):
        assert theirs.stage not in stages or family.layers[index].stage == theirs.stage


def test_every_table_knows_every_family():
    families = [*FAMILIES, *(family_of(tiny.tiny_model(kind)) for kind in tiny.CUT_DOWN)]
    assert FORWARD in ByFamily.tables
    for table in ByFamily.tables:
        for family in families:
            number = table[family]
            assert not isinstance(table, LayerByFamily) or 0 <= number < len(family.layers), table.what


def test_a_number_that_is_not_known_names_itself_and_the_family(monkeypatch):
    monkeypatch.setattr(ByFamily, "tables", [])
    table = ByFamily("CPAM's retain layer", {"SD1.x": 7, "SD2.x": 8})
    assert (table[SD1], table["SD2.x"]) == (7, 8)
    assert ByFamily.tables == [table]
    with pytest.raises(ValueError, match=r"CPAM's retain layer is not known for SDXL, only for SD1\.x, SD2\.x"):
        table[SDXL]


def test_layer_numbers_follow_the_unet(monkeypatch):
    monkeypatch.setattr(ByFamily, "tables", [])
    table = LayerByFamily("first layer", {"SDXL": 44})
    cut_down = family_of(tiny.tiny_model("SSD1B"))
    assert (table[SDXL], table["SDXL"]) == (44, 44)
    assert cut_down.layers[table[cut_down]].block == ("output", 1)
    with pytest.raises(ValueError, match=r"first layer is not known for SD1\.x"):
        table[SD1]


def test_a_unet_without_attention_is_refused():
    model = tiny.tiny_model()
    unet = model.model.diffusion_model
    for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        for module in block:
            if hasattr(module, "transformer_blocks"):
                del module.transformer_blocks
    with pytest.raises(ValueError, match="no layers of self-attention"):
        family_of(model)


def test_rules_choose_by_place():
    cut_down, koala = (family_of(tiny.tiny_model(kind)) for kind in ("BK-SDM", "KOALA"))
    assert {la.scale for la in layers_of(cut_down, RESOLUTION)} == {2, 4}
    assert {la.scale for la in layers_of(cut_down, COARSE)} == {4}
    assert layers_of(koala, RESOLUTION) == tuple(la for la in koala.layers if la.scale == 4)
    assert [la.block for la in layers_of(cut_down, PAPER)] == [
        *(("input", number) for number in (3, 5)),
        *(("output", number) for number in (2, 3, 4, 5, 6)),
    ]
    with pytest.raises(ValueError, match=r"KOALA_700M \(SDXL with other layers\) has 21"):
        layers_of(koala, PAPER)


@every_cut_down
def test_shares_of_a_cut_down_unet_grow_with_the_layers_ahead(kind):
    family = family_of(tiny.tiny_model(kind))
    last = {layer.scale: layer.index for layer in family.layers}
    shares = [forward_share(family, scale) for scale in sorted(last, key=last.__getitem__)]
    assert shares == sorted(shares)
    assert all(0 < share < 1 for share in shares)
    assert work(family, 4, True) == pytest.approx(work(family, 4, False) + forward_share(family, 4))


def test_shares_of_an_own_unet_are_the_counted_ones():
    assert forward_share(SDXL, 4) == FORWARD[SDXL][4]
    with pytest.raises(ValueError, match=r"SDXL has no attention maps of 1/8.*1/2, 1/4"):
        forward_share(SDXL, 8)


@every_cut_down
@pytest.mark.parametrize("method", ["CPAM", "FPE", "MasaCtrl"])
def test_edits_run_on_unets_that_were_cut_down(kind, method):
    """In one call as in two, and with an effect."""
    model = tiny.tiny_model(kind)
    inversion = edits.invert(model, own_kind(kind), steps=2)
    first = family_of(model).at_place_of(10)
    control = {
        "CPAM": CPAM(edits.masks(), normal_share=0.0),
        "FPE": FPE(end=1.0),
        "MasaCtrl": MasaCtrl(0.0, first),
    }[method]
    plain = edits.run(model, inversion, kind=own_kind(kind))
    apart, packed = (edits.run(model, inversion, control, kind=own_kind(kind), packed=p) for p in (False, True))
    assert edits.difference(packed, apart) < 1e-4
    assert edits.difference(plain, apart) > 1e-3
