"""The kernels of drafting without a GPU: run by Triton's interpreter, and compiled for a GPU but not run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from speculative import chain
from speculative.speculators import gates, products, screen
from speculative.speculators.products import TILINGS, Weight, product_kernel

HERE = Path(__file__).parent


def test_kernels_and_their_twins_by_the_interpreter():
    # The interpreter has to be asked for before Triton starts, hence a process of its own.
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


def compiled(kernel, types, constants, **options):
    """Compiles for a Hopper GPU, which takes no GPU."""
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: "constexpr" if name in constants else types[name] for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in types if types[name].startswith("*")},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.parametrize("best", [False, True])
def test_the_product_compiles_to_tensor_core_instructions(best):
    types = {"x": "*fp16", "weight": "*fp8e4nv", "scales": "*fp32", "out": "*i64" if best else "*fp16"}
    types |= dict.fromkeys(("batch", "outputs", "first"), "i32")
    constants = {"WIDTH": 4096, "SCALED": True, "BEST": best, "WHOLE": True}
    constants |= {"BLOCK_B": 16, "BLOCK_N": TILINGS.choice[0].outputs, "BLOCK_K": TILINGS.choice[0].width}
    made = compiled(products._product, types, constants, num_warps=4, num_stages=3)
    assert "wgmma" in made.asm["ptx"]
    assert "cp.async" in made.asm["ptx"]


def test_the_screen_compiles_to_tensor_core_instructions():
    types = {"x": "*fp16", "codes": "*i16", "scales": "*fp32", "out": "*i64", "batch": "i32", "tokens": "i32"}
    types["groups"] = "i32"
    constants = {"QUARTER": 1024, "WHOLE": True, "PLAIN": False, "BLOCK_B": 16, "BLOCK_N": 64, "BLOCK_K": 64}
    constants["GROUP"] = 64
    made = compiled(screen._nominate, types, constants, num_warps=4, num_stages=4)
    assert "wgmma" in made.asm["ptx"]
    # Four bits become a weight by two instructions, for two weights at a time.
    assert made.asm["ptx"].count("lop3.b32 both") == made.asm["ptx"].count("sub.f16x2") == 64
    types = {
        "x": "*fp16",
        "exact": "*bf16",
        "nominees": "*i64",
        "out": "*i64",
        "count": "i32",
        "first": "i32",
    }
    compiled(screen._check, types, {"WIDTH": 4096, "BLOCK_K": 4096, "BLOCK_N": 2048}, num_warps=8)


def test_the_gates_compile():
    types = dict.fromkeys(gates._lstm_cell.arg_names[:9], "*bf16") | {"tokens": "*i64", "cell": "*fp32"}
    types |= {"new_cell": "*fp32", "token_stride": "i32", "emb_scale": "fp32", "eps": "fp32"}
    constants = {"WIDTH": 6144, "EMB_STEP": 6144, "EMB_WIDTH": 24576, "HAS_CELL": True, "BLOCK": 8192}
    assert compiled(gates._lstm_cell, types, constants, num_warps=16).metadata.shared <= 48 * 1024


def test_the_ends_of_a_verify_step_compile():
    types = dict.fromkeys(chain._chain.arg_names, "*i64") | {"bonus": "*i32", "table": "*i32"}
    types |= dict.fromkeys(
        ("tokens_out", "head_stride", "head_step", "table_stride", "last_column", "last", "count", "width"),
        "i32",
    )
    compiled(chain._chain, types, {"BLOCK": 32})
    types = dict.fromkeys(chain._accept.arg_names, "*i64") | {
        "sampled": "*i32",
        "last": "*i32",
        "lengths": "*i32",
    }
    compiled(chain._accept, types | {"rows": "i32", "width": "i32"}, {"BLOCK": 32})
