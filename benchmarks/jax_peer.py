"""The exact kernel by neural-tangents, for ``benchmarks.exact``; runs where JAX is installed.

Reads one JSON object a line and answers with one: ``{"prepare": PROBLEM, "kernel": OUT, "all":
BOOL}`` loads weights and images from .npz, tries the implementations (or takes the first), keeps
the fastest and writes its kernel; ``{"run": true}`` computes that kernel again; ``{"peak": true}``
does so and says what memory it took. A kernel is made of square blocks of one triangle, so that
any number of images fits.
"""

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path

import jax
import neural_tangents as nt
import numpy as np
from jax import lax
from jax import numpy as jnp

IMPLEMENTATIONS = ("STRUCTURED_DERIVATIVES", "JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS")
BLOCKS = (16, 64, 256, 512)  # images a side
GROWTH = 16  # a block's largest growth from one size to the next, in memory and time
TRIAL_SECONDS = 20.0  # a block that may take longer is not tried
HOPELESS = 20.0  # times the best: larger blocks of this implementation are not tried
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def network(plan):
    """Return f(params, x) for layers such as ``conv2 relu max flatten dense``.

    ``conv2`` is a convolution padded by 2; pools are 2x2. Images and filters are laid out as in
    torch, which costs the same here as JAX's own layout; see ``load`` for dense weights.
    """

    def f(params, x):
        left = iter(params)
        for layer in plan.split():
            if layer.startswith("conv"):
                padding = [(int(layer.removeprefix("conv")),) * 2] * 2
                x = lax.conv_general_dilated(x, next(left), (1, 1), padding)
                x = x + next(left)[:, None, None]
            elif layer == "dense":
                x = x @ next(left) + next(left)
            elif layer == "relu":
                x = jnp.maximum(x, 0)
            elif layer == "flatten":
                x = x.reshape(len(x), -1)
            elif layer == "max":
                x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
            elif layer == "mean":
                x = lax.reduce_window(x, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") / 4
            else:
                raise ValueError(f"layer {layer!r}; expected conv<padding>, dense, relu, max, mean")
        return x

    return f


class Kernel:
    """The trace kernel by one implementation, in blocks of one size."""

    def __init__(self, problem, name, block):
        self.name, self.block = name, block
        self.params, self.x = problem["params"], problem["x"]
        kernel = nt.empirical_ntk_fn(
            network(problem["plan"]),
            trace_axes=(-1,),
            vmap_axes=0,
            implementation=nt.NtkImplementation[name],
        )
        # neural-tangents takes the mean over traced outputs, not their sum
        outputs = problem["outputs"]
        self.same = jax.jit(lambda params, x: outputs * kernel(x, None, params))
        self.cross = jax.jit(lambda params, x, y: outputs * kernel(x, y, params))

    def __call__(self):
        """Return the kernel, float32 [n, n]."""
        n, b = len(self.x), self.block
        found = np.empty((n, n), np.float32)
        starts = range(0, n, b)
        for i in starts:
            x = self.x[i : i + b]
            found[i : i + b, i : i + b] = self.same(self.params, x)
            for j in starts[: i // b]:
                tile = np.asarray(self.cross(self.params, x, self.x[j : j + b]))
                found[i : i + b, j : j + b] = tile
                found[j : j + b, i : i + b] = tile.T
        return found

    def trial(self):
        """Return the seconds of the whole kernel, by those of one block of each kind, and these."""
        n, b = len(self.x), self.block
        calls = [lambda: self.same(self.params, self.x[:b])]
        if b < n:
            calls.append(lambda: self.cross(self.params, self.x[:b], self.x[b : 2 * b]))
        each = []
        for call in calls:
            call().block_until_ready()  # compiles
            start = time.perf_counter()
            call().block_until_ready()
            each.append(time.perf_counter() - start)
        count = n // b
        return count * each[0] + count * (count - 1) // 2 * each[-1], each[-1]


def load(path):
    """Return the weights and images of an .npz file as arrays of JAX.

    Dense weights become [in, out]: neural-tangents does not see the structure of ``x @ weight.T``,
    and its structured derivatives are hundreds of times slower with it.
    """
    with np.load(path) as file:
        count = sum(name.startswith("param") for name in file.files)
        params = [file[f"param{i}"] for i in range(count)]
        plan, x = str(file["plan"]), jnp.asarray(file["x"])
    params = [jnp.asarray(np.ascontiguousarray(p.T if p.ndim == 2 else p)) for p in params]
    outputs = jax.eval_shape(network(plan), params, x).shape[1]
    return {"plan": plan, "params": params, "x": x, "outputs": outputs}


def choose(problem, limit, names):
    """Return the fastest kernel of these implementations, and what was tried."""
    n = len(problem["x"])
    blocks = sorted({b for b in BLOCKS if b < n and n % b == 0} | {min(n, BLOCKS[-1])})
    tried, best, least = [], None, float("inf")
    for name in names:
        for b in blocks:
            kernel = Kernel(problem, name, b)
            before = reset_peak()
            try:
                seconds, of_block = kernel.trial()
            except Exception as error:
                text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                tried.append({"name": name, "block": b, "error": text})
                break
            tried.append({"name": name, "block": b, "seconds": seconds})
            if seconds < least:
                best, least = kernel, seconds
            too_large = GROWTH * (peak() - before) > limit
            if too_large or GROWTH * of_block > TRIAL_SECONDS or seconds > HOPELESS * least:
                break
    return best, tried


def peak():
    """Return the peak of this process's resident memory, in bytes."""
    if STATUS.exists():
        line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak():
    """Let the peak start again where the system can, and return it."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")
    return peak()


def main():
    """Answer until the input ends."""
    threads, limit = int(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    kernel = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "prepare" in asked:
            names = IMPLEMENTATIONS if asked["all"] else IMPLEMENTATIONS[:1]
            kernel, tried = choose(load(asked["prepare"]), limit, names)
            answer = {"tried": tried, "versions": [jax.__version__, nt.__version__]}
            if kernel:
                np.save(asked["kernel"], kernel())
                answer |= {"name": kernel.name, "block": kernel.block}
        elif "peak" in asked:
            before = reset_peak()
            kernel()
            answer = {"peak": peak() - before}
        else:
            kernel()
            answer = {}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
