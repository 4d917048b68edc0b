import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftkv import names
from swiftkv.layout import Layout
from swiftkv.names import Use

LAYOUTS = st.builds(
    lambda cut, groups, size: Layout(cut + groups * size, cut, size),
    st.integers(1, 20), st.integers(1, 8), st.integers(1, 5),
)  # fmt: skip


@given(LAYOUTS)
def test_every_upper_layer_reads_what_its_owner_makes(layout):
    assert len(layout.owners) == layout.groups
    assert layout.kv_layers == layout.cut + layout.groups
    for layer in layout.upper:
        owner = layout.owner(layer)
        assert owner in layout.owners
        assert 0 <= layer - owner < layout.group_size
        assert layout.kv_layer(layer) == layout.kv_layer(owner)


@given(LAYOUTS)
def test_the_cache_has_no_gaps(layout):
    used = [layout.kv_layer(layer) for layer in range(layout.layers)]
    assert used == sorted(used)
    assert set(used) == set(range(layout.kv_layers))


@given(LAYOUTS)
def test_of_reads_a_config(layout):
    config = {
        "num_hidden_layers": layout.layers,
        "num_key_value_layers": layout.cut,
        "key_value_group_size": layout.group_size,
    }
    assert Layout.of(config) == layout


@pytest.mark.parametrize(("layers", "cut", "size"), [(4, 0, 1), (4, 4, 1), (4, 2, 0), (4, 1, 2)])
def test_numbers_that_do_not_fit(layers, cut, size):
    with pytest.raises(ValueError, match="it must"):
        Layout(layers, cut, size)


def test_numbers_that_are_none():
    numbers = {"num_hidden_layers": 4, "num_key_value_layers": 2, "key_value_group_size": 1}
    for name, value in (
        ("num_hidden_layers", "4"),
        ("num_key_value_layers", 2.0),
        ("key_value_group_size", True),
    ):
        with pytest.raises(ValueError, match=f"{name} is {value!r} in the config; it must be a whole number"):
            Layout.of(numbers | {name: value})
    with pytest.raises(ValueError, match="key_value_group_size is 0; it must divide"):
        Layout.of(numbers | {"key_value_group_size": 0})
    assert Layout.of(numbers | {"key_value_group_size": None}) == Layout(4, 2, 1)


def test_no_cut():
    with pytest.raises(ValueError, match="num_key_value_layers"):
        Layout.of({"num_hidden_layers": 4})


@given(LAYOUTS, st.booleans(), st.booleans())
def test_added_names_read_back(layout, bias, head_norm):
    added = names.added(layout, bias=bias, head_norm=head_norm)
    assert len(set(added)) == len(added)
    uses = [names.read(name, layout).use for name in added[1:]]
    assert set(uses) == {Use.QUERY, Use.KEY, Use.VALUE}
    per_query = 1 + bias + head_norm
    assert uses.count(Use.QUERY) == per_query * len(layout.upper)
    assert uses.count(Use.KEY) == per_query * layout.groups
    assert uses.count(Use.VALUE) == (1 + bias) * layout.groups


def test_what_a_name_is_for():
    layout = Layout(8, 4, 2)
    stem = "model.layers.{}.self_attn.{}"
    assert names.read(stem.format(3, "k_proj.weight"), layout).use is Use.BASE
    assert names.read(stem.format(4, "k_proj.weight"), layout).use is Use.UNUSED
    assert names.read(stem.format(4, "o_proj.weight"), layout).use is Use.BASE
    found = names.read(stem.format(6, "v_proj_swiftkv.bias"), layout)
    assert (found.use, found.layer, found.module, found.suffix) == (Use.VALUE, 6, "v_proj", "bias")
    with pytest.raises(ValueError, match="does not fit the weights"):
        names.read(stem.format(5, "k_proj_swiftkv.weight"), layout)
    with pytest.raises(ValueError, match="does not fit the weights"):
        names.read(stem.format(3, "q_proj_swiftkv.weight"), layout)
