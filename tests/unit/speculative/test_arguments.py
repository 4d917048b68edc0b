"""What the algorithms make of SGLang's arguments, and what they refuse before a model is loaded."""

import dataclasses
from types import SimpleNamespace

import pytest

from speculative.sglang_worker.algorithm import set_arguments

GIVEN = {
    "speculative_algorithm": "SUFFIX", "speculative_draft_model_path": None, "enable_suffix_decoding": False,
    "speculative_num_draft_tokens": 8, "speculative_num_steps": None, "suffix_min_score": None,
    "speculative_disable_by_batch_size": None, "suffix_cache_path": None, "enable_mixed_chunk": False,
    "return_hidden_states_mode": None, "enable_return_hidden_states": False,
}  # fmt: skip
HEAD = {"speculative_algorithm": "ARCTIC", "speculative_draft_model_path": "head"}


def arguments(**change):
    given = {**GIVEN, **change}
    return dataclasses.make_dataclass("Arguments", [(name, object, value) for name, value in given.items()])()


def test_what_sglang_derives_buffers_from():
    args = arguments()
    set_arguments(args)
    told = SimpleNamespace(**vars(args))
    assert (told.speculative_num_draft_tokens, told.speculative_num_steps, told.speculative_eagle_topk) == (
        8,
        7,
        1,
    )
    assert told.return_hidden_states_mode is None


@pytest.mark.parametrize(("full", "mode"), [(False, "last"), (True, "full")])
def test_a_head_wants_hidden_states(full, mode):
    args = arguments(**HEAD, enable_return_hidden_states=full)
    set_arguments(args)
    assert args.return_hidden_states_mode == mode
    assert args.speculative_num_steps is None  # as the checkpoint says


def test_all_that_is_refused_is_named():
    with pytest.raises(ValueError, match=r"SUFFIX does not go with:\n.*pp-size 2.*\n.*mixed"):
        set_arguments(arguments(enable_mixed_chunk=True, pp_size=2))


def test_the_folder_of_the_index_has_to_be_there(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*absent; make it first"):
        set_arguments(arguments(suffix_cache_path=str(tmp_path / "absent" / "index")))
    set_arguments(arguments(suffix_cache_path=str(tmp_path / "index")))


def test_a_variable_with_a_wrong_value_is_refused_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setenv("ARCTIC_SGLANG_UNTIMED", "yes")
    with pytest.raises(ValueError, match="ARCTIC_SGLANG_UNTIMED='yes'"):
        set_arguments(arguments())
