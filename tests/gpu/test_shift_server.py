"""A server on several GPUs whose rank is killed: the others wait for it within a kernel, and hear of nothing."""

import pytest

from tests.engine.servers import running_server
from tests.engine.test_shift_server import ARGS, kill, post, told_and_counted
from tests.gpu.gpus import RANKS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(RANKS < 2, reason="needs a GPU"),
]
ON_GPUS = ["--dtype", "float16", "--attention-backend", "triton", "--mem-fraction-static", "0.5"]


# Up to the threshold steps are of the tensor-parallel kind, whose all-reduce waits elsewhere.
@pytest.mark.parametrize("threshold", ["0", "100000"])
def test_a_killed_rank_ends_the_server(threshold, tmp_path):
    args = [*ARGS, *ON_GPUS, "--shift-parallel-threshold", threshold]
    with running_server(args, tmp_path / "server.log") as server:
        post(server, {"text": "def f(x): " * 40, "sampling_params": {"max_new_tokens": 8}}).close()
        info, found, _ = told_and_counted(server)
        assert found["exchange_seconds_total", None] == pytest.approx(info["exchange_seconds"])
        assert (info["exchange_seconds"] > 0) == (threshold == "0")
        kill(server, 1)
