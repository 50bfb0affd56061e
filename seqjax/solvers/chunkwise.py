"""A matrix carry in chunks of time: matrix products within a chunk, a recurrence from chunk to chunk."""

from functools import partial

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Params, Tree, like
from seqjax.core import Cell, over_time, project_all, split_const
from seqjax.hints import Read, Write
from seqjax.solvers.associative import CACHED, by_platform
from seqjax.solvers.chunks import over_chunks

__all__ = ["chunkwise"]

product = partial(jnp.matmul, precision="highest")


def _decay_to_end(log_decay: Array) -> Array:
    """[..., C, K]: the decay from each of the C steps to the last one."""
    later = jnp.concatenate([log_decay[..., 1:, :], jnp.zeros_like(log_decay[..., :1, :])], -2)
    return jnp.exp(jax.lax.cumsum(later, later.ndim - 2, reverse=True))


def _decay_from_start(log_decay: Array) -> Array:
    """[..., C, K]: the decay from before the first of the C steps to each of them."""
    return jnp.exp(jax.lax.cumsum(log_decay, log_decay.ndim - 2))


def _scores(q: Array, k: Array, log_decay: Array | None) -> Array:
    """[M, C, C]: q_t^T exp(log_decay_{s+1} + ... + log_decay_t) k_s for s <= t, otherwise 0, for M sequences at once.

    q and k are [M, C, K], and C is a power of 2. For s in the first half of the steps and t in the second, the decay is
    the product of those from s to the middle and from the middle to t, both at most 1, so that nothing overflows and
    the scores are a matrix product. Each half is a smaller instance of the same problem.
    """
    many, steps, _ = q.shape
    if log_decay is None:
        return jnp.tril(product(q, jnp.swapaxes(k, 1, 2)))
    if steps == 1:
        return (q * k).sum(-1, keepdims=True)
    half = steps // 2
    # In two steps: a reshape of an explicitly sharded array can either split axes or join them.
    cut = (u.reshape(many, 2, half, u.shape[-1]) for u in (q, k, log_decay))
    halves = _scores(*(u.reshape(2 * many, half, u.shape[-1]) for u in cut))
    first, second = (halves.reshape(many, 2, half, half)[:, i] for i in (0, 1))
    late = q[:, half:] * _decay_from_start(log_decay[:, half:])
    early = k[:, :half] * _decay_to_end(log_decay[:, :half])
    across = product(late, jnp.swapaxes(early, 1, 2))
    return _block_lower(first, across, second)


def _block_lower(first: Array, across: Array, second: Array) -> Array:
    """[[first, 0], [across, second]]."""
    above = jnp.concatenate([first, jnp.zeros_like(across)], 2)
    return jnp.concatenate([above, jnp.concatenate([across, second], 2)], 1)


def _inverse(e: Array) -> Array:
    """The inverse of 1 + e, for strictly lower triangular e [M, C, C]: by those of its two diagonal blocks."""
    many, steps, _ = e.shape
    if steps == 1:
        return jnp.ones_like(e)
    half = steps // 2
    halves = _inverse(jnp.stack([e[:, :half, :half], e[:, half:, half:]], 1).reshape(2 * many, half, half))
    first, second = (halves.reshape(many, 2, half, half)[:, i] for i in (0, 1))
    return _block_lower(first, -product(second, product(e[:, half:, :half], first)), second)


def _stabilizer(m: Array, step: Write, sequential: bool) -> Array:
    """m <- max(log_decay + m, log_write) for all steps, from m before the first."""
    if sequential:

        def body(m, x):
            m = jnp.maximum(x[0] + m, x[1])
            return m, m

        return jax.lax.scan(body, m, (step.log_decay, step.log_write))[1]

    def compose(f, g):
        return f[0] + g[0], jnp.maximum(f[1] + g[0], g[1])

    decay, write = jax.lax.associative_scan(compose, (step.log_decay, step.log_write))
    return jnp.maximum(decay + like(m, decay), write)


def _run(step: Write, h: Array, chunk: int) -> tuple[Array, Array]:
    """The matrices after the last step, from h [N, K, V] before the first, and the reads of all steps [T, N, V]."""
    steps, many, _ = step.key.shape

    def cut(u):
        """[T, N, K] as [T / C, N, C, K], padded with zeros, which are idle steps."""
        u = jnp.pad(u, [(0, -steps % chunk), (0, 0), (0, 0)])
        return jnp.swapaxes(u.reshape(-1, chunk, *u.shape[1:]), 1, 2)

    def scores_of(q):
        flat_q, flat_k = (u.reshape(-1, *u.shape[2:]) for u in (q, k))
        return _scores(flat_q, flat_k, None if log_decay is None else log_decay.reshape(-1, *log_decay.shape[2:]))

    def each(scores):
        return scores.reshape(-1, many, chunk, chunk)

    q, k, v, log_decay, erase, _ = jax.tree.map(cut, step)
    scores = each(scores_of(q))
    erase_h = erase  # decayed since h, the matrix before the chunk
    out, kept, w, erased = k, None, None, None
    if log_decay is not None:
        start, out = _decay_from_start(log_decay), k * _decay_to_end(log_decay)
        q, kept = q * start, jnp.swapaxes(start[..., -1:, :], -1, -2)
        if erase is not None:
            erase_h = erase * start
    if erase is not None:
        # Each step writes u, which is v minus what it reads of h and of earlier u: (1 + E) u = v - erase_h h.
        inverse = each(_inverse(scores_of(erase)))
        v, w = product(inverse, v), product(inverse, erase_h)
        erased = product(jnp.swapaxes(out, -1, -2), w)
    written = product(jnp.swapaxes(out, -1, -2), v)

    def body(h, x):
        kept, erased, written = x
        after = written + (h if kept is None else kept * h)
        return after if erased is None else after - product(erased, h), h

    last, before = jax.lax.scan(body, h, (kept, erased, written))
    u = v if w is None else v - product(w, before)
    seen = jnp.swapaxes(product(q, before) + product(scores, u), 1, 2)
    return last, seen.reshape(-1, *seen.shape[2:])[:steps]


def chunkwise(cell: Cell, params: Params, carry: Carry, xs: Tree, *, chunk: int | None = None) -> tuple[Carry, Tree]:
    """Chunks of C steps as matrix products (Yang et al. 2023, arXiv 2312.06635, and 2024, arXiv 2406.06484).

        h_t = a_t h_{t-1} + k_t u_t^T,   u_t = v_t - e_t^T a_t h_{t-1},   r_t = q_t^T h_t

    With d_ts = a_{s+1} ... a_t, products of numbers of at most 1, and h the matrix before the chunk, this is

        (1 + E) U = V - (e_t d_t0) h,   E_ts = e_t^T d_ts k_s for s < t     (the WY form; E = 0 where nothing is erased)
        R = (q_t d_t0) h + S U,         S_ts = q_t^T d_ts k_s for s <= t
        h <- d_C0 h + (d_Ct k_t)^T U

    All but the last line runs in parallel over the chunks; the matrix after a single step is never formed. The decays
    within a chunk are exponentials of sums of logarithms, none of them above 1. A CPU runs as many chunks at a time as
    its cache holds; the gradient recomputes them.

    Args:
      cell: a cell with the `outer` hint.
      params: its params.
      carry: the carry before the first step.
      xs: inputs [T, B, D].
      chunk: C, a power of 2, by default 64, or 16 on a CPU. T need not be a multiple of it.

    Returns:
      `(carry, ys)`, as `unroll`.

    Raises:
      ValueError: for a cell without the hint, or a chunk that is not a power of 2.
    """
    if cell.outer is None:
        raise ValueError('method "chunkwise" needs a cell with the `outer` hint; use "scan"')
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1 or chunk & (chunk - 1)):
        raise ValueError(f"chunk must be a power of 2, got {chunk}")
    outer = cell.outer

    def run(size, sequential, params, carry, xs):
        zs = project_all(cell, params, xs)
        step = over_time(partial(outer.write, params), zs)
        h, m = outer.pack(carry)
        if m is not None:
            ms = _stabilizer(m, step, sequential)
            step, m = step.stabilized(jnp.concatenate([m[None], ms[:-1]]), ms), ms
        run_one = partial(_run, chunk=size)
        for _ in h.shape[:-3]:
            run_one = jax.vmap(run_one, (1, 0), (0, 1))
        h, seen = run_one(step, h)
        reads = outer.unpack(Read(seen), m)
        return outer.unpack(h, None if m is None else m[-1]), over_time(partial(cell.readout, params), reads, zs)

    def run_all(sequential):
        def run_chunks(params, carry, xs):
            size = (16 if sequential else 64) if chunk is None else chunk
            steps = split_const(xs)[0][0].shape[0]
            largest = max(leaf.size for leaf in jax.tree.leaves(carry))
            matrices = CACHED // (8 * max(largest, 1))  # seven more arrays of that size are in use
            at_once = min(steps, size * max(matrices, 1)) if sequential else steps
            return over_chunks(partial(run, size, sequential, params), carry, xs, at_once)

        return run_chunks

    return by_platform(run_all, params, carry, xs)
