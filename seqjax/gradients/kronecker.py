"""Real-time recurrent learning with a Kronecker-factored influence: random and unbiased."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.lax import stop_gradient
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from seqjax.arrays import Array, Carry, Key, Params, Tree, carry_dtype, dense
from seqjax.core import Cell, is_dense
from seqjax.gradients.estimator import Estimator, Loss
from seqjax.gradients.online import forward_mode, one_step
from seqjax.gradients.stochastic import balance
from seqjax.gradients.structure import dependence
from seqjax.hints import Gated
from seqjax.placement import vary, varying


class Kronecker(NamedTuple):
    """The influence of KF-RTRL, for products with I inputs in all and G pre-activations in all.

    Attributes:
      u: [B, I]; dh_n/dW_ig of the weights is the mean of `u_i a_ng`.
      a: [B, N, G].
      rest: by name, dh/dW [B, N, *shape] of the params that reach the carry other than as weights of a product.
      key: one key per sequence [B].
    """

    u: Array
    a: Array
    rest: dict[str, Array]
    key: Key


class Product(NamedTuple):
    """One matrix product of a step, `v @ w`; a bias is one more row of w, and a 1 in v.

    Attributes:
      v: [I_k].
      w: [I_k, G_k].
      columns: the places of its G_k pre-activations among all G.
    """

    v: Array
    w: Array
    columns: slice


def kf_rtrl(cell: Cell, loss: Loss, key: Key) -> Estimator:
    """Kronecker-factored real-time recurrent learning (Mujika, Meier & Steger 2018, arXiv 1805.10842).

        u_t = p u_{t-1} + s q v_t,   A_t = dh_t/dh_{t-1} A_{t-1} / p + s D_t / q,   s = a random sign
        dL_t/dW = u_t (x) (dL_t/dh_t A_t) + (the direct part of the readout)

    v_t [I] are the factors that the step multiplies by its weights W (the input, 1 for the bias, the carry), and D_t
    [N, G] is the derivative of h_t with respect to the resulting pre-activations, so that v_t (x) D_t is dh_t/dW. The
    mean of u (x) A over the signs is the influence J of `rtrl`. p and q balance the norms of the two terms of each sum,
    which keeps the variance small. Memory B (I + N G), and time of order B N^2 G per step.

    W comprises the weights of all products of a step: that of the input (`Dense`), those of the `gated` hint, and those
    of all layers of a stack. Products that a cell only adds to each other share their pre-activations, as in the paper;
    those of a GRU, for example, do not. For all other params that reach the carry (a peephole, a time constant) the
    full influence is kept, which is exact; for a whole matrix, such as an embedding, that costs as much as `rtrl`.

    Args:
      cell: a gated model or a stack of gated cells, for inputs with exactly one batch axis; a `Const` among its inputs
        must have it too.
      loss: `(ys [B, O], targets [B, ...]) -> losses [B]`.
      key: PRNG key; the state holds the next one.

    Raises:
      ValueError: for a cell, or a layer of a stack, without the `gated` hint.
    """
    _check_gated(cell)

    def start(params, carry, xs, sizes):
        h, x = one_step(carry, xs)

        def blank(params, h, x):
            products = _run(cell, params, h, x)[1]
            return _inputs(products), jnp.zeros((sizes.numbers, max(product.columns.stop for product in products)))

        def next_carry(params, h, x):
            return jax.tree.leaves(_run(cell, params, h, x)[0])

        # `_run` takes the weights of products as constants, so only the other params are marked.
        reached = dependence(next_carry, params, h, x)(np.ones((1, sizes.numbers), bool))
        rest = {
            keystr(path): jnp.zeros((sizes.batch, sizes.numbers, *leaf.shape), sizes.dtype)
            for (path, leaf), mark in zip(tree_leaves_with_path(params), reached, strict=False)
            if mark.any()
        }
        u, a = (jnp.zeros((sizes.batch, *part.shape), sizes.dtype) for part in jax.eval_shape(blank, params, h, x))
        return Kronecker(u, a, rest, jax.random.split(key, sizes.batch)), ()

    def advance(step, h, influence, pattern):
        del pattern
        u, a, rest, key = influence
        params = step.as_params(step.weights)

        def run(h, probe, some):
            mixed = tree_map_with_path(lambda path, leaf: some.get(keystr(path), leaf), params)
            carry, products = _run(cell, mixed, step.as_carry(h), step.x, probe)
            h = ravel_pytree(carry)[0]
            return h, (h, _inputs(products))

        (by_carry, d, by_rest), (h, v) = jax.jacrev(run, (0, 1, 2), has_aux=True)(
            h, vary(jnp.zeros(a.shape[-1], a.dtype), varying(a)), _named(params, rest)
        )
        key, sub = jax.random.split(key)
        sign = jax.random.rademacher(sub, (), a.dtype)
        moved = by_carry @ a
        p, q = balance(moved, u), balance(d, v)
        return h, Kronecker(
            u=p * u + sign * q * v,
            a=moved / p + sign * d / q,
            rest={name: jnp.tensordot(by_carry, rest[name], 1) + by_rest[name].astype(a.dtype) for name in rest},
            key=key,
        )

    def pull(step, dh, influence, pattern):
        del pattern
        right = dh @ influence.a

        def along(weights):
            """A number whose gradient by the params contains the influence of the weights of the products."""
            params = step.as_params(weights)
            _, products = _run(cell, params, step.as_carry(dh), step.x)
            ends = np.cumsum([product.v.size for product in products])[:-1]
            terms = [
                u @ product.w.astype(u.dtype) @ right[product.columns]
                for u, product in zip(jnp.split(influence.u, ends), products, strict=True)
            ]
            for name, leaf in _named(params, influence.rest).items():
                terms.append(jnp.vdot(jnp.tensordot(dh, influence.rest[name], 1), leaf.astype(dh.dtype)))
            return jnp.sum(jnp.stack(terms))

        return jax.grad(along)(step.weights)

    return forward_mode(cell, loss, start, advance, pull)


def _check_gated(cell: Cell) -> None:
    for layer in cell.layers or ():
        _check_gated(layer)
    if not cell.layers and cell.gated is None:
        raise ValueError(
            "kf_rtrl needs a cell with the `gated` hint, or a stack of such: the products of this one are not known"
        )


def _named(params: Params, names: Any) -> dict[str, Array]:
    return {keystr(path): leaf for path, leaf in tree_leaves_with_path(params) if keystr(path) in names}


def _inputs(products: list[Product]) -> Array:
    return jnp.concatenate([product.v for product in products])


def _run(cell: Cell, params: Params, carry: Carry, x: Tree, probe: Array | None = None) -> tuple[Carry, list[Product]]:
    """One transition of one sequence, with `probe` [G] added to its pre-activations, and its products.

    The carry has no gradient with respect to the weights of the products.
    """
    found: list[Product] = []

    def product(v, w, b=None, shared=False):
        end = max((product.columns.stop for product in found), default=0)
        columns = found[-1].columns if shared else slice(end, end + w.shape[1])
        u = dense(v, stop_gradient(w), b if b is None else stop_gradient(b))
        v = v.astype(u.dtype)
        if b is not None:
            v, w = jnp.append(v, jnp.ones((), v.dtype)), jnp.concatenate([w, b[None]])
        found.append(Product(v, w, columns))
        return u if probe is None or shared else u + probe[columns]

    def layer(cell, params, carry, x):
        if cell.layers:
            carries = []
            for one, p, h in zip(cell.layers, params, carry, strict=True):
                h, x = layer(one, p, h, x)
                carries.append(h)
            return tuple(carries), x
        z = cell.project(params, x)
        shared = _only_added(cell.gated, params, carry, z)
        z = _open(z, lambda leaf: product(leaf.x, leaf.w.value, leaf.b.value))
        us = ()
        for stage, w in zip(cell.gated.stages, cell.gated.weights(params), strict=True):
            us = (*us, product(stage(carry, z, us), w, shared=shared))
        carry = cell.gated.gates(carry, z, us)
        return carry, cell.readout(params, carry, z)

    return layer(cell, params, carry, x)[0], found


def _open(z: Tree, product: Any) -> Tree:
    return jax.tree.map(lambda leaf: product(leaf) if is_dense(leaf) else leaf, z, is_leaf=is_dense)


def _only_added(gated: Gated, params: Params, carry: Carry, z: Tree) -> bool:
    """Whether the one product of the carry is added to that of the input, and neither is used in another way."""
    denses = [leaf for leaf in jax.tree.leaves(z, is_leaf=is_dense) if is_dense(leaf)]
    weights = [*(leaf.w.value for leaf in denses), *gated.weights(params)]
    if len(denses) != 1 or len(gated.stages) != 1 or weights[0].shape[1] != weights[1].shape[1]:
        return False

    def f(a, u):
        opened = _open(z, lambda leaf: a)
        return jax.tree.leaves((gated.stages[0](carry, opened, ()), gated.gates(carry, opened, (u,))))

    zeros = vary([jnp.zeros(w.shape[1], carry_dtype(w.dtype)) for w in weights], varying((params, carry, z)))
    program = jax.make_jaxpr(f)(*zeros).jaxpr
    users = [eqn for eqn in program.eqns if any(var in program.invars for var in eqn.invars)]
    added = len(users) == 1 and users[0].primitive.name == "add" and set(users[0].invars) == set(program.invars)
    return added and not any(var in program.invars for var in program.outvars)
