"""Real-time recurrent learning with a sparse influence dh/dW: exact where the entries left out are 0."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from seqjax.arrays import Array, Carry, Key, Params, Tree
from seqjax.core import Cell, open_dense
from seqjax.gradients.estimator import Estimator, Loss
from seqjax.gradients.online import Sizes, Step, forward_mode, one_step
from seqjax.gradients.structure import dependence
from seqjax.hints import gated_transition
from seqjax.initializers import Initializer, glorot_uniform


class Pattern(NamedTuple):
    """The entries of dh/dW that are kept: C for each of the P params, one for each of C groups of numbers of the carry.

    Attributes:
      rows: int32 [C, P], the one number of group c that the param influences; N where it influences none.
      groups: [C, N], 1 where a number is in the group. So the row vector `groups[c] @ (dh/dW)` holds the kept entries
        of group c, and is one vector-Jacobian product.
      feedback: in `rflo`, the matrix [O, H] that carries the error of the head back to h.
      recurrence: in `snap`, where dh_t/dh_{t-1} is not 0, bool [N, N]; and K groups [K, N] of its rows that share no
        column, so that K vector-Jacobian products compute all of it.
    """

    rows: Array
    groups: Array
    feedback: Array | None = None
    recurrence: tuple[Array, Array] | None = None


def _step_dependence(
    cell: Cell, params: Params, carry: Carry, xs: Tree
) -> tuple[Callable[[np.ndarray], tuple[list[np.ndarray], list[np.ndarray]]], list[int]]:
    """`structure.dependence` of one step of one sequence, on params and on the carry; and the sizes of the carry."""
    carry, x = one_step(carry, xs)

    def f(params, carry, x):
        z = open_dense(cell.project(params, x))
        return jax.tree.leaves(cell.transition(params, carry, z))

    reach, count = dependence(f, params, carry, x), len(jax.tree.leaves(params))
    sizes = [leaf.size for leaf in jax.tree.leaves(carry)]

    def of_params_and_carry(seeds):
        found = reach(seeds)
        return found[:count], found[count : count + len(sizes)]

    return of_params_and_carry, sizes


def _own_numbers(cell: Cell, params: Params, carry: Carry, xs: Tree, name: str) -> np.ndarray:
    """For each leaf of the carry and each param, the one number of the leaf that the param influences: [leaves, P].

    Numbers are identified by the bits of their positions, which takes 2 log2(N) passes instead of N.
    """
    reach, sizes = _step_dependence(cell, params, carry, xs)
    total, offsets = sum(sizes), np.cumsum([0, *sizes])
    bits = max(max(sizes) - 1, 1).bit_length()
    position = np.concatenate([np.arange(size) for size in sizes])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    wanted = position >> np.arange(bits)[:, None] & 1  # [bits, N]
    seeds = (owner == np.arange(len(sizes))[:, None, None, None]) & (wanted[:, None] == np.arange(2)[:, None])
    by_params, by_carry = reach(seeds.reshape(-1, total))

    def decode(mark: np.ndarray) -> tuple[np.ndarray, ...]:
        mark = mark.reshape(len(sizes), bits, 2, -1)
        index = (mark[:, :, 1] * (1 << np.arange(bits))[:, None]).sum(1)
        return index, np.asarray(mark[:, 0].any(1)), np.any(np.all(mark, 2), 1)

    coupled = []
    for b, mark in enumerate(by_carry):
        index, some, several = decode(mark)
        if several.any() or (some & (index != np.arange(index.shape[1]))).any():
            raise ValueError(
                f"{name} needs an elementwise recurrence: a number of this cell's carry depends on other numbers"
            )
        coupled += [(a, b) for a in np.flatnonzero(some.any(1)) if a != b]
    rows = []
    for (path, leaf), mark in zip(tree_leaves_with_path(params), by_params, strict=True):
        index, some, several = decode(mark)
        # A param that influences one number of a unit influences its others in later steps.
        for a, b in coupled * len(sizes):
            several[a] |= some[a] & some[b] & (index[a] != index[b])
            index[a] = np.where(some[a], index[a], index[b])
            some[a] |= some[b]
        if several.any():
            raise ValueError(
                f"{name} needs params that each influence at most one number of each leaf of the carry; those of "
                f"{keystr(path)} {leaf.shape} influence several"
            )
        rows.append(np.where(some, index + offsets[:-1, None], total))
    return np.concatenate(rows, 1)


def _take(values: Array, rows: Array) -> Array:
    """`values[..., rows]`, and 0 for rows out of range."""
    return jnp.take(values, rows, axis=-1, mode="fill", fill_value=0)


def _immediate(step: Step, h: Array, pattern: Pattern) -> tuple[Array, Array]:
    """The next h, and the kept entries [C, P] of the immediate dh/dW of this step."""
    h, pull = jax.vjp(lambda weights: step.transition(weights, h), step.weights)
    return h, jax.vmap(pull)(pattern.groups)[0]


def _pull(step: Step, dh: Array, influence: Array, pattern: Pattern) -> Array:
    del step
    return jnp.sum(_take(dh, pattern.rows) * influence, 0)


def _blank(sizes: Sizes, rows: np.ndarray, groups: np.ndarray) -> tuple[Array, Pattern]:
    influence = jnp.zeros((sizes.batch, *rows.shape), sizes.dtype)
    return influence, Pattern(jnp.asarray(rows, jnp.int32), jnp.asarray(groups, sizes.dtype))


def diagonal_rtrl(cell: Cell, loss: Loss) -> Estimator:
    """Real-time recurrent learning of an elementwise recurrence: exact, at a cost linear in the params.

    Where unit i of the carry depends on no other unit, and every param p belongs to one unit u(p), dh/dW has one
    entry for each param (Mozer 1989, "A focused backpropagation algorithm for temporal pattern recognition"), and the
    entries of a step are one vector-Jacobian product with a vector of ones:

        e_t[p] = a_t[u(p)] e_{t-1}[p] + (1^T dh_t/dW)[p],   a_t = (dh_t/dh_{t-1}) 1
        dL_t/dW[p] = dL_t/dh_t[u(p)] e_t[p] + (the direct part of the readout)

    With C leaves in the carry (two of a `Complex`) a unit is C numbers, one of each leaf, and e_t is [C, P].
    Memory B C P and time of order B C^2 P per step. The condition concerns the projection and the transition; the
    readout may be anything. `init` checks it, and finds u, from the structure of the cell's program; the `affine` hint
    is not needed, so elementwise cells that are not linear work too.

    Args:
      cell: the model, for inputs with exactly one batch axis; a `Const` among its inputs must have it too.
      loss: `(ys [B, O], targets [B, ...]) -> losses [B]`.

    Raises:
      ValueError: in `init`, if a number of the carry depends on others, or a param influences several (as in any stack,
        and in an embedding).
    """
    return forward_mode(cell, loss, *_elementwise(cell, "diagonal_rtrl"), _pull)


def _elementwise(cell: Cell, name: str) -> tuple[Any, Any]:
    """`start` and `advance` of `forward_mode`, for an influence with one entry per param and leaf of the carry."""

    def start(params, carry, xs, sizes):
        rows = _own_numbers(cell, params, carry, xs, name)
        lengths = [leaf.size // sizes.batch for leaf in jax.tree.leaves(carry)]
        return _blank(sizes, rows, np.repeat(np.eye(len(lengths)), lengths, axis=1))

    def advance(step, h, influence, pattern):
        def by_unit(ones):
            return jax.jvp(lambda h: step.transition(step.weights, h), (h,), (ones,))[1]

        by_carry = jax.vmap(by_unit)(pattern.groups)
        h, immediate = _immediate(step, h, pattern)
        return h, jnp.sum(_take(by_carry, pattern.rows) * influence[:, None], 0) + immediate

    return start, advance


def eprop(cell: Cell, loss: Loss) -> Estimator:
    """Eligibility propagation (Bellec et al. 2019, arXiv 1901.09049), with the exact learning signal dL_t/dh_t.

        e_t = (dh_t/dh_{t-1} with the recurrent products held fixed) e_{t-1} + dh_t/dW

    Paths into the past through a recurrent matrix are dropped; those within a unit (the cell state of an LSTM, the kept
    part of a GRU) are followed in full. A simple RNN has no such path, so there it is truncated BPTT(1, 1). Memory and
    time as in `diagonal_rtrl`. With random feedback it is `rflo`.

    Args:
      cell: a gated model, for inputs with exactly one batch axis.
      loss: `(ys [B, O], targets [B, ...]) -> losses [B]`.

    Raises:
      ValueError: for a stack, or a cell without the `gated` hint; in `init`, if within one step a param influences
        several numbers of a leaf of the carry, as those of a reset gate before a product do.
    """
    local = _local(cell, "eprop")
    return forward_mode(local, loss, *_elementwise(local, "eprop"), _pull)


def rflo(cell: Cell, loss: Loss, key: Key, *, feedback: Initializer = glorot_uniform()) -> Estimator:
    """Random feedback local online learning (Murray 2019, "Local online learning in recurrent networks with random
    feedback", eLife 8:e43299).

        e_t = (dh_t/dh_{t-1} with the recurrent products held fixed) e_{t-1} + dh_t/dW, as in `eprop`
        dL_t/dW = (error_t @ B) e_t,   error_t = dL_t / d(h_t @ w_y + b_y) [O]

    The error of the head comes back to h through a fixed random matrix B [O, H] instead of w_y.T, so that no weight has
    to be known in two places. The head is trained by its own exact gradient, and w_y.T comes to resemble B (feedback
    alignment, Lillicrap et al. 2016). The paper's units are leaky, `cells.ct_rnn`; here any cell that `eprop` takes is
    allowed. h is the first leaf of the carry, the output of every gated cell; B stands in for everything between h and
    the head (dropout, a skip), too.

    Args:
      cell: a gated model with `wrappers.with_head` as its outermost wrapper with params, for inputs with exactly one
        batch axis.
      loss: `(ys [B, O], targets [B, ...]) -> losses [B]`.
      key: PRNG key of B, which is drawn in `init` and kept in the state.
      feedback: initializer of B, called with the shape [O, H].

    Raises:
      ValueError: as `eprop`; in `init`, for a model without such a head, or if the head does not read h.
    """
    local = _local(cell, "rflo")
    begin, advance = _elementwise(local, "rflo")

    def start(params, carry, xs, sizes):
        if not isinstance(params, dict) or not {"w_y", "b_y"} <= params.keys():
            raise ValueError("rflo needs a model with wrappers.with_head outermost: these params have no w_y and b_y")
        shape, h = params["w_y"].shape, jax.tree.leaves(carry)[0].shape[1:]
        if h != shape[:1]:
            raise ValueError(f"rflo needs a head that reads the first leaf of the carry {h}, and w_y is {shape}")
        influence, pattern = begin(params, carry, xs, sizes)
        return influence, pattern._replace(feedback=feedback(key, shape[::-1], sizes.dtype))

    def signal(direct, dh, pattern):
        # The gradient by b_y is the error of the head.
        error = direct["b_y"] @ pattern.feedback
        return jnp.pad(error, (0, dh.size - error.size))

    return forward_mode(local, loss, start, advance, _pull, signal)


def _local(cell: Cell, name: str) -> Cell:
    """`cell` with a transition whose derivative with respect to the carry leaves out the recurrent products."""
    if cell.layers:
        raise ValueError(
            f"{name} takes a single layer, got a stack of {len(cell.layers)}, whose layers influence each other"
        )
    if cell.gated is None:
        raise ValueError(f"{name} needs a cell with the `gated` hint: this one has no recurrent product to hold fixed")
    stages = tuple(
        lambda carry, z, us, stage=stage: stage(jax.lax.stop_gradient(carry), z, us) for stage in cell.gated.stages
    )
    return cell._replace(transition=gated_transition(cell.gated._replace(stages=stages)))


def snap(cell: Cell, loss: Loss, n: int = 1) -> Estimator:
    """Sparse n-step approximation of RTRL, SnAp-n (Menick et al. 2021, arXiv 2006.07232).

        J_t = S_n * (dh_t/dh_{t-1} J_{t-1} + dh_t/dW),   S_n [N, P] 0 or 1

    S_n keeps the entries of dh/dW that are nonzero within n steps. The pattern comes from the structure of the cell's
    program. In most dense cells a param reaches every number within 2 steps, and SnAp-2 is RTRL; a recurrent matrix
    times a constant mask makes a sparse cell. Where the pattern does not grow (elementwise recurrences), SnAp-1 is
    exact.

    J is stored as [C, P], for C groups of numbers such that no param influences two of a group: 1 for the SnAp-1 of a
    GRU, 2 for an LSTM (h and c), N for a dense pattern. Memory B C P, time of order B C^2 P per step, plus K times that
    of a step of the network for dh_t/dh_{t-1}: rows that share no column are computed together (Curtis, Powell & Reid
    1974), so that K is N for a dense network, and 1 for an elementwise one. `init` finds the pattern, in N P bytes of
    memory.

    Args:
      cell: the model, for inputs with exactly one batch axis; a `Const` among its inputs must have it too.
      loss: `(ys [B, O], targets [B, ...]) -> losses [B]`.
      n: steps within which an entry must be nonzero to be kept; at least 1.

    Raises:
      ValueError: unless n >= 1.
    """
    if n < 1:
        raise ValueError(f"snap needs n >= 1 steps, got {n}")

    def start(params, carry, xs, sizes):
        reach, _ = _step_dependence(cell, params, carry, xs)
        immediate, once = (np.concatenate(marks, 1) for marks in reach(np.eye(sizes.numbers, dtype=bool)))
        kept = immediate
        for _ in range(n - 1):
            kept = immediate | (once.astype(np.float32) @ kept.astype(np.float32) > 0)
        groups = _groups(kept)
        rows = np.full((len(groups), sizes.params), sizes.numbers)
        for group, row in zip(groups, rows, strict=True):
            for number in np.flatnonzero(group):
                row[kept[number]] = number
        influence, pattern = _blank(sizes, rows, groups)
        return influence, pattern._replace(
            recurrence=(jnp.asarray(once), jnp.asarray(_groups(once), sizes.dtype)),
        )

    def advance(step, h, influence, pattern):
        once, together = pattern.recurrence
        _, by_carry = jax.vjp(lambda h: step.transition(step.weights, h), h)
        by_carry = jnp.where(once, jax.vmap(by_carry)(together)[0][together.argmax(0)], 0)
        h, immediate = _immediate(step, h, pattern)
        # One more row and column of zeros, for the index N, which stands for no number.
        by_carry = jnp.pad(by_carry, ((0, 1), (0, 1)))

        def add(total, group):
            rows, influence = group
            return total + by_carry[pattern.rows, rows[None]] * influence[None], None

        return h, jax.lax.scan(add, immediate, (pattern.rows, influence))[0]

    return forward_mode(cell, loss, start, advance, _pull)


def _groups(kept: np.ndarray) -> np.ndarray:
    """Groups of rows that share no column, found greedily: bool [C, N]."""
    groups, taken = [], []
    for number, row in enumerate(kept):
        fit = next((i for i, columns in enumerate(taken) if not (columns & row).any()), None)
        if fit is None:
            fit = len(groups)
            groups.append(np.zeros(len(kept), bool))
            taken.append(np.zeros_like(row))
        groups[fit][number] = True
        taken[fit] |= row
    return np.stack(groups)
