"Kernels with a mistake each, to see that the tests would find it."

import triton
import triton.language as tl


@triton.jit
def no_mask(OUT, n):
    i = tl.program_id(0) * 4 + tl.arange(0, 4)
    tl.store(OUT + i, 1.0)


@triton.jit
def reads_beyond(X, OUT, n):
    i = tl.program_id(0) * 2 + tl.arange(0, 2)
    tl.atomic_add(OUT, tl.sum(tl.load(X + i)))


@triton.jit
def last_wins(OUT, n):
    tl.store(OUT, tl.program_id(0).to(tl.float32))
