from types import SimpleNamespace

import pytest

from speculative.settings import SpeculationSettings, check_head_path, model_refusals, refusals

GIVEN = {
    "speculative_algorithm": "SUFFIX", "speculative_draft_model_path": None, "enable_suffix_decoding": False,
    "speculative_num_draft_tokens": None, "speculative_num_steps": None, "suffix_min_score": None,
    "speculative_disable_by_batch_size": None,
}  # fmt: skip


def test_suffix_alone():
    found = SpeculationSettings.of(GIVEN)
    assert found.suffix
    assert found.head_path is None
    assert found.widths == (2, 4, 8, 16, 32)


def test_head_alone_and_both():
    head = {**GIVEN, "speculative_algorithm": "ARCTIC", "speculative_draft_model_path": "x"}
    assert not SpeculationSettings.of(head).suffix
    assert SpeculationSettings.of({**head, "enable_suffix_decoding": True}).suffix


@pytest.mark.parametrize(
    ("width", "widths"), [(2, (2,)), (3, (2, 3)), (6, (2, 4, 6)), (64, (2, 4, 8, 16, 32, 64))]
)
def test_widths(width, widths):
    assert SpeculationSettings.of({**GIVEN, "speculative_num_draft_tokens": width}).widths == widths


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"speculative_algorithm": "ARCTIC"}, "without --speculative-draft-model-path"),
        ({"speculative_draft_model_path": "head"}, "--speculative-draft-model-path head was given with"),
        ({"speculative_num_draft_tokens": 1}, "--speculative-num-draft-tokens is 1"),
        ({"speculative_num_draft_tokens": 65}, "from 2 to 64"),
    ],
)
def test_contradictions(change, told):
    with pytest.raises(ValueError, match=told):
        SpeculationSettings.of({**GIVEN, **change})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pp_size", 2), ("enable_dp_attention", True), ("enable_lora", True), ("enable_two_batch_overlap", True),
        ("disaggregation_mode", "decode"), ("enable_hierarchical_cache", True), ("enable_mixed_chunk", True),
        ("enable_pdmux", True), ("enable_hisparse", True), ("speculative_adaptive", True),
        ("speculative_use_rejection_sampling", True),
    ],
)  # fmt: skip
def test_refusals(name, value):
    assert refusals({}) == []
    found = refusals({name: value, "pp_size": 1} | {name: value})
    assert len(found) == 1
    assert found[0].startswith(f"--{name.replace('_', '-')} {value}: ")


def test_models_that_are_refused():
    plain = SimpleNamespace(is_encoder_decoder=False, model_is_mrope=False)
    assert model_refusals(plain, recurrent=False) == []
    assert len(model_refusals(plain, recurrent=True)) == 1
    assert (
        len(model_refusals(SimpleNamespace(is_encoder_decoder=True, model_is_mrope=True), recurrent=False))
        == 2
    )


def test_a_head_that_cannot_be_one(tmp_path):
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "config.json").write_text("{}")
    for good in (None, "Snowflake/Arctic-LSTM-Speculator-Llama-3.1-8B-Instruct", str(tmp_path / "head")):
        check_head_path(good)
    with pytest.raises(ValueError, match="has no config"):
        check_head_path(str(tmp_path))
    for bad in ("/nowhere/head", "./head", "nowhere", "a/b/c"):
        with pytest.raises(ValueError, match=f"{bad}: the folder is not there; give the folder"):
            check_head_path(bad)
