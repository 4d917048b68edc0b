"""The slow twin against its base, and against the same arithmetic written out without transformers."""

import pytest
import torch
import transformers
from torch.nn import functional

import swiftkv.hf  # noqa: F401 - makes AutoModelForCausalLM know the models
from swiftkv.convert import convert
from swiftkv.layout import Layout

CUT = 2
TOKENS = 12


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 8192, (2, TOKENS), generator=torch.Generator().manual_seed(1))


def load(folder, **more):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **more).eval()


def keep_base(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    config.keep_base_projections = True
    return load(folder, config=config)


def reference(weights: dict, config, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a Llama with SwiftKV for whole sequences, in plain torch."""
    layout, eps = Layout.of(config), config.rms_norm_eps
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    tokens = ids.shape[1]
    angles = torch.outer(
        torch.arange(tokens), config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    )
    causal = torch.ones(tokens, tokens).tril().bool()

    def norm(x, name):
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weights[name + ".weight"]

    def split(x, name, count, rotate=True):
        x = (x @ weights[name + ".weight"].T).unflatten(-1, (count, size)).transpose(1, 2)
        first, second = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1) if rotate else x

    hidden, states, pair = weights["model.embed_tokens.weight"][ids], None, None
    for index in range(layout.layers):
        stem = f"model.layers.{index}."
        attention, added = stem + "self_attn.", "_swiftkv" if index in layout.upper else ""
        if index == layout.cut:
            states = norm(hidden, "model.norm_swiftkv")
        inner = norm(hidden, stem + "input_layernorm")
        if index < layout.cut or index in layout.owners:
            source = inner if index < layout.cut else states
            pair = (
                split(source, f"{attention}k_proj{added}", kv_heads),
                split(source, f"{attention}v_proj{added}", kv_heads, rotate=False),
            )
        queries = split(inner, f"{attention}q_proj{added}", heads)
        keys, values = (x.repeat_interleave(heads // kv_heads, 1) for x in pair)
        scores = (queries @ keys.mT / size**0.5).masked_fill(~causal, float("-inf"))
        mixed = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
        hidden = hidden + mixed @ weights[attention + "o_proj.weight"].T
        inner = norm(hidden, stem + "post_attention_layernorm")
        gate = functional.silu(inner @ weights[stem + "mlp.gate_proj.weight"].T)
        up = inner @ weights[stem + "mlp.up_proj.weight"].T
        hidden = hidden + (gate * up) @ weights[stem + "mlp.down_proj.weight"].T
    return norm(hidden, "model.norm") @ weights["lm_head.weight"].T


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_llama_is_what_the_paper_says(llama, tmp_path, ids, group, attention):
    folder = convert(llama, CUT, tmp_path / "out", key_value_group_size=group)
    model = load(folder, attn_implementation=attention)
    torch.manual_seed(group)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_swiftkv" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = reference(dict(model.state_dict()), model.config, ids)
        torch.testing.assert_close(model(ids).logits, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("group", [1, 2, 4])
class TestFamilies:
    @pytest.fixture
    def model(self, make_base, tmp_path, family, group):
        return load(convert(make_base(family), CUT, tmp_path / "out", key_value_group_size=group))

    def test_a_cache_changes_nothing(self, model, ids):
        with torch.no_grad():
            whole = model(ids, use_cache=False).logits
            first = model(ids[:, :7], use_cache=True)
            rest = model(ids[:, 7:], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole, atol=1e-4, rtol=1e-3)

    def test_the_cache_holds_the_owners_layers_alone(self, model, ids):
        with torch.no_grad():
            cache = model(ids, use_cache=True).past_key_values
        filled = [i for i, layer in enumerate(cache.layers) if layer.is_initialized]
        layout = model.model.layout
        assert filled == [*range(layout.cut), *layout.owners]

    def test_padding_on_the_left_changes_nothing(self, model, ids):
        padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), ids], 1)
        mask = torch.ones_like(padded)
        mask[:, :5] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            found = model(padded, attention_mask=mask, position_ids=positions).logits[:, 5:]
            torch.testing.assert_close(found, model(ids).logits, atol=1e-4, rtol=1e-3)

    def test_upper_keys_and_values_come_from_the_cut_alone(self, model, ids):
        """Whatever the upper layers do, what they put into the cache stays the same."""

        def cached():
            with torch.no_grad():
                layers = model(ids, use_cache=True).past_key_values.layers
            return [(layers[i].keys, layers[i].values) for i in model.model.layout.owners]

        before = cached()
        spoiled = [model.model.layers[i].mlp.down_proj.weight for i in model.model.layout.upper]
        kept = [weight.detach().clone() for weight in spoiled]
        with torch.no_grad():
            for weight in spoiled:
                weight.normal_()
            after = cached()
            for weight, old in zip(spoiled, kept, strict=True):
                weight.copy_(old)
        for old, new in zip(before, after, strict=True):
            torch.testing.assert_close(old, new, atol=0, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
class TestBase:
    def test_the_base_is_in_the_folder(self, make_base, tmp_path, ids, family):
        base = make_base(family)
        model = keep_base(convert(base, CUT, tmp_path / "out", key_value_group_size=2))
        with torch.no_grad():
            expected = load(base)(ids).logits
            assert not torch.allclose(model(ids).logits, expected, atol=1e-2)
            model.model.runs_as_base = True
            torch.testing.assert_close(model(ids).logits, expected)

    def test_one_upper_layer_starts_as_the_base(self, make_base, tmp_path, ids, family):
        """The cut layer's own keys and values come from the state that enters it, in the base as well."""
        base = make_base(family)
        model = load(convert(base, 5, tmp_path / "out"))
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, load(base)(ids).logits, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_packed_into_a_sequence_do_not_see_each_other(llama, tmp_path, ids, attention):
    model = load(convert(llama, CUT, tmp_path / "out"), attn_implementation=attention)
    sizes = [1, 4, 1, 6]
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    with torch.no_grad():
        packed = model(ids[:1], position_ids=positions, use_cache=False).logits
        apart = torch.cat([model(part, use_cache=False).logits for part in ids[:1].split(sizes, 1)], 1)
    torch.testing.assert_close(packed, apart, atol=1e-4, rtol=1e-3)


def test_hidden_states_are_those_that_enter_the_layers(llama, tmp_path, ids):
    model = load(convert(llama, CUT, tmp_path / "out"))
    with torch.no_grad():
        found = model(ids, output_hidden_states=True).hidden_states
        decoder = model.model
        hidden = decoder.embed_tokens(ids)
        shape = decoder.shape(hidden)
        cut = decoder.lower(hidden, **shape)
        entering, last = decoder.upper(cut, **shape)
    assert len(found) == model.config.num_hidden_layers + 1
    torch.testing.assert_close(found[CUT], cut)
    torch.testing.assert_close(found[-2], entering)
    torch.testing.assert_close(found[-1], decoder.norm(last))


def test_a_sliding_window_is_refused():
    from swiftkv.config import CONFIGS
    from swiftkv.hf import MODELS

    config = CONFIGS["qwen2"](
        num_hidden_layers=4, num_key_value_layers=2, hidden_size=32, intermediate_size=32, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=32, use_sliding_window=True, sliding_window=8, max_window_layers=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="sliding window"):
        MODELS["qwen2"](config)
