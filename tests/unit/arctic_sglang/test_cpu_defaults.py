"""Server arguments on a machine without a GPU."""

import pytest

from arctic_sglang.cpu.defaults import cores_of_ranks, cpu_defaults, cpu_refusal, threads_per_rank


def test_fills_what_is_missing():
    changed = cpu_defaults({"dtype": "auto"})
    assert changed["device"] == "cpu"
    assert changed["attention_backend"] == "torch_native"
    assert changed["dtype"] == "float32"


def test_keeps_what_the_user_gave():
    given = {
        "attention_backend": "triton",
        "dtype": "bfloat16",
        "max_total_tokens": 100,
        "mem_fraction_static": 0.7,
    }
    assert not set(cpu_defaults(given)) & set(given)


def test_fp8_is_refused_and_what_is_not_quantised_is_served():
    assert cpu_refusal(None) is None
    assert "without a GPU" in cpu_refusal("fp8")


def test_room_for_one_long_text():
    assert cpu_defaults({"context_length": 200_000})["max_total_tokens"] == 200_000


@pytest.mark.parametrize(
    ("cores", "ranks", "given", "threads"), [(8, 2, None, 4), (2, 4, None, 1), (3, 2, None, 1), (8, 1, 3, 3)]
)
def test_threads(cores, ranks, given, threads):
    assert threads_per_rank(cores, ranks, given) == threads


@pytest.mark.parametrize(
    ("cores", "ranks", "threads", "lists"),
    [
        (4, 2, 2, "0-1|2-3"),
        (2, 2, 1, "0|1"),
        (2, 1, 2, "0-1"),
        (1, 2, 1, "0|0"),
        (3, 2, 2, "0-1|0-1"),
        (2, 3, 1, "0|1|0"),
    ],
)
def test_core_lists(cores, ranks, threads, lists):
    assert cores_of_ranks(cores, ranks, threads) == lists


@pytest.mark.parametrize("cores", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_core_lists_stay_on_the_machine(cores, ranks):
    lists = cores_of_ranks(cores, ranks, threads_per_rank(cores, ranks, None)).split("|")
    assert len(lists) == ranks
    assert all(0 <= int(end) < cores for item in lists for end in item.split("-"))
