"""The fused kernels without a GPU: what they compute, and what they are compiled to."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leansplit.noise.fused import fused_kernel_for

INTERPRETED = Path(__file__).with_name("interpreted_kernels.py")


def test_interpreted_kernels_have_the_bits_of_the_stream():
    """Triton decides when it is imported whether it interprets, so in a process of their own."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", INTERPRETED],
        capture_output=True,
        text=True,
        check=False,
        cwd=INTERPRETED.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_the_cpu_has_none():
    assert fused_kernel_for(torch.device("cpu"), "gaussian") is None


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("is_rademacher", "counters"), [(False, 128), (True, 8)])
def test_compiled_code_rounds_each_operation_by_itself(capability, is_rademacher, counters):
    """A compiler needs no GPU. Loads and stores are of four elements at once."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from leansplit.noise.triton_kernels import add_scaled_kernel

    constants = {"IS_RADEMACHER": is_rademacher, "IS_CUT_OFF": False, "COUNTERS": counters}
    types = {"base_pointer": "*fp32", "out_pointer": "*fp32", "seeds_pointer": "*i64"}
    types |= {"scales_pointer": "*fp32", "num_elements": "i32", "first_block": "i32"}
    types |= {"num_directions": "i32"}
    source = triton.compiler.ASTSource(
        add_scaled_kernel,
        types | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in (0, 1)},
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"enable_fp_fusion": False})
    code = compiled.asm["ptx"]
    assert not re.search(r"\b(fma|mad)\.\S*f32|\.approx|\.full|\.ftz", code)
    assert re.search(r"\bmul\.rn\.f32", code) and re.search(r"\badd\.rn\.f32", code)
    assert "ld.global.v4.b32" in code and "st.global.v4.b32" in code
    assert is_rademacher or ("div.rn.f32" in code and "sqrt.rn.f32" in code)
