"""The table of costs: what lies between measurements, and what cannot run."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculative.cost import CostTable

INF = float("inf")

measurements = st.dictionaries(
    st.tuples(st.integers(1, 40), st.sampled_from([1, 2, 4, 8])),
    st.one_of(st.none(), st.floats(1e-4, 1.0)),
    max_size=12,
).map(lambda pairs: {**pairs, (1, 1): 0.01})


def test_a_time_between_two_batch_sizes_is_on_the_line():
    table = CostTable({(2, 1): 0.010, (4, 1): 0.014, (2, 8): 0.020, (4, 8): 0.020})
    assert [table.cost(batch, 1) for batch in (1, 2, 3, 4, 5)] == pytest.approx(
        [0.01, 0.01, 0.012, 0.014, INF]
    )
    assert table.cost(3, 8) == pytest.approx(0.02)
    assert table.widths == (1, 8)


def test_what_cannot_run_is_infinite():
    table = CostTable(
        {(1, 1): 1, (64, 1): 2, (1, 4): 1, (8, 4): None, (16, 4): 3, (32, 4): None, (1, 8): None}
    )
    assert table.cost(1, 4) == 1
    assert [table.cost(batch, 4) for batch in (2, 8)] == [INF, INF]  # padded to 8, which is not there
    assert table.cost(9, 4) < INF
    assert [table.cost(batch, 4) for batch in (17, 32, 64)] == [INF] * 3
    assert table.cost(1, 8) == INF
    assert table.cost(65, 1) == INF


def test_noise_does_not_make_more_work_cheaper():
    table = CostTable({(1, 1): 5.02, (2, 1): 5.0, (1, 2): 5.0, (2, 2): 4.9})
    assert {table.cost(batch, width) for batch in (1, 2) for width in (1, 2)} == {5.02}


@given(measurements)
def test_more_is_never_cheaper(pairs):
    table = CostTable(pairs)
    costs = np.array([table.at(batch) for batch in range(1, table.max_batch + 2)])
    for column in costs.T:
        finite = column[np.isfinite(column)]
        assert (np.diff(finite) >= 0).all()
    for row in costs:
        finite = row[np.isfinite(row)]
        assert (np.diff(finite) >= 0).all()


@given(measurements)
def test_a_table_survives_json(pairs):
    table = CostTable(pairs)
    again = CostTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert again.widths == table.widths
    for batch in range(1, table.max_batch + 2):
        assert (again.at(batch) == table.at(batch)).all()


def test_the_model_without_measurements_is_linear_in_the_tokens():
    table = CostTable.linear([8, 2], 16, constant=3, per_token=0.5)
    assert table.widths == (1, 2, 8)
    for batch in (1, 7, 16):
        for width in table.widths:
            assert table.cost(batch, width) == pytest.approx(3 + 0.5 * batch * width)


@pytest.mark.parametrize(
    "wrong", [{}, {(1, 2): 1.0}, {(1, 1): None}, {(0, 1): 1}, {(1, 1): 0}, {(1, 1): INF}]
)
def test_bad_measurements(wrong):
    with pytest.raises(ValueError, match=r"cost"):
        CostTable(wrong)


@pytest.mark.parametrize("wrong", [{}, [], {"batch_width_seconds": [[1, 2]]}, {"batch_width_seconds": 3}])
def test_bad_dictionaries(wrong):
    with pytest.raises(ValueError, match="cost table"):
        CostTable.from_dict(wrong)


def test_an_unknown_width():
    with pytest.raises(ValueError, match="width 3 has no cost"):
        CostTable({(1, 1): 1.0}).cost(1, 3)
