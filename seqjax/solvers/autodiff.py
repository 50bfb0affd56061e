"""Errors for the derivatives that solvers with a custom gradient lack: JAX's own messages do not name the cure."""

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from seqjax.arrays import Tree


def reverse_mode_only(method: str, tree: Tree) -> Tree:
    """`tree` unchanged, for a solver with derivatives in reverse mode only (`jax.custom_vjp`).

    Reverse mode transposes the tangents of the tree; forward mode computes them, which raises a TypeError that names
    the method.
    """
    return jax.tree.map(lambda leaf: _value.bind(leaf, method=method), tree)


def gradient_in_forward_mode_only(method: str, tree: Tree) -> Tree:
    """`tree`, a gradient, unchanged, for a solver whose gradient has derivatives in forward mode only.

    A second reverse mode transposes the tangents of the tree, which raises a TypeError that names the method.
    """
    return jax.tree.map(lambda leaf: _gradient.bind(leaf, method=method), tree)


def _refuse_forward_mode(*_: Any, method: str, **__: Any):
    raise TypeError(
        f'method "{method}" has a gradient in reverse mode only (jax.grad, jax.vjp, jax.jacrev): in forward mode '
        '(jax.jvp, jax.jacfwd, jax.linearize) use method="scan"'
    )


def _jvp(primals, tangents, *, method):
    (value,), (tangent,) = primals, tangents
    # The value bypasses the primitive, so that an outer derivative sees only the solver's own computation.
    return value, tangent if isinstance(tangent, ad.Zero) else _tangent.bind(tangent, method=method)


def _refuse_second_reverse_mode(*_: Any, method: str):
    raise TypeError(
        f'method "{method}" has second derivatives by forward over reverse mode only (jax.hessian, jax.jvp of '
        'jax.grad): for jax.grad of jax.grad use method="scan"'
    )


def _gradient_jvp(primals, tangents, *, method):
    (value,), (tangent,) = primals, tangents
    return value, tangent if isinstance(tangent, ad.Zero) else _gradient_tangent.bind(tangent, method=method)


def _identity(name: str) -> Primitive:
    """A primitive that returns its argument."""
    primitive = Primitive(name)
    primitive.def_impl(lambda value, *, method: value)
    primitive.def_abstract_eval(lambda value, *, method: value)
    mlir.register_lowering(primitive, lambda ctx, value, *, method: [value])
    batching.defvectorized(primitive)
    return primitive


_value = _identity("reverse_mode_value")
ad.primitive_jvps[_value] = _jvp

_tangent = _identity("reverse_mode_tangent")
_tangent.def_impl(_refuse_forward_mode)
mlir.register_lowering(_tangent, _refuse_forward_mode)
ad.deflinear2(_tangent, lambda cotangent, _, *, method: [cotangent])
batching.primitive_batchers[_tangent] = _refuse_forward_mode

_gradient = _identity("gradient_in_forward_mode")
ad.primitive_jvps[_gradient] = _gradient_jvp

_gradient_tangent = _identity("gradient_in_forward_mode_tangent")
ad.deflinear2(_gradient_tangent, _refuse_second_reverse_mode)
