"""The cell: what a recurrence is, split by what may run in parallel over time.

    z_t = project(params, x_t)               parallel over time
    h_t = transition(params, h_{t-1}, z_t)   the only sequential line
    y_t = readout(params, h_t, z_t)          parallel over time

Every function is written for one step, with any leading axes: `[D]` is a single sequence, `[B, D]` a batch. Solvers map
`project` and `readout` over time, in parallel (`over_time`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Key, Params, Tree, carry_dtype, dense, exportable, like
from seqjax.hints import Gated, Outer, around
from seqjax.identity import by_value
from seqjax.placement import placed_alike


@jax.tree_util.register_static
@by_value
class Cell(NamedTuple):
    """A recurrent cell as a tuple of pure functions.

    To JAX it is a tree without arrays: a jitted function takes a cell as it takes params, and is compiled for each.

    Attributes:
      init: `(key, in_features) -> params`, a plain tree of arrays. A cell that reads tokens has 0 features.
      initial_carry: `(params, batch_shape) -> carry`; every leaf is `[*batch_shape, ...]`.
      project: `(params, x) -> z`. A leaf of z may be a `Dense`: a product that is left to the solver.
      transition: `(params, carry, z) -> carry`, one step.
      readout: `(params, carry, z) -> y`.
      gated: optional hint, see `Gated`.
      affine: optional hint `(params, z) -> (a, b)`: the transition is `a * carry + b`, elementwise;
        where the carry holds a `Complex`, so do a and b, and the product is that of complex numbers (`multiply`).
      layers: optional hint: unrolling this cell is unrolling these cells one after the other, each on the outputs
        of the one before. `params` and the carry are then tuples with one entry a layer.
      outer: optional hint, see `Outer`.
      space: the sizes of the axes that an input has between batch and features: (H, W) for images [B, H, W, D], and
        () for vectors [B, D]. They belong to one sequence, and every leaf of its carry may mix them.
      vocabulary: the number of tokens V of a cell that reads tokens, 0 of one that reads features. `unroll` refuses
        other tokens where they are known.

    A hint is a second description of the same transition. Tests check that every hint agrees with `transition`.

    Example:
      >>> cell = seqjax.cells.min_gru(4)
      >>> params = cell.init(jax.random.key(0), 3)
      >>> jax.tree.map(jnp.shape, params)
      {'b': (8,), 'w_x': (3, 8)}
      >>> carry, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
      >>> y.shape, cell.gated is None, cell.affine is None  # no matrix product of the carry; linear in it
      ((2, 4), True, False)
    """

    init: Callable[[Key, int], Params]
    initial_carry: Callable[[Params, tuple[int, ...]], Carry]
    project: Callable[[Params, Tree], Tree]
    transition: Callable[[Params, Carry, Tree], Carry]
    readout: Callable[[Params, Carry, Tree], Tree]
    gated: Gated | None = None
    affine: Callable[[Params, Tree], tuple[Carry, Carry]] | None = None
    layers: "tuple[Cell, ...] | None" = None
    outer: Outer | None = None
    space: tuple[int, ...] = ()
    vocabulary: int = 0

    def step(self, params: Params, carry: Carry, x: Tree) -> tuple[Carry, Tree]:
        """One step: `(params, carry, x [B, D]) -> (carry, y [B, O])`."""
        z = open_dense(self.project(params, x))
        carry = self.transition(params, carry, z)
        return carry, self.readout(params, carry, z)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Const:
    """A leaf of the inputs that every step sees unchanged: a dropout mask, a static covariate, an attention memory.

    `unroll` does not scan over it: its value has no time axis (`[B, ...]`, or fewer axes).
    """

    value: Any


jax.export.register_pytree_node_serialization(
    Const, serialized_name="seqjax.Const", serialize_auxdata=lambda _: b"", deserialize_auxdata=lambda _: ()
)


def is_const(leaf: Tree) -> bool:
    """Whether a node of a tree is a `Const`."""
    return isinstance(leaf, Const)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense:
    """A leaf of z: the deferred product `x @ w + b`. The solver decides when to compute it.

    `w` and `b` hold [D, G] and [G]. All other functions of a cell see the product in its place.
    """

    x: Array
    w: Const
    b: Const


def is_dense(leaf: Tree) -> bool:
    """Whether a node of a tree is a `Dense`."""
    return isinstance(leaf, Dense)


def open_dense(tree: Tree) -> Tree:
    """A tree with its deferred products computed."""
    return jax.tree.map(
        lambda leaf: dense(leaf.x, leaf.w.value, leaf.b.value) if is_dense(leaf) else leaf, tree, is_leaf=is_dense
    )


def select(mask: Array, on: Tree, off: Tree) -> Tree:
    """`on` where `mask [B]` is true and `off` elsewhere, for trees of arrays `[B, ...]`."""

    def pick(a, b):
        m = mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim))
        return jnp.where(*placed_alike(like(m, a), a, like(b, a)))

    return jax.tree.map(pick, on, off)


def open_const(tree: Tree) -> Tree:
    """Replace every `Const` in a tree by its value."""
    return jax.tree.map(lambda leaf: leaf.value if is_const(leaf) else leaf, tree, is_leaf=is_const)


def split_const(tree: Tree) -> tuple[list[Array], Callable[[list[Array]], Tree]]:
    """The leaves of a tree that have a time axis, and a function that puts such leaves back among the constants."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_const)
    timed = [leaf for leaf in leaves if not is_const(leaf)]

    def merge(values):
        values = iter(values)
        return treedef.unflatten([leaf if is_const(leaf) else next(values) for leaf in leaves])

    return timed, merge


def over_time(f: Callable[..., Tree], *trees: Tree) -> Tree:
    """Map `f`, written for one step, over the leading axis of the leaves of `trees`; a `Const` stays as it is."""

    def axes(tree):
        return jax.tree.map(lambda leaf: None if is_const(leaf) else 0, tree, is_leaf=is_const)

    in_axes = tuple(axes(tree) for tree in trees)
    out = jax.eval_shape(jax.vmap(f, in_axes), *trees)
    return jax.vmap(f, in_axes, axes(out))(*trees)


def project_all(cell: "Cell", params: Params, xs: Tree) -> Tree:
    """z of all steps, with every deferred product computed."""
    return open_dense(over_time(lambda x: cell.project(params, x), xs))


def scan_const(
    body: Callable[[Carry, Tree], tuple[Carry, Tree]], carry: Carry, xs: Tree, *, unroll: int = 1
) -> tuple[Carry, Tree]:
    """`lax.scan`, where a `Const` among the inputs is seen by every step and one among the outputs is not stacked.

    What every step sees, params too, has a gradient that is a sum over the steps. It is made in `carry_dtype`.
    """
    timed, merge = split_const(xs)
    first = [leaf[0] for leaf in timed]
    explicit, seen = jax.closure_convert(lambda carry, timed: body(carry, merge(timed)), carry, first)
    # The sum is made in the dtype that the loop is given, and each of its terms in the dtype that the step sees.
    wide = [leaf.astype(carry_dtype(leaf.dtype)) for leaf in seen]

    def step(carry, timed):
        return explicit(carry, timed, *(leaf.astype(own.dtype) for leaf, own in zip(wide, seen, strict=True)))

    outputs = jax.eval_shape(step, carry, first)[1]
    if any(is_const(leaf) for leaf in jax.tree.leaves(outputs, is_leaf=is_const)):
        # Only the constants of this step are used: under jit the rest of it is dead code.
        outputs = step(carry, first)[1]
    _, merge_outputs = split_const(outputs)

    def timed_step(carry, timed):
        carry, y = step(carry, timed)
        return carry, split_const(y)[0]

    carry, ys = jax.lax.scan(timed_step, carry, timed, unroll=unroll)
    return carry, merge_outputs(ys)


def features(x: Tree) -> Array:
    """The features among the inputs of a step: the first leaf. (The others are noise, masks, resets.)"""
    return jax.tree.leaves(x)[0]


def batch_shape(xs: Tree, space: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The batch axes of `[T, *batch, *space, D]`, or of tokens `[T, *batch, *space]`; `space` is that of the cell."""
    x = features(xs)
    own = len(space) if jnp.issubdtype(x.dtype, jnp.integer) else len(space) + 1
    return x.shape[1 : x.ndim - own]


def with_features(x: Tree, value: Array) -> Tree:
    """The inputs `x` with other features."""
    leaves, treedef = jax.tree.flatten(x)
    return treedef.unflatten([value, *leaves[1:]])


def inner(cell: Cell, through: Callable[[Tree], Tree]) -> Cell:
    """`cell` seen through a wider z: every function and hint that takes z gets `through(z)` instead.

    The start of a wrapper that adds something to z; `project` is left for the wrapper to replace.
    """
    gated, affine, outer = cell.gated, cell.affine, cell.outer
    return cell._replace(
        transition=lambda params, carry, z: cell.transition(params, carry, through(z)),
        readout=lambda params, carry, z: cell.readout(params, carry, through(z)),
        gated=gated and around(gated, lambda carry, z, us: (carry, through(z), us)),
        affine=affine and (lambda params, z: affine(params, through(z))),
        outer=outer and outer._replace(write=lambda params, z: outer.write(params, through(z))),
        layers=None,
    )


def one_input(params: Params, in_features: int, space: tuple[int, ...] = ()) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the input of one sequence at one step, of this many floating features (0: a token)."""
    if in_features == 0:
        return jax.ShapeDtypeStruct(space, jnp.int32)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(params)]
    return jax.ShapeDtypeStruct((*space, in_features), dtypes[0] if dtypes else jnp.float32)


@lru_cache(maxsize=256)
def _initial_shapes(cell: Cell, in_features: int) -> Tree:
    return jax.eval_shape(lambda key: cell.init(key, in_features), jax.eval_shape(jax.random.key, 0))


def mismatch(cell: Cell, in_features: int, params: Params, *, more: bool = False) -> str | None:
    """How params differ from those of `cell.init(key, in_features)` in names or shapes; None where they agree.

    Floating leaves may have any floating dtype, and a list may stand for a tuple. With `more`, params beside those
    of the cell are allowed.
    """
    expected = _initial_shapes(cell, in_features)

    def described(tree, kind):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path): kind(leaf) for path, leaf in leaves}

    def shape(leaf):
        return list(leaf.shape)

    def dtype(leaf):
        return "floating" if jnp.issubdtype(leaf.dtype, jnp.floating) else str(leaf.dtype)

    for kind in (shape, dtype):
        wanted, given = described(expected, kind), described(params, kind)
        if more:
            given = {path: given[path] for path in wanted if path in given}
        if given != wanted:
            given, wanted = (jax.tree.map(kind, tree) for tree in (params, expected))
            return f"the params are {given}, expected {wanted} for {in_features} features, as {cell} makes them"
    return None


def out_features(cell: Cell, params: Params, in_features: int) -> int:
    """The number of features of the output of a cell that reads `in_features` floating features (0: tokens).

    Raises:
      ValueError: for a cell that does not read them.
    """
    x = one_input(params, in_features, cell.space)
    try:
        _, y = jax.eval_shape(lambda params, x: cell.step(params, cell.initial_carry(params, ()), x), params, x)
    except (TypeError, ValueError) as error:
        hint = "a wrapper whose cell takes x = (x, extra), such as masked, goes outside of stack and with_head"
        raise ValueError(f"this cell does not read {in_features} features: {error} ({hint})") from error
    return y.shape[-1]


@exportable
class Stepped(NamedTuple):
    """The carry of a cell made by `from_step`, as the functions of the cell see it: after a step and before it."""

    now: Carry
    before: Carry


def is_stepped(node: Tree) -> bool:
    """Whether a node of a carry is a `Stepped`."""
    return isinstance(node, Stepped)


def with_stepped(like: Carry, carry: Carry) -> Carry:
    """`carry` with a `Stepped` wherever `like` has one. (Before the first step, nothing reads the one before.)"""
    return jax.tree.map(
        lambda node, own: Stepped(own, own) if is_stepped(node) else own, like, carry, is_leaf=is_stepped
    )


def without_stepped(carry: Carry) -> Carry:
    """`carry` as users see it: every `Stepped` replaced by the carry after the step."""
    return jax.tree.map(lambda node: node.now if is_stepped(node) else node, carry, is_leaf=is_stepped)


def from_step(
    init: Callable[[Key, int], Params],
    initial_carry: Callable[[Params, tuple[int, ...]], Carry],
    step: Callable[[Params, Carry, Tree], tuple[Carry, Tree]],
) -> Cell:
    """A cell of any step function `(params, carry, x) -> (carry, y)`, without hints.

    `step` sees the value of a `Const`, not its wrapper. `unroll` takes and returns the carry of `step`. The functions
    of the cell carry `Stepped(h_t, h_{t-1})`, as `cell.initial_carry` makes it: an output may depend on the carry
    before the step, so the readout calls `step` again, and XLA merges the two calls within a compiled loop.

    Args:
      init: `(key, in_features) -> params`.
      initial_carry: `(params, batch_shape) -> carry`, leaves [*batch_shape, ...].
      step: the step.

    Example:
      >>> cell = seqjax.from_step(
      ...     init=lambda key, in_features: {"decay": jnp.float32(0.5)},
      ...     initial_carry=lambda params, batch_shape: jnp.zeros((*batch_shape, 1)),
      ...     step=lambda params, h, x: (params["decay"] * h + x, h),  # outputs the carry before the step
      ... )
      >>> carry, ys = seqjax.unroll(cell, cell.init(jax.random.key(0), 1), None, jnp.ones((4, 1, 1)))
      >>> ys[:, 0, 0].tolist()
      [0.0, 1.0, 1.5, 1.75]
      >>> carry.tolist()
      [[1.875]]
    """

    def transition(params, carry, z):
        now = carry.now if is_stepped(carry) else carry
        return Stepped(step(params, now, open_const(z))[0], now)

    def both(params, batch_shape):
        carry = initial_carry(params, batch_shape)
        return Stepped(carry, carry)

    return Cell(
        init=init,
        initial_carry=both,
        project=lambda params, x: x,
        transition=transition,
        readout=lambda params, carry, z: step(params, carry.before, open_const(z))[1],
    )
