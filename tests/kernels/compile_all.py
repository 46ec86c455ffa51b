"""Compiles every fused kernel for GPUs that need not be there. Run as a script, without Triton's interpreter."""

from __future__ import annotations

import sys
from importlib import import_module

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stabwatch.kernels.attention_scores.fused import tiles_of

KERNELS = "stabwatch.kernels."
LISTS = {"sizes": "*i64", "work": "*i64", "aggregates": "*fp32"}
SIZES = {"BLOCK": 2048}


def variants():
    """(module, kernel, types of what is no 32-bit integer, constants, options if not eight warps)."""
    for kind in ("*bf16", "*fp16", "*fp32", "*fp64"):
        for full in (False, True):
            yield "moments", "_aggregates", {"x": kind, "aggregates": "*fp32"}, {"FULL": full, **SIZES}
        bins = {"BINS": 83, "LOW": -40, "HIGH": 40, "BIAS": 127, "ROOM": 128}
        yield "exponent_histogram", "_counts", {"x": kind, "aggregates": "*fp32"}, {**bins, **SIZES}
        yield "column_moments", "_sums", {"x": kind, "aggregates": "*fp32"}, {"TOKENS": 32, "FEATURES": 64}
    for kind in (tl.bfloat16, tl.float64):
        constants = {"KIND": kind, "ALIGNED": True, "FULL": True, **SIZES}
        yield "multi_tensor", "_moments", {"pointers": "*i64", **LISTS}, constants
    constants = {"OLD": tl.bfloat16, "NEW": tl.float32, "ALIGNED": False, **SIZES}
    yield "multi_tensor", "_change", {"old": "*i64", "new": "*i64", **LISTS}, constants
    fold = {"SUMS": 3, "FIELDS": 8, "BLOCK": 512}
    yield "launch", "_update", {"aggregates": "*fp32", "out": "*fp32"}, {"starts": None, "MERGE": False, **fold}
    yield "launch", "_update", {"aggregates": "*fp32", "starts": "*i64", "out": "*fp32"}, {"MERGE": True, **fold}
    for merge in (True, False):
        constants = {"MERGE": merge, "HEADS": 16, "BLOCK": 256}
        yield "attention_scores", "_largest", {"aggregates": "*fp32", "out": "*fp32"}, constants
    for full in (True, False):
        yield from attention(full)


def attention(full):
    """Every kind of call, with the tiles that a call of that width and type gets."""
    heads = (("*bf16", 2, 128), ("*fp32", 4, 64)), (("*bf16", 2, 64),), (("*fp16", 2, 256), ("*fp32", 4, 512))
    for mask, of_mask in enumerate(heads):
        for kind, size, width in of_mask:
            tiles = tiles_of(width, size)
            types = {"q": kind, "k": kind, "mask": "*u8" if mask < 2 else kind, "aggregates": "*fp32"}
            flags = {"CAUSAL": mask == 0, "WINDOW": mask == 1, "SOFTCAP": mask == 2, "MASK": mask}
            flags |= {"FULL": full, "SCALED": mask == 2, "WHOLE": mask != 1}
            blocks = {"BLOCK_T": tiles.rows, "BLOCK_S": tiles.keys, "BLOCK_D": width}
            types |= {"scale": "fp32", "softcap": "fp32"}
            options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
            yield "attention_scores", "_statistics", types, {"q_d": 1, "k_d": 1, **flags, **blocks}, options


def compiled(capability, module, kernel, types, constants, options=None):
    """Compile one variant; pointers are taken to be aligned, numbers are not."""
    place = KERNELS + module if module == "launch" else f"{KERNELS}{module}.fused"
    function = getattr(import_module(place), kernel)
    names = function.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    source = ASTSource(
        function,
        signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options or {"num_warps": 8})


if __name__ == "__main__":
    for capability in map(int, sys.argv[1:]):
        for variant in variants():
            found = compiled(capability, *variant)
            wide = found.asm["ptx"].count("ld.global.v4") + found.asm["ptx"].count("ld.global.v2.b64")
            print(capability, *variant[:2], f"shared={found.metadata.shared}", f"wide_loads={wide}")
