"""Running cells over sequences: `unroll`, `bidirectional`, `generate`."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.errors import ConcretizationTypeError
from jax.extend.core import concrete_or_error

from seqjax.arrays import Array, Carry, Key, Params, Tree, as_arrays, check_indices, from_numpy
from seqjax.core import Cell, batch_shape, features, mismatch, split_const, with_stepped, without_stepped
from seqjax.decoding import autoregress
from seqjax.identity import Value
from seqjax.solvers.choice import choose
from seqjax.solvers.dispatch import Solver, solve
from seqjax.solvers.persistent.tiling import gpus
from seqjax.wrappers import masked

__all__ = [
    "bidirectional",
    "generate",
    "mask_from_lengths",
    "unroll",
]


def mask_from_lengths(lengths: Array, steps: int) -> Array:
    """bool [T, B] that is true at the first `lengths[b]` steps of sequence b; lengths int [B].

    Raises:
      TypeError: for lengths that are no array of integers.
      ValueError: for a length below 0 or above the number of steps, where it is known: under jit it is not.

    Example:
      >>> seqjax.mask_from_lengths(jnp.array([3, 1]), 3).T.tolist()
      [[True, True, True], [True, False, False]]
    """
    lengths = as_arrays("lengths", "an array int [B]", lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if not isinstance(lengths, Tracer):
        known = np.asarray(lengths)  # in NumPy: under jit every operation of JAX is traced, on known values too
        if ((known < 0) | (known > steps)).any():
            raise ValueError(f"lengths must lie between 0 and the number of steps {steps}, got {known}")
    lengths = lengths.astype(jnp.int32)  # a narrow type such as uint8 cannot count all steps
    time = jnp.arange(steps, dtype=jnp.int32).reshape(steps, *(1,) * lengths.ndim)
    return time < jnp.expand_dims(lengths, 0)


def reverse_time(xs: Tree) -> Tree:
    """Flip the time axis of every timed leaf."""
    timed, merge = split_const(xs)
    return merge([jnp.flip(leaf, 0) for leaf in timed])


def checked_inputs(cell: Cell, xs: Tree, mask: Array | None) -> tuple[Tree, Array | None]:
    """Inputs and mask as JAX arrays: [T, B, ...] of one number of steps, not 0, and bool [T, B]."""
    xs = as_arrays("xs", "an array [T, B, D] or a tree of arrays", xs)
    mask = as_arrays("mask", "an array bool [T, B]", mask)
    timed, _ = split_const(xs)
    if not timed:
        raise ValueError("unroll needs inputs with a time axis, got only Const leaves")
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in timed}
    if None in lengths or len(lengths) > 1:
        raise ValueError(f"all inputs must have the same number of steps, got {[leaf.shape for leaf in timed]}")
    if lengths == {0}:
        raise ValueError("unroll got an empty sequence: the inputs have 0 steps")
    batch = batch_shape(xs, cell.space)
    shape, after = features(xs).shape, 1 + len(batch)
    if shape[after : after + len(cell.space)] != cell.space:
        axes = ", ".join(map(str, cell.space))
        raise ValueError(f"inputs have shape {shape}, expected [T, B, {axes}, D] for a cell of the space {cell.space}")
    if mask is not None and (mask.dtype != bool or mask.shape != (*lengths, *batch)):
        raise ValueError(f"mask must be bool {(*lengths, *batch)}, [T, B] of the inputs, got {mask.dtype} {mask.shape}")
    return xs, mask


def _entered(cell: Cell, params: Params, carry: Carry, xs: Tree) -> Carry:
    """A carry that was given, as the functions of the cell see it."""

    def describe(tree):
        return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)

    inner = jax.eval_shape(lambda params: cell.initial_carry(params, batch_shape(xs, cell.space)), params)
    expected, given = describe(inner), describe(jax.eval_shape(lambda carry: carry, carry))
    plain = without_stepped(expected)
    for form in (expected, plain):
        # A named tuple equals a plain one, so the structures are compared too.
        if jax.tree.structure(given) == jax.tree.structure(form) and given == form:
            return carry if form is expected else with_stepped(inner, carry)
    raise ValueError(f"the carry is {given}, expected {plain} for inputs {list(features(xs).shape)}")


def unroll(
    cell: Cell,
    params: Params,
    carry: Carry | None,
    xs: Tree,
    *,
    mask: Array | None = None,
    reverse: bool = False,
    method: str | Solver = "auto",
) -> tuple[Carry, Tree]:
    """Run a cell over sequences.

        for t in range(T):  carry, ys[t] = cell.step(params, carry, xs[t])

    Args:
      cell: the cell.
      params: its params, as from `cell.init(key, D)`.
      carry: the carry before the first step, or None for the cell's initial carry.
      xs: inputs [T, B, D] (any number of batch axes), tokens int [T, B], images [T, B, H, W, D] where the cell has such
        a `space`, or a tree of such as the cell takes; a `Const` in it has no time axis. NumPy arrays, here and above,
        are taken as `jnp.asarray` takes them: 64 bits become 32, unless `jax_enable_x64` is set.
      mask: bool [T, B]; steps where it is false are skipped (`wrappers.masked`): the carry stays, the output is 0.
      reverse: run from the last step to the first; ys stays in the order of xs. With a mask that pads at the end, each
        sequence starts at its own last step.
      method: "auto", or one of `seqjax.solvers.METHODS` ("scan", "fused", ...), or a solver, such as
        `partial(solvers.checkpointed, chunk=100)`.

    Returns:
      `(carry, ys)`: the carry after the last step, and the outputs [T, B, O].

    Raises:
      ValueError: for an empty sequence, lengths that differ, params of another cell or of other sizes, a carry or mask
        of another shape, features that do not fit the weights, a known token outside of the vocabulary that the mask
        does not skip, or a method that the cell does not admit.
      TypeError: for inputs of a dtype that the cell does not take.

    Example:
      >>> cell = seqjax.cells.gru(4)
      >>> params = cell.init(jax.random.key(0), 3)
      >>> xs = jax.random.normal(jax.random.key(1), (6, 2, 3))  # [T, B, D]
      >>> carry, ys = seqjax.unroll(cell, params, None, xs)
      >>> carry.shape, ys.shape
      ((2, 4), (6, 2, 4))
      >>> middle, _ = seqjax.unroll(cell, params, None, xs[:4])  # a stream in two chunks
      >>> end, _ = seqjax.unroll(cell, params, middle, xs[4:])
      >>> bool(jnp.allclose(end, carry, atol=1e-6))
      True
      >>> mask = seqjax.mask_from_lengths(jnp.array([6, 4]), 6)
      >>> last, _ = seqjax.unroll(cell, params, None, xs, mask=mask)  # the second sequence ends after 4 steps
      >>> bool(jnp.allclose(last[1], middle[1], atol=1e-6))
      True
    """
    xs, mask = checked_inputs(cell, xs, mask)
    params, carry = from_numpy((params, carry))
    if not _known((params, carry, xs, mask)):
        return _run(cell, method, reverse, params, carry, xs, mask)
    if cell.vocabulary:
        tokens = np.asarray(features(xs))
        check_indices("tokens", tokens if mask is None else tokens[np.asarray(mask)], cell.vocabulary)
    # Outside of jit every loop is a separate program, compiled once per cell and shapes, not once per call.
    return _compiled(cell, Value(method) if callable(method) else method, reverse)(params, carry, xs, mask)


def _check_params(cell: Cell, params: Params, xs: Tree) -> None:
    """Check that params are those that `cell.init` makes, as far as it can be traced."""
    x = features(xs)
    in_features: Any = x.shape[-1] if x.ndim and jnp.issubdtype(x.dtype, jnp.floating) else 0

    def problem(size: int) -> str | Exception | None:
        try:
            return mismatch(cell, size, params, more=True)
        except Exception as error:  # an init that rejects this number of features, or cannot be traced
            return error

    if not isinstance(in_features, int) or (found := problem(in_features)) is None:
        return
    # Where the params are the cell's own for other inputs, the cell has an error that names the inputs. The features
    # are an axis of some weights, or divide one.
    sizes = {size for leaf in jax.tree.leaves(params) for size in leaf.shape}
    others = {0, *(part for size in sizes for part in range(1, size + 1) if size % part == 0)}
    if isinstance(found, str) and not any(problem(size) is None for size in others):
        raise ValueError(found)


def _run(cell, method, reverse, params, carry, xs, mask):
    _check_params(cell, params, xs)
    given = carry
    if given is None:
        carry = cell.initial_carry(params, batch_shape(xs, cell.space))
    else:
        carry = _entered(cell, params, given, xs)
    kept = carry is given
    if mask is not None:
        cell, xs = masked(cell), (xs, mask)
    if reverse:
        xs = reverse_time(xs)
    carry, ys = solve(method, cell, params, carry, xs)
    return carry if kept else without_stepped(carry), reverse_time(ys) if reverse else ys


@lru_cache(maxsize=128)
def _compiled(cell: Cell, method: str | Value, reverse: bool) -> Callable[..., tuple[Carry, Tree]]:
    solver = method.value if isinstance(method, Value) else method
    return jax.jit(partial(_run, cell, solver, reverse))


def _known(tree: Tree) -> bool:
    """Whether all values are known now, in a derivative too: nothing is being staged."""
    try:
        for leaf in jax.tree.leaves(tree):
            concrete_or_error(None, leaf)
    except ConcretizationTypeError:
        return False
    return True


def bidirectional(
    cells: tuple[Cell, Cell],
    params: tuple[Params, Params],
    carries: tuple[Carry, Carry] | None,
    xs: Tree,
    *,
    mask: Array | None = None,
    method: str | Solver = "auto",
) -> tuple[tuple[Carry, Carry], Array]:
    """Run one cell forward and another backward in time (Schuster & Paliwal 1997).

    Under `jit` on a GPU, equal cells that `persistent` runs are lanes of one kernel.

    Args:
      cells: the forward and the backward cell.
      params: theirs.
      carries: theirs, or None for the initial ones.
      xs: inputs [T, B, D].
      mask: bool [T, B], as in `unroll`: the backward cell starts at each sequence's own last step.
      method: as in `unroll`.

    Returns:
      Both last carries, and the outputs concatenated at each step [T, B, O + O'].

    Example:
      >>> cells = seqjax.cells.gru(4), seqjax.cells.gru(5)
      >>> params = tuple(cell.init(jax.random.key(0), 3) for cell in cells)
      >>> _, ys = seqjax.bidirectional(cells, params, None, jnp.ones((6, 2, 3)))
      >>> ys.shape
      (6, 2, 9)
    """
    carries = carries if carries is not None else (None, None)
    calls = partial(_calls, cells, method)
    if method == "auto" and _shareable(cells, params, carries, xs):
        lanes = partial(_lanes, cells[0])
        return jax.lax.platform_dependent(params, carries, xs, mask, cuda=lanes, default=calls)
    return calls(params, carries, xs, mask)


def _calls(cells, method, params, carries, xs, mask):
    run = partial(unroll, mask=mask, method=method)
    forward, ys = run(cells[0], params[0], carries[0], xs)
    backward, zs = run(cells[1], params[1], carries[1], xs, reverse=True)
    return (forward, backward), jnp.concatenate([ys, zs], axis=-1)


def _lanes(cell, params, carries, xs, mask):
    """Both directions as lanes of one loop."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(params, carries, strict=True))
    inputs = jax.tree.map(lambda *leaves: jnp.stack(leaves), (xs, mask), reverse_time((xs, mask)))
    run = lambda both, inputs: unroll(cell, both[0], both[1], inputs[0], mask=inputs[1])  # noqa: E731
    carry, ys = jax.vmap(run)(stacked, inputs)
    last = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], carry) for i in (0, 1))
    return last, jnp.concatenate([ys[0], reverse_time(ys[1])], axis=-1)


def _shareable(cells, params, carries, xs) -> bool:
    """Whether a GPU of this process runs both directions as one kernel: on an H200 that takes 0.6 of two in a row."""
    # Outside of jit each direction is a compiled program already.
    if not gpus() or _known((params, carries, xs)):
        return False
    cell = cells[0]
    types = [jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), both) for both in (params, carries)]
    if cells[1] != cell or any(one != other for one, other in types) or cell.layers or cell.gated is None:
        return False
    xs, carry = as_arrays("xs", "an array [T, B, D] or a tree of arrays", xs), carries[0]
    if carry is None:
        carry = jax.eval_shape(lambda params: cell.initial_carry(params, batch_shape(xs, cell.space)), params[0])
    return choose("cuda", cell, params[0], carry, xs) == "persistent"


def generate(
    cell: Cell,
    params: Params,
    carry: Carry,
    x: Tree,
    steps: int,
    key: Key,
    choose: Callable[[Key, Tree], Tree],
) -> tuple[Carry, Tree]:
    """Generate autoregressively: each output, after a choice, is the next input.

        carry, y = cell.step(params, carry, x);  x = choose(fold_in(key, t), y)

    Args:
      cell: the cell.
      params: its params.
      carry: the carry before the first step, such as `unroll` returns.
      x: first input, [B] or [B, D].
      steps: how many inputs to choose.
      key: PRNG key; that of step t is `jax.random.fold_in(key, t)`.
      choose: `(key, y) -> x`; for tokens `decoding.choose`, or a `partial` of it with options.

    Returns:
      The last carry and the chosen inputs [steps, B, ...].

    Raises:
      ValueError: for a carry that is not one of the cell for such inputs.

    Example:
      >>> cell = seqjax.wrappers.with_head(seqjax.wrappers.with_embedding(seqjax.cells.gru(8), 5, 4), 5)
      >>> params = cell.init(jax.random.key(0), 0)  # reads tokens, outputs the logits of the next one
      >>> start = cell.initial_carry(params, (2,)), jnp.array([0, 3])
      >>> carry, tokens = seqjax.generate(cell, params, *start, 10, jax.random.key(1), seqjax.decoding.choose)
      >>> tokens.shape, bool((tokens < 5).all())
      ((10, 2), True)
    """

    given = carry
    carry = _entered(cell, params, given, jax.tree.map(lambda leaf: leaf[None], x))
    last, xs = autoregress(partial(cell.step, params), carry, x, steps, key, choose)
    return last if carry is given else without_stepped(last), xs
