"""Flags: values, types, names."""

import pytest

from arctic_sglang.config import ArcticConfig, flag_name


def test_defaults_are_no_flags():
    assert ArcticConfig().given() == {}


def test_given_lists_what_differs():
    assert ArcticConfig(embedding_pooling="mean").given() == {"embedding_pooling": "mean"}


@pytest.mark.parametrize("value", ["meen", "MEAN", "", None, 3])
def test_unknown_pooling_names_the_choices(value):
    with pytest.raises(ValueError, match=r"--embedding-pooling is .*'checkpoint'.*'mean'"):
        ArcticConfig(embedding_pooling=value)


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-2, ValueError), ("2", TypeError), (True, TypeError)]
)
def test_bad_thread_counts(value, error):
    with pytest.raises(error, match="--cpu-threads-per-rank"):
        ArcticConfig(cpu_threads_per_rank=value)


def test_unknown_name_is_an_error():
    with pytest.raises(TypeError, match="embeding_pooling"):
        ArcticConfig(embeding_pooling="mean")


def test_frozen():
    with pytest.raises(AttributeError):
        ArcticConfig().embedding_pooling = "cls"


def test_flag_name():
    assert flag_name("cpu_threads_per_rank") == "--cpu-threads-per-rank"


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), ("8", TypeError), (True, TypeError)])
def test_bad_token_counts(value, error):
    with pytest.raises(error, match="--swiftkv-min-tokens"):
        ArcticConfig(swiftkv_min_tokens=value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"enable_fast_embedding": True, "embedding_step_tokens": 0},
            "--embedding-step-tokens is 0; .* at least 1",
        ),
        (
            {"enable_fast_embedding": True, "embedding_replicas": -1},
            "--embedding-replicas is -1; .* at least 1",
        ),
        ({"embedding_replicas": 2}, "--embedding-replicas 2 was given without --enable-fast-embedding"),
        (
            {"embedding_step_tokens": 4096},
            "--embedding-step-tokens 4096 was given without --enable-fast-embedding",
        ),
    ],
)
def test_bad_values_of_the_vectorised_road(values, message):
    with pytest.raises(ValueError, match=message):
        ArcticConfig(**values)


def test_fast_embedding_is_on_or_off():
    with pytest.raises(TypeError, match="--enable-fast-embedding is 'yes'"):
        ArcticConfig(enable_fast_embedding="yes")
