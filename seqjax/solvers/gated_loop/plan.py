"""The static part of one loop: the leaves of z for one sequence at one step, and the arithmetic on them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import product
from typing import Any, NamedTuple, TypeVar

import jax

from seqjax.arrays import Array, Carry, Tree, carry_dtype
from seqjax.core import Const, is_const, is_dense, open_dense
from seqjax.hints import Gated
from seqjax.solvers.gated_loop.slots import Functions, Other, Unsupported, trace

Result = TypeVar("Result")

_batch_major: ContextVar[bool] = ContextVar("batch_major", default=False)


@contextmanager
def transposed_by_caller(transposed: bool) -> Iterator[None]:
    """Plan loops whose inputs and outputs [T, B, ...] the caller transposes from and to [B, T, ...].

    A kernel that reads and writes them in the order of the caller's memory saves XLA the copies. The result is the
    same.
    """
    token = _batch_major.set(transposed)
    try:
        yield
    finally:
        _batch_major.reset(token)


class Arrays(NamedTuple):
    """The inputs of the loop: carries [B, ...], inputs [T, B, ...]; a Const may lack the batch axes."""

    carry: tuple[Array, ...]
    dense: tuple[Array, ...]  # x [T, B, D], w [D, G], b [G]; or empty
    weights: tuple[Array, ...]
    others: tuple[Array, ...]


class _Leaf(NamedTuple):
    """A node of z: the projection (`kind` "dense"), a "timed" leaf, or a "const" with the structure `tree`."""

    kind: str
    tree: Any = None  # a PyTreeDef


@jax.tree_util.register_static
class Wanted(NamedTuple):
    """Which gradients are needed."""

    x: bool
    others: tuple[bool, ...]


class Plan(NamedTuple):
    """The static part of one loop."""

    gated: Gated
    carry: tuple[Any, ...]  # (shape, dtype) of each leaf, of one sequence
    carry_tree: Any
    z_tree: Any
    leaves: tuple[_Leaf, ...]
    others: tuple[
        tuple[tuple[bool, bool, tuple[int, ...], Any], ...], ...
    ]  # for each, the possible (timed, batched, shape, dtype)
    dense: int | None  # the number of slots of the projection
    products: tuple[int, ...]  # those of each recurrent product
    batch_major: bool = False  # whether inputs and carries [T, B, ...] lie in memory as [B, T, ...] where a kernel can

    def steps(self, arrays: Arrays) -> int:
        """The number of steps T."""
        timed = (value for value, options in zip(arrays.others, self.others, strict=True) if options[0][0])
        return next(leaf.shape[0] for leaf in (*arrays.dense[:1], *timed))

    def z(self, projection: Any, others: Iterable[Any]) -> Tree:
        """Rebuild z, the input of the gates, from its parts."""
        values = iter(others)
        nodes = []
        for leaf in self.leaves:
            if leaf.kind == "dense":
                nodes.append(projection)
            elif leaf.kind == "timed":
                nodes.append(next(values))
            else:
                nodes.append(Const(leaf.tree.unflatten([next(values) for _ in range(leaf.tree.num_leaves)])))
        return self.z_tree.unflatten(nodes)


def make_plan(gated: Gated, weights: tuple[Array, ...], carry: Carry, zs: Tree) -> tuple[Plan, Arrays]:
    """Split z into its parts, and determine what each of them is for one sequence at one step."""
    carries, carry_tree = jax.tree.flatten(carry)
    first = carries[0]
    units, batch, dtype = first.shape[-1], first.shape[:-1], first.dtype
    if any(w.shape[0] != units or w.shape[1] % units for w in weights):
        shapes = [w.shape for w in weights]
        raise Unsupported(f"recurrent weights of shapes {shapes}, expected [H, G * H] for {units} units H")
    projection, leaves, others, options = (), [], [], []

    def add(value, timed):
        lead = 1 if timed else 0
        shapes = []
        if value.shape[lead : lead + len(batch)] == batch:
            shapes.append((timed, True, value.shape[lead + len(batch) :], value.dtype))
        # A Const whose shape starts with the batch may be one per sequence or, by coincidence, shared by all of them.
        if not timed and batch:
            shapes.append((False, False, value.shape, value.dtype))
        if not shapes:
            raise Unsupported(f"an input {value.shape} of the gates, expected [T, *{batch}, ...]")
        others.append(value)
        options.append(tuple(shapes))

    nodes, z_tree = jax.tree.flatten(zs, is_leaf=lambda leaf: is_const(leaf) or is_dense(leaf))
    for node in nodes:
        if is_dense(node) and not projection and _fits(node, units, batch, dtype):
            w = node.w.value
            projection = (node.x.astype(dtype) if w.dtype == dtype else node.x, w, node.b.value)
            leaves.append(_Leaf("dense"))
        elif is_const(node):
            values, tree = jax.tree.flatten(node.value)
            leaves.append(_Leaf("const", tree))
            for value in values:
                add(value, timed=False)
        else:
            leaves.append(_Leaf("timed"))
            add(open_dense(node), timed=True)
    plan = Plan(
        gated=gated,
        carry=tuple((leaf.shape[len(batch) :], leaf.dtype) for leaf in carries),
        carry_tree=carry_tree,
        z_tree=z_tree,
        leaves=tuple(leaves),
        others=tuple(options),
        dense=projection[1].shape[1] // units if projection else None,
        products=tuple(w.shape[1] // units for w in weights),
        batch_major=_batch_major.get(),
    )
    return plan, Arrays(tuple(carries), projection, tuple(weights), tuple(others))


def _fits(node, units, batch, dtype) -> bool:
    """Whether a `Dense` of z can be the projection."""
    width = node.w.value.shape[1]
    return carry_dtype(node.w.value.dtype) == dtype and node.x.ndim == 2 + len(batch) and width % units == 0


def resolve(plan: Plan, wanted: tuple[bool, ...], make: Callable[[Functions, Sequence[Other]], Result]) -> Result:
    """What `make` returns for the functions of the cell, and its other inputs in the way in which they can be read.

    Args:
      plan: the plan.
      wanted: which of the other inputs need a gradient.
      make: is tried with each way of reading them; raises `Unsupported` for those that it does not admit.

    Raises:
      Unsupported: if all of them fail.
    """
    carry = plan.carry_tree.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in plan.carry])
    errors = []
    for choice in product(*plan.others):
        others = [Other(*one, perturbed=perturbed) for one, perturbed in zip(choice, wanted, strict=True)]
        try:
            return make(trace(plan.gated, carry, plan.z, plan.dense, plan.products, others), others)
        except (TypeError, ValueError) as error:
            errors.append(error)
    # Errors of other types only mean that a Const was read in the wrong one of its ways.
    reason = next((error for error in errors if isinstance(error, Unsupported)), errors[0])
    raise Unsupported(str(reason)) from reason
