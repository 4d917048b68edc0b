"""The count of a prefill's operations: against sums written out by hand, and in its limits."""

import pytest

from swiftkv.cost import Shape, prefill_flops, prefill_limit, prefill_saved
from swiftkv.layout import Layout

LLAMA_8B = Shape(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, vocab=128256)
TINY = Shape(layers=4, hidden=8, intermediate=16, heads=4, kv_heads=2, head_dim=2, vocab=10)


def test_a_config_is_read():
    config = {
        "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    }  # fmt: skip
    assert Shape.of(config) == LLAMA_8B
    assert Shape.of({**config, "head_dim": 64}).head_dim == 64


def test_the_weights_of_llama_8b_are_all_there():
    norms_and_embedding = 65 * 4096 + 128256 * 4096
    counted = 32 * (LLAMA_8B.others + LLAMA_8B.keys_values) + LLAMA_8B.head
    assert counted + norms_and_embedding == 8_030_261_248


def test_three_tokens_by_hand():
    projections = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8  # q, k, v, o
    mlp = 3 * 8 * 16
    pairs = 1 + 2 + 3  # each token sees itself and those before it
    layer = 2 * 3 * (projections + mlp) + pairs * 2 * (4 * 2) * 2
    assert prefill_flops(TINY, 3) == 4 * layer + 2 * 8 * 10

    upper = 2 * (8 * 8 + 8 * 8 + mlp) + 3 * 2 * (4 * 2) * 2  # the last row alone, which sees three tokens
    keys_values = 2 * 3 * (8 * 4 + 8 * 4)
    swiftkv = 1 * layer + 3 * (keys_values + upper) + 2 * 8 * 10
    assert prefill_flops(TINY, 3, Layout(4, 1)) == swiftkv
    assert prefill_flops(TINY, 3, Layout(4, 1, 3)) == swiftkv - 2 * keys_values


def test_one_token_costs_the_same_in_both():
    assert prefill_flops(LLAMA_8B, 1, Layout(32, 16)) == prefill_flops(LLAMA_8B, 1)


def test_the_limits_of_llama_8b_cut_in_half():
    half = Layout(32, 16)
    assert prefill_limit(LLAMA_8B, 8192, half) == pytest.approx(1.935, abs=0.001)
    assert prefill_saved(LLAMA_8B, 8192, half) == pytest.approx(0.483, abs=0.001)
    limits = [prefill_limit(LLAMA_8B, 2**power, half) for power in range(18)]
    assert limits == sorted(limits)
    assert limits[-1] < 2
    assert prefill_limit(LLAMA_8B, 8192, Layout(32, 16, 2)) > prefill_limit(LLAMA_8B, 8192, half)


def test_a_floor_takes_the_gain_from_short_prompts():
    half = Layout(32, 16)
    short = prefill_limit(LLAMA_8B, 128, half, floor=206)
    assert 1 <= short < 1.001
    assert prefill_limit(LLAMA_8B, 512, half, floor=206) < prefill_limit(LLAMA_8B, 2048, half, floor=206)
    long = prefill_limit(LLAMA_8B, 131072, half, floor=206)
    assert long == pytest.approx(prefill_limit(LLAMA_8B, 131072, half), rel=0.01)
    assert prefill_flops(LLAMA_8B, 512, floor=206) == prefill_flops(LLAMA_8B, 512) + 2 * 205 * LLAMA_8B.head


@pytest.mark.parametrize(("tokens", "layout"), [(0, None), (-1, Layout(4, 2)), (8, Layout(5, 2))])
def test_what_makes_no_sense_is_refused(tokens, layout):
    with pytest.raises(ValueError, match=r"no last row|does not fit"):
        prefill_flops(TINY, tokens, layout)
