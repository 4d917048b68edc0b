"""The kernels of draft heads on the CPU, by Triton's interpreter, which has to be asked for before Triton starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from speculative.speculators.products import Weight, product_kernel

HERE = Path(__file__).parent


def test_kernels_and_their_twins_by_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parents[2])}
    command = [sys.executable, str(HERE / "kernels_child.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.zeros(129, 8).half(), torch.zeros(4, 8).half()),
        (torch.zeros(2, 8), torch.zeros(4, 8)),
        (torch.zeros(2, 8).bfloat16(), torch.zeros(4, 8).to(torch.float8_e4m3fn)),
        (torch.zeros(8, 2).half().T, torch.zeros(4, 8).half()),
    ],
)
def test_rows_that_the_kernel_does_not_take(x, weight):
    with pytest.raises(
        ValueError, match="the kernel takes up to 128 contiguous rows, of bfloat16 or float16"
    ):
        product_kernel(x, Weight(weight))
