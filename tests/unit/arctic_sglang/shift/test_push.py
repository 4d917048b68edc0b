"""The kernel of the exchanges without a GPU: run by Triton's interpreter, and compiled for a GPU but not run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from arctic_sglang.shift.push import Blocks, _push_kernel, _rows_kernel

HERE = Path(__file__).parent


def test_kernel_and_its_twin_by_the_interpreter():
    # The interpreter has to be asked for before Triton starts, hence a process of its own.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parents[3])}
    command = [sys.executable, str(HERE / "push_child.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("aligned", "instruction"), [(16, "st.global.v4.b32"), (2, "st.global.b16")])
def test_stores_are_as_wide_as_the_blocks_are_aligned(aligned, instruction):
    constants = {
        "WIDTH": 1536, "SOURCE_ROW": 6144, "TARGET_ROW": 1536, "PARTS": 4, "HEIGHT": 16, "COLUMNS": 512, "SIZE": 2,
        "ALIGNED": aligned,
    }  # fmt: skip
    types = {"source": "*bf16", "addresses": "*i64"}
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in _push_kernel.arg_names
    }
    attributes = {(0,): [["tt.divisibility", 16]]} if aligned == 16 else {}
    source = ASTSource(_push_kernel, signature, {(_push_kernel.arg_names.index(k),): v for k, v in constants.items()},
                       attributes)  # fmt: skip
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["ptx"]
    assert instruction in ptx


@pytest.mark.parametrize("embedded", [True, False])
def test_single_rows_are_stored_as_wide(embedded):
    constants = {"WIDTH": 4096, "BLOCK": 4096, "EMBEDDED": embedded, "ALIGNED": 16}
    types = {"source": "*bf16", "index": "*i64", "addresses": "*i64"}
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in _rows_kernel.arg_names
    }
    source = ASTSource(_rows_kernel, signature, {(_rows_kernel.arg_names.index(k),): v for k, v in constants.items()},
                       {(0,): [["tt.divisibility", 16]]})  # fmt: skip
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["ptx"]
    assert "st.global.v4.b32" in ptx


@pytest.mark.parametrize(
    ("change", "aligned"),
    [({}, True), ({"width": 1535}, False), ({"source_part": 4}, False), ({"target_start": 12}, False),
     ({"source_row": 6148}, False), ({"target_row": 7}, False), ({"source_part": 0}, True)],
)  # fmt: skip
def test_alignment(change, aligned):
    usual = {
        "width": 1536,
        "rows": 3,
        "source_row": 6144,
        "source_part": 1536,
        "target_row": 1536,
        "target_start": 8,
    }
    assert Blocks(**usual | change).aligned(torch.bfloat16.itemsize) is aligned


@pytest.mark.parametrize(("part", "given"), [(0, 3), (1, 2), (2, 0), (3, 0)])
def test_rows_beyond_the_last_token_are_not_read(part, given):
    assert Blocks(8, 3, 8, 24, 32, 0, limit=5).given(part) == given
    assert Blocks(8, 3, 8, 24, 32, 0).given(part) == 3
