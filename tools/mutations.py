"""Mutation tests: deliberate bugs, each of which a test must catch.

    python -m tools.mutations                 all of them; writes docs/mutations.md
    python -m tools.mutations reset truncated  those whose name contains one of the words; updates their lines there

Every named test passes on a copy of the repository, and fails there by an assertion once the change is made: a test
that merely crashes has noticed nothing. A bug that no test catches means that a test is missing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mutations.md"
INTRODUCTION = """# Mutation tests

Each line is one change that makes the code wrong, and the test that fails because of it, by an assertion; without the
change the same test passes. The changes are listed in `tools/mutations.py`. `python -m tools.mutations` applies them
one after the other to a copy of the repository, and writes this page. The seconds are those of one pytest process,
including its start, and depend on the load of the machine.

| what was broken | where | the test that caught it | seconds |
|---|---|---|---|
"""


class Mutation(NamedTuple):
    """A bug: what it breaks, where (a file, or a pattern of files), the text before and after, and the test for it."""

    what: str
    file: str
    old: str
    new: str
    test: str


class Result(NamedTuple):
    """Whether all tests passed, the message of the first that did not, and the seconds it took."""

    passed: bool
    message: str
    seconds: float


LOOP = "tests/test_cells.py::test_a_cell_is_the_loop_in_its_docstring"
HINTS = "tests/test_laws.py::test_hints_equal_the_transition"
DRAWS = "tests/test_gradients_stochastic.py::test_the_mean_of_many_draws_is_the_full_gradient_and_no_truncation_is"

MUTATIONS = [
    # Numbers of every kind
    Mutation(
        "compiled loop: of 0 and -0 max takes the second",
        "seqjax/solvers/native/vectors.h",
        "return x == y ? of_bits(bits(x) & bits(y)) :",
        "return x == y ? y :",
        "tests/test_native_special_values.py::test_every_function_is_that_of_jax_on_all_special_values[float32]",
    ),
    Mutation(
        "compiled loop: a library of the cache is loaded whatever it holds",
        "seqjax/solvers/native/build.py",
        'if _own(path) and path.stem == f"{name}-{_digest(path.read_bytes())}":',
        "if _own(path):",
        "tests/test_native_build.py::test_a_damaged_library_is_compiled_again[one bit]",
    ),
    Mutation(
        "normalization: squares of large numbers",
        "seqjax/cells/building.py",
        "jnp.maximum(jnp.abs(u).max(-1, keepdims=True), 1.0)",
        "jnp.ones_like(u[..., :1])",
        "tests/test_finite.py::test_any_finite_input_and_bias_gives_what_the_formula_gives[layer_norm_lstm]",
    ),
    Mutation(
        "sLSTM: the stabilizer forgets the carry",
        "seqjax/cells/xlstm.py",
        "jnp.maximum(log_f + carry.m, i))",
        "i)",
        "tests/test_finite.py::test_any_finite_input_and_bias_gives_what_the_formula_gives[slstm]",
    ),
    Mutation(
        "tokens: -1 is the last row",
        "seqjax/arrays.py",
        "wrap_negative_indices=False",
        "wrap_negative_indices=True",
        "tests/test_indices.py::test_rows_are_those_of_the_table_or_zeros",
    ),
    Mutation(
        "tokens: V is a token",
        "seqjax/arrays.py",
        "high >= stop",
        "high > stop",
        "tests/test_indices.py::test_models_refuse_known_tokens_that_are_none_and_say_no_nan_to_others[language]",
    ),
    Mutation(
        "dropout: masks of 16 bits are drawn in 16 bits",
        "seqjax/draws.py",
        "wide = carry_dtype(dtype)",
        "wide = jnp.dtype(dtype)",
        "tests/test_randomness.py::test_what_is_dropped_is_as_often_as_the_rate_says",
    ),
    Mutation(
        "recurrent dropout: all gates share one mask",
        "seqjax/regularizers.py",
        "return Const(dropout_mask(key, rate, shape, h.dtype))",
        "return Const(jnp.tile(dropout_mask(key, rate, h.shape, h.dtype), gates))",
        "tests/test_regularizers.py::test_one_mask_a_gate_is_the_loop_with_a_mask_before_each_product",
    ),
    # Meshes and transformations
    Mutation(
        "meshes: the C++ runs on whole arrays that XLA divides over devices",
        "seqjax/solvers/gated_loop/call.py",
        "return axes.num_devices == 1",
        "return axes.num_devices >= 1",
        "tests/test_mesh.py::test_native_runs_on_every_device_of_a_shard_map_and_leaves_divided_arrays_to_xla",
    ),
    Mutation(
        "meshes: the weight gradient of the portable loop forgets the last step",
        "seqjax/solvers/gated_loop/portable.py",
        "d_weights = map(product_gradient, vs, arrays.weights, d_us)",
        "d_weights = map(product_gradient, [v[:-1] for v in vs], arrays.weights, [d_u[:-1] for d_u in d_us])",
        "tests/test_mesh.py::test_sharded_inputs[AxisType.Auto-lstm]",
    ),
    Mutation(
        "eager loops: those of one cell are the same forward and backward in time",
        "seqjax/unrolling.py",
        "else method, reverse)(params",
        "else method, False)(params",
        "tests/test_unroll.py::test_reverse_is_the_flipped_sequence",
    ),
    # Cells
    Mutation(
        "LSTM: the sign of what the input gate writes",
        "seqjax/cells/building.py",
        "sigmoid(f) * carry.c + sigmoid(i)",
        "sigmoid(f) * carry.c - sigmoid(i)",
        f"{LOOP}[lstm]",
    ),
    Mutation(
        "LSTM with peepholes: the output gate sees the cell state before the step",
        "seqjax/cells/gated.py",
        "LSTMCarry(sigmoid(o + p_o * c) * jnp.tanh(c), c)",
        "LSTMCarry(sigmoid(o + p_o * carry.c) * jnp.tanh(c), c)",
        f"{LOOP}[peephole_lstm]",
    ),
    Mutation(
        "GRU: the bias of the candidate outside of the reset",
        "seqjax/cells/gated.py",
        "n = jnp.tanh(x_n + r * (h_n + like(b_n.value.astype(h_n.dtype), h_n)))",
        "n = jnp.tanh(x_n + r * h_n + like(b_n.value.astype(h_n.dtype), h_n))",
        f"{LOOP}[gru]",
    ),
    Mutation(
        "GRU that resets before the product: the reset reads the update gate",
        "seqjax/cells/gated.py",
        "sigmoid(z[..., :hidden] + us[0][..., :hidden]) * h",
        "sigmoid(z[..., :hidden] + us[0][..., hidden:]) * h",
        f"{LOOP}[gru_reset_before]",
    ),
    Mutation(
        "LSTM: the names of the input and the forget gate in the wrong order, so that the wrong gate gets the bias",
        "seqjax/cells/gated.py",
        '("input", "forget", "candidate", "output"), w_x, w_h, b, dtype),',
        '("forget", "input", "candidate", "output"), w_x, w_h, b, dtype),',
        "tests/test_initializers.py::test_a_named_bias_goes_to_its_gate_and_to_no_other[lstm]",
    ),
    Mutation(
        "JANET: beta lowers the gate where it forgets, not where it writes",
        "seqjax/cells/simple.py",
        "sigmoid(s) * h + sigmoid(beta - s) * write",
        "sigmoid(s - beta) * h + sigmoid(-s) * write",
        f"{LOOP}[janet]",
    ),
    Mutation(
        "SRU: an output without tanh",
        "seqjax/cells/linear.py",
        "sigmoid(r) * jnp.tanh(h) + sigmoid(-r) * s",
        "sigmoid(r) * h + sigmoid(-r) * s",
        f"{LOOP}[sru]",
    ),
    Mutation(
        "sLSTM: a stabilizer that starts at 0 instead of the first input",
        "seqjax/cells/xlstm.py",
        "m = jnp.where(carry.n == 0, i, jnp.maximum(log_f + carry.m, i))",
        "m = jnp.maximum(log_f + carry.m, i)",
        "tests/test_cells_linear.py::test_slstm_that_first_writes_next_to_nothing_has_no_nan",
    ),
    Mutation(
        "stack: a layer reads the output of the layer below at the step before",
        "seqjax/cells/layers.py",
        "cells[i - 1].readout(params[i - 1], carries[-1], z)",
        "cells[i - 1].readout(params[i - 1], carry[i - 1], z)",
        "tests/test_laws.py::test_unroll_is_a_loop_of_steps[stack]",
    ),
    # Core
    Mutation(
        "complex carry: the sign of i * i",
        "seqjax/hints.py",
        "a.re * h.re - a.im * h.im",
        "a.re * h.re + a.im * h.im",
        f"{LOOP}[lru]",
    ),
    Mutation(
        "from_step: the output is made from the carry after the step, one step too far",
        "seqjax/core.py",
        "step(params, carry.before, open_const(z))[1]",
        "step(params, carry.now, open_const(z))[1]",
        "tests/test_core.py::test_from_step_may_use_the_carry_before_the_step",
    ),
    Mutation(
        "bfloat16 weights: products summed up in bfloat16",
        "seqjax/arrays.py",
        "return jnp.matmul(x.astype(dtype), w.astype(dtype), preferred_element_type=carry_dtype(w.dtype))",
        "return jnp.matmul(x.astype(dtype), w.astype(dtype)).astype(carry_dtype(w.dtype))",
        "tests/test_core.py::test_a_product_of_bfloat16_is_summed_and_returned_in_float32",
    ),
    Mutation(
        "bfloat16 weights: a carry in bfloat16",
        "seqjax/arrays.py",
        "jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype",
        "jnp.float32 if jnp.dtype(dtype).itemsize < 2 else dtype",
        "tests/test_core.py::test_carry_dtype",
    ),
    # Wrappers
    Mutation(
        "masked, affine hint: padding forgets the carry (a is 0 instead of 1)",
        "seqjax/wrappers/masking.py",
        "return jnp.ones_like(leaf)",
        "return jnp.zeros_like(leaf)",
        f"{HINTS}[zoneout]",
    ),
    Mutation(
        "masked, complex affine hint: padding multiplies by 1 + i instead of 1",
        "seqjax/wrappers/masking.py",
        "Complex(jnp.ones_like(leaf.re), jnp.zeros_like(leaf.im))",
        "Complex(jnp.ones_like(leaf.re), jnp.ones_like(leaf.im))",
        f"{HINTS}[masked_reset_lru]",
    ),
    Mutation(
        "masked: NaN in the padding reaches the gradient, as 0 times NaN",
        "seqjax/wrappers/masking.py",
        "return cell.project(params, _zero_padding(mask, x)), mask",
        "return cell.project(params, x), mask",
        "tests/test_unroll.py::test_what_the_padding_holds_changes_no_output_and_no_gradient",
    ),
    Mutation(
        "reset: the carry is reset after the step instead of before it",
        "seqjax/wrappers/masking.py",
        "base.transition(params, _restarted(carry, z), z)",
        "_restarted(base.transition(params, carry, z), z)",
        "tests/test_wrappers.py::test_reset_runs_the_documents_one_by_one_and_no_gradient_crosses_a_border[from_step]",
    ),
    Mutation(
        "reset, affine hint: a document starts at 0 instead of the learned carry",
        "seqjax/wrappers/masking.py",
        "select(border, fresh, b)",
        "b",
        f"{HINTS}[learned_carry]",
    ),
    Mutation(
        "highway: the gate the wrong way round",
        "seqjax/wrappers/structure.py",
        "t * y + (1 - t) * x.astype(y.dtype)",
        "(1 - t) * y + t * x.astype(y.dtype)",
        "tests/test_wrappers.py::test_highway_is_a_gate_between_output_and_input_and_opens_with_its_bias",
    ),
    Mutation(
        "learned_carry: the learned carry is not used",
        "seqjax/wrappers/structure.py",
        'params["start"])',
        'jax.tree.map(jnp.zeros_like, params["start"]))',
        "tests/test_wrappers.py::test_a_learned_carry_starts_at_the_cell_s_own_and_has_the_gradient_of_the_carry[lstm]",
    ),
    # Regularizers and noise
    Mutation(
        "recurrent dropout: a mask drawn again at every step",
        "seqjax/regularizers.py",
        "return Const(dropout_mask(key, rate, shape, h.dtype))",
        "return dropout_mask(key, rate, (features(xs).shape[0], *shape), h.dtype)",
        "tests/test_regularizers.py::test_a_mask_lasts_the_sequence_unless_it_is_drawn_per_step[recurrent_dropout]",
    ),
    Mutation(
        "dropout: what is kept is not divided by 1 - rate",
        "seqjax/draws.py",
        "bernoulli(key, keep, shape), 1.0 / keep, 0.0)",
        "bernoulli(key, keep, shape), 1.0, 0.0)",
        "tests/test_regularizers.py::test_the_rate_is_the_share_of_zeros_and_the_mean_is_one",
    ),
    Mutation(
        "input dropout: one mask for all sequences of a batch",
        "seqjax/regularizers.py",
        "Const(dropout_mask(key, rate, x.shape[1:], x.dtype))",
        "Const(jnp.broadcast_to(dropout_mask(key, rate, x.shape[-1:], x.dtype), x.shape[1:]))",
        "tests/test_regularizers.py::test_noise_differs_between_sequences_and_keys_and_repeats_for_a_key",
    ),
    Mutation(
        "recurrent dropout: the mask is drawn and not applied",
        "seqjax/regularizers.py",
        "return v * like(mask.astype(v.dtype), v)",
        "return v",
        "tests/test_regularizers.py::test_recurrent_dropout_masks_the_product_and_not_the_carry_that_is_kept",
    ),
    Mutation(
        "stochastic depth: all layers skipped at the rate of the last",
        "seqjax/regularizers.py",
        "rate * (i / depth)",
        "rate",
        "tests/test_regularizers.py::"
        "test_stochastic_depth_skips_a_layer_for_a_whole_sequence_at_rates_that_grow_linearly",
    ),
    Mutation(
        "dropout of weights: one mask for all leaves",
        "seqjax/regularizers.py",
        "keys = jax.random.split(key, len(paths))",
        "keys = [key] * len(paths)",
        "tests/test_regularizers.py::test_weights_are_dropped_by_name_with_masks_of_their_own",
    ),
    Mutation(
        "temporal activation penalty: a pair of steps counts if its second does",
        "seqjax/regularizers.py",
        "mask[1:] & mask[:-1]",
        "mask[1:]",
        "tests/test_regularizers.py::test_penalties_are_means_over_the_steps_that_count",
    ),
    Mutation(
        "zoneout: units are kept at 1 - rate",
        "seqjax/noise.py",
        "lambda k, before, after: k * before + (1 - k) * after",
        "lambda k, before, after: (1 - k) * before + k * after",
        "tests/test_regularizers.py::test_zoneout_keeps_units_at_its_rates_and_its_mean_is_the_evaluation",
    ),
    Mutation(
        "zoneout, affine hint: what is kept is missing in the expectation",
        "seqjax/noise.py",
        "(k + (1 - k) * a, (1 - k) * b)",
        "((1 - k) * a, (1 - k) * b)",
        f"{HINTS}[zoneout_mean]",
    ),
    Mutation(
        "noise on the carry: the same noise in every leaf",
        "seqjax/noise.py",
        "keys = treedef.unflatten(list(jax.random.split(key, len(leaves))))",
        "keys = treedef.unflatten([key] * len(leaves))",
        "tests/test_regularizers.py::"
        "test_noise_on_the_carry_is_new_at_every_step_and_in_every_leaf_and_layer[carry_noise]",
    ),
    # Initializers
    Mutation(
        "critical: the gain squared",
        "seqjax/initializers/weights.py",
        "return gain * shape[0] ** -0.5",
        "return gain**2 * shape[0] ** -0.5",
        "tests/test_initializers.py::test_critical_is_normal_with_a_variance_of_one_over_the_rows",
    ),
    Mutation(
        "orthogonal: the scale is ignored",
        "seqjax/initializers/weights.py",
        "draw = jax.nn.initializers.orthogonal(scale)",
        "draw = jax.nn.initializers.orthogonal()",
        "tests/test_initializers.py::test_orthogonal_has_its_scale",
    ),
    Mutation(
        "per gate: one draw for all gates, so that they are equal",
        "seqjax/initializers/weights.py",
        "keys = jax.random.split(key, gates)",
        "keys = [key] * gates",
        "tests/test_initializers.py::test_recurrent_weights_are_orthogonal_gate_by_gate_and_drawn_apart[lstm]",
    ),
    Mutation(
        "unit forget bias: 1 for the input gate",
        "seqjax/initializers/biases.py",
        'for gate in gates if gate == "forget"',
        'for gate in gates if gate == "input"',
        "tests/test_initializers.py::test_unit_forget_is_one_for_a_forget_gate_and_nothing_else",
    ),
    Mutation(
        "chrono: the input gate opens where the forget gate keeps",
        "seqjax/initializers/biases.py",
        '"input": -1.0',
        '"input": 1.0',
        "tests/test_initializers.py::test_chrono_is_the_logarithm_of_a_uniform_draw",
    ),
    # Unrolling and its methods
    Mutation(
        "unroll: padded sequences are reversed, their mask is not",
        "seqjax/unrolling.py",
        "        cell, xs = masked(cell), (xs, mask)\n    if reverse:\n        xs = reverse_time(xs)",
        "        cell, xs = masked(cell), (reverse_time(xs) if reverse else xs, mask)\n"
        "    elif reverse:\n        xs = reverse_time(xs)",
        "tests/test_unroll.py::test_reversed_padded_sequences_are_each_reversed_by_its_own_length",
    ),
    Mutation(
        "mask_from_lengths: one step too many",
        "seqjax/unrolling.py",
        "return time < jnp.expand_dims(lengths, 0)",
        "return time <= jnp.expand_dims(lengths, 0)",
        "tests/test_unroll.py::test_mask_from_lengths",
    ),
    Mutation(
        "bidirectional: both cells run forward",
        "seqjax/unrolling.py",
        "backward, zs = run(cells[1], params[1], carries[1], xs, reverse=True)",
        "backward, zs = run(cells[1], params[1], carries[1], xs)",
        "tests/test_unroll.py::test_bidirectional_pads_each_direction_by_itself",
    ),
    Mutation(
        "generate: one key for all steps",
        "seqjax/decoding.py",
        "x = choose(jax.random.fold_in(key, t), y)",
        "x = choose(key, y)",
        "tests/test_unroll.py::test_generate_feeds_back_what_it_chose",
    ),
    Mutation(
        "fused: the sign of the gradient of the recurrent weights",
        "seqjax/solvers/fused.py",
        "u if nudges is None else u + nudges[k]",
        "u if nudges is None else u - nudges[k]",
        "tests/test_solve.py::test_gradients_are_those_of_numerical_differences[gru_reset_before-fused]",
    ),
    Mutation(
        "native, C++: the transposed product of the backward loop, the Jacobian dh_t/dh_{t-1}, is dropped",
        "seqjax/solvers/native/recurrence.h",
        "b.recurrent[k].multiply(now, p.ld, rows, d[0], p.ldv, t % 2);",
        "",
        "tests/test_native.py::test_float32_is_within_1e_4_of_a_scan_in_float64[lstm-(33, 7, 3, 21)]",
    ),
    Mutation(
        "native, C++: the carry before a step is that of two steps before",
        "seqjax/solvers/native/kernel.h",
        "t ? carry[c] + place(t - 1, b)",
        "t > 1 ? carry[c] + place(t - 2, b)",
        "tests/test_native.py::test_float32_is_within_1e_4_of_a_scan_in_float64[rnn-(33, 7, 3, 21)]",
    ),
    Mutation(
        "native, from jaxpr to C++: a subtraction becomes an addition",
        "seqjax/solvers/native/arithmetic.py",
        '"sub": "-"',
        '"sub": "+"',
        "tests/test_native.py::test_float32_is_within_1e_4_of_a_scan_in_float64[gru-(33, 7, 3, 21)]",
    ),
    Mutation(
        "persistent: what arithmetic makes of the padding enters the products",
        "seqjax/solvers/persistent/triton.py",
        "return jnp.where(unit < self.blocks.given, part, jnp.zeros_like(part))",
        "return part",
        "tests/test_persistent.py::test_what_arithmetic_makes_of_the_padding_stays_there[cuda]",
    ),
    Mutation(
        "persistent: each block of steps starts from the first carry",
        "seqjax/solvers/persistent/mosaic.py",
        "@pl.when(pl.program_id(1) == 0)",
        "@pl.when(pl.program_id(1) >= 0)",
        "tests/test_persistent.py::test_the_carry_passes_from_block_to_block[lstm]",
    ),
    Mutation(
        "persistent: what is loaded ahead is what the same step has read",
        "seqjax/solvers/persistent/triton.py",
        "jnp.minimum(t + 1, own.steps - 1)",
        "jnp.minimum(t, own.steps - 1)",
        "tests/test_persistent.py::test_any_batch_axes_and_masks_with_holes[()-cuda]",
    ),
    Mutation(
        "persistent: the gradients of two slots change places before the product",
        "seqjax/solvers/persistent/triton.py",
        "jnp.stack(parts[k : k + 2], -1)",
        "jnp.stack(parts[k : k + 2][::-1], -1)",
        "tests/test_persistent.py::test_any_batch_axes_and_masks_with_holes[()-cuda]",
    ),
    Mutation(
        "persistent: blocks of 64 wait for each other on a GPU that does not run as many",
        "seqjax/solvers/persistent/tiling.py",
        "min(ACROSS, processors() // 2)",
        "ACROSS",
        "tests/test_persistent.py::test_blocks_that_wait_for_each_other_run_at_the_same_time",
    ),
    Mutation(
        "bidirectional on a GPU: the backward lane returns its outputs in its own order",
        "seqjax/unrolling.py",
        "jnp.concatenate([ys[0], reverse_time(ys[1])], axis=-1)",
        "jnp.concatenate([ys[0], ys[1]], axis=-1)",
        "tests/test_persistent.py::test_both_directions_share_a_kernel_on_a_gpu_of_this_process[True]",
    ),
    Mutation(
        "auto: the platform of this process instead of that of the program",
        "seqjax/solvers/dispatch.py",
        'choose(platform, cell, params, carry, xs) for platform in ("cpu", "cuda", "tpu")',
        'choose(jax.default_backend(), cell, params, carry, xs) for _ in ("cpu", "cuda", "tpu")',
        "tests/test_persistent.py::test_auto_chooses_by_the_platform_of_the_program[cuda]",
    ),
    Mutation(
        "associative: no complex conjugate in the gradient",
        "seqjax/solvers/associative.py",
        "    a = _conjugate(a)\n",
        "",
        "tests/test_cells_linear.py::test_a_prefix_gives_what_scan_gives[lru]",
    ),
    Mutation(
        "newton: the Jacobians of the gradient are not transposed",
        "seqjax/solvers/newton.py",
        "jnp.swapaxes(jacobians, -1, -2), g, reverse=True)",
        "jacobians, g, reverse=True)",
        "tests/test_newton.py::test_every_cell_is_solved[gru]",
    ),
    Mutation(
        "checkpointed: the last, shorter chunk starts at 0 and not at the carry of the one before",
        "seqjax/solvers/chunks.py",
        "carry, merge([leaf[whole:] for leaf in timed])",
        "jax.tree.map(jnp.zeros_like, carry), merge([leaf[whole:] for leaf in timed])",
        "tests/test_checkpointed.py::test_any_chunk_gives_what_scan_gives[gru]",
    ),
    # Gradients
    Mutation(
        "truncated BPTT: the window begins one step late while the past fills up",
        "seqjax/gradients/truncation.py",
        ">= kept - state.filled",
        "> kept - state.filled",
        "tests/test_gradients.py::test_truncated_bptt_reaches_k2_steps_back_and_no_further[2-5]",
    ),
    Mutation(
        "truncated BPTT: the loss of k1 + 1 steps instead of k1",
        "seqjax/gradients/truncation.py",
        "jnp.concatenate([y, z])[kept:]",
        "jnp.concatenate([y, z])[kept - 1 : -1]",
        "tests/test_gradients.py::test_truncated_bptt_reaches_k2_steps_back_and_no_further[2-3]",
    ),
    Mutation(
        "RTRL: the influence of the past, dh_t/dh_{t-1} J, is dropped",
        "seqjax/gradients/online.py",
        "by_carry @ influence + by_weights",
        "by_weights",
        "tests/test_gradients.py::test_rtrl_is_bptt_over_chunks[lstm]",
    ),
    Mutation(
        "UORO: the sign of the rank-one update",
        "seqjax/gradients/stochastic.py",
        "influence.w / p + immediate / q",
        "influence.w / p - immediate / q",
        f"{DRAWS}[uoro]",
    ),
    Mutation(
        "UORO: one of the two factors not normalized",
        "seqjax/gradients/stochastic.py",
        "influence.w / p + immediate / q",
        "influence.w + immediate / q",
        f"{DRAWS}[uoro]",
    ),
    Mutation(
        "ARTBP: what is not truncated lacks its weight 1 / (1 - rate)",
        "seqjax/gradients/stochastic.py",
        "kept / (1 - rate)",
        "kept",
        f"{DRAWS}[artbp]",
    ),
    Mutation(
        "persistent evolution: the noise of this chunk instead of all noise so far",
        "seqjax/gradients/stochastic.py",
        "(values[0] - values[1]) @ seen",
        "(values[0] - values[1]) @ noise",
        f"{DRAWS}[persistent_evolution]",
    ),
    Mutation(
        "e-prop: recurrent products are followed too",
        "seqjax/gradients/sparse.py",
        "jax.lax.stop_gradient(carry)",
        "carry",
        "tests/test_gradients_sparse.py::test_eprop_of_a_simple_rnn_is_truncation_to_one_step",
    ),
    Mutation(
        "SnAp: a pattern of one step more",
        "seqjax/gradients/sparse.py",
        "for _ in range(n - 1):",
        "for _ in range(n):",
        "tests/test_gradients_sparse.py::test_snap_of_a_sparse_network_keeps_what_n_steps_reach[2-2]",
    ),
    # Diagnostics
    Mutation(
        "product of Jacobians: the factors of the QR sweep in the wrong order",
        "seqjax/diagnostics/spectrum.py",
        "return _qr(_matmul(a, q))",
        "return _qr(_matmul(q, a))",
        "tests/test_diagnostics.py::test_product_spectrum_is_that_of_the_product",
    ),
    Mutation(
        "Lyapunov exponents: the logarithm of a negative diagonal of R",
        "seqjax/diagnostics/spectrum.py",
        "jnp.log(jnp.abs(jnp.diagonal(r)))",
        "jnp.log(jnp.diagonal(r))",
        "tests/test_diagnostics.py::test_lyapunov_exponents_of_a_linear_map_are_the_logarithms_of_its_eigenvalues",
    ),
    Mutation(
        "half life: the time to 1/e instead of 1/2",
        "seqjax/diagnostics/memory.py",
        "jnp.log(2.0).astype(rate.dtype) / rate",
        "1 / rate",
        "tests/test_diagnostics.py::test_half_lives_of_gates_that_never_move",
    ),
    Mutation(
        "participation ratio: the mean is not taken off",
        "seqjax/diagnostics/memory.py",
        "rows = rows - rows.mean(0, keepdims=True)",
        "rows = rows * 1",
        "tests/test_diagnostics.py::test_participation_ratio_counts_directions",
    ),
    Mutation(
        "contributions: the Jacobian is taken at the carry after the step",
        "seqjax/diagnostics/gradient.py",
        "jnp.concatenate([first[None], h[:-1]])",
        "h",
        "tests/test_diagnostics.py::test_contributions_are_the_gradients_for_params_that_one_step_uses[gru]",
    ),
    # Data
    Mutation(
        "windows: off by one row",
        "seqjax/data/windows.py",
        "rows = offsets[:, None] + starts[None, :]",
        "rows = offsets[:, None] + starts[None, :] + 1",
        "tests/test_data_jena.py::test_windows_are_hourly_and_targets_follow_by_the_horizon",
    ),
    Mutation(
        "minibatches: every epoch in the order of the first",
        "seqjax/data/windows.py",
        "jax.random.fold_in(key, epoch)",
        "jax.random.fold_in(key, 0)",
        "tests/test_data_windows.py::test_order_differs_between_epochs_and_keys_and_is_not_the_identity",
    ),
    Mutation(
        "Jena: mean and deviation of the whole record, the test part too",
        "seqjax/data/jena.py",
        "climate.values[: borders[1]]",
        "climate.values",
        "tests/test_data_jena.py::test_statistics_know_only_the_training_part",
    ),
    Mutation(
        "Jena: the target one row early",
        "seqjax/data/jena.py",
        "starts + task.target, 1)",
        "starts + task.target - 1, 1)",
        "tests/test_data_jena.py::test_windows_are_hourly_and_targets_follow_by_the_horizon",
    ),
    Mutation(
        "text: the target is the input, not the next character",
        "seqjax/data/text.py",
        "return window[:-1], window[1:]",
        "return window[:-1], window[:-1]",
        "tests/test_data_text.py::test_chunks_of_a_lane_joined_are_the_text",
    ),
    # Training and sweeps
    Mutation(
        "resume: records after the checkpoint stay, and are written twice",
        "seqjax/train/lane.py",
        'self.run.rewind(saved[1]["records"] if saved else None)',
        "self.run.rewind(self.run.mark())",
        "tests/test_train_loop.py::test_resumes_bit_for_bit_after_a_crash[log-20]",
    ),
    Mutation(
        "resume: a record that was changed is not noticed",
        "seqjax/train/run.py",
        "if _mark(kept) != mark:",
        'if len(kept) != mark["records"]:',
        "tests/test_train_run.py::test_records_that_are_missing_or_were_changed_are_refused[changed]",
    ),
    Mutation(
        "mirror: a resume does not write the sink anew",
        "seqjax/train/run.py",
        "        if self._mirror:\n            self._mirror.close()\n\n    def save_params",
        "\n    def save_params",
        "tests/test_train_sinks.py::test_a_sink_is_told_everything_once_and_of_a_resume_only_what_is_left",
    ),
    Mutation(
        "mirror: a sink that failed is told again",
        "seqjax/train/mirror.py",
        "self._sink, None, True",
        "self._sink, None, False",
        "tests/test_train_sinks.py::test_a_sink_that_fails_is_reported_once_and_the_run_goes_on[log]",
    ),
    Mutation(
        "TensorBoard: one that is running keeps what a resume dropped",
        "seqjax/train/sinks.py",
        'self._write(session_log={"status": "START"})',
        "pass",
        "tests/test_train_sinks.py::test_tensorboard_shows_every_number_once_after_a_resume",
    ),
    Mutation(
        "resume: other data is not noticed",
        "seqjax/train/lane.py",
        '"data": data}',
        '"data": {}}',
        "tests/test_train_resume.py::test_changed_data_is_refused_with_the_difference",
    ),
    Mutation(
        "resume: other flags of a checkpoint are not noticed",
        "seqjax/train/lane.py",
        '"flag": run.flags',
        '"flag": {}',
        "tests/test_train_resume.py::test_checkpoints_of_a_run_with_other_flags_are_refused",
    ),
    Mutation(
        "lanes: those that are ahead are trained first, and alone",
        "seqjax/train/loop.py",
        "step = min(lane.step for lane in active)",
        "step = max(lane.step for lane in active)",
        "tests/test_train_resume.py::test_lanes_may_be_added_and_no_step_is_taken_twice",
    ),
    Mutation(
        "lock: two processes have it",
        "seqjax/train/lock.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/test_train_lock.py::test_the_lock_of_a_stopped_process_is_not",
    ),
    Mutation(
        "lock: that of another host is taken at once",
        "seqjax/train/lock.py",
        " and _touched(path, holder):",
        " and not _touched(path, holder):",
        "tests/test_train_lock.py::test_the_lock_of_a_host_that_still_touches_it_is_not",
    ),
    Mutation(
        "best params: those of the highest loss",
        "seqjax/train/program.py",
        "(value < state.best.value)",
        "(value > state.best.value)",
        "tests/test_train_loop.py::test_best_is_the_lowest_validation_metric",
    ),
    Mutation(
        "training: a state that is not finite is trained further",
        "seqjax/train/lockstep.py",
        "broken = [path for path in lane.watched if not np.atleast_1d(finite[path])[i]]",
        "broken = []",
        "tests/test_train_loop.py::test_a_state_that_is_not_finite_after_the_last_update_is_no_success[params-w-nan]",
    ),
    Mutation(
        "results: a number that is not finite is written",
        "seqjax/train/finite.py",
        "elif isinstance(tree, float) and not math.isfinite(tree):",
        "elif isinstance(tree, float) and math.isinf(tree):",
        "tests/test_train_run.py::test_a_result_that_is_not_finite_is_no_success",
    ),
    Mutation(
        "checkpoints: the oldest is restored first",
        "seqjax/train/checkpoint.py",
        "for step in reversed(self.steps()):",
        "for step in self.steps():",
        "tests/test_train_checkpoint.py::test_restores_the_newest_bit_for_bit",
    ),
    Mutation(
        "checkpoints: the digest is not compared",
        "seqjax/train/checkpoint.py",
        'if digest(state, _without_digests(described)) != described["digests"][1]:',
        "if False:",
        "tests/test_train_checkpoint.py::test_values_changed_behind_a_valid_format_are_noticed",
    ),
    Mutation(
        "training: the noise of the first step at every step",
        "experiments/harness/supervised.py",
        "jax.random.fold_in(k_noise, state.step)",
        "k_noise",
        "tests/test_experiments.py::test_noise_is_new_at_every_step",
    ),
    Mutation(
        "the band of a learning curve sets the axes",
        "experiments/harness/plots.py",
        "    axes.dataLim = limits\n",
        "",
        "tests/test_report.py::test_a_band_does_not_set_the_axes",
    ),
    Mutation(
        "two runs have a 95 % interval",
        "experiments/harness/plots.py",
        "FEWEST_RUNS = 3",
        "FEWEST_RUNS = 2",
        "tests/test_report.py::test_two_runs_are_two_lines_without_a_band",
    ),
    Mutation(
        "rounding takes an axis of cosines above 1",
        "experiments/harness/plots.py",
        "1e-5 * np.ptp(view) + 1e-6",
        "0.0",
        "tests/test_report.py::test_no_margin_passes_a_bound_that_the_curves_respect",
    ),
    Mutation(
        "the axes of a figure stay black on a dark page",
        "experiments/harness/plots.py",
        'rest.replace("#000000", "currentColor")',
        "rest",
        "tests/test_report.py::test_figures_follow_the_page_and_are_described",
    ),
    Mutation(
        "lanes that share a clock have an interval of it",
        "experiments/harness/report.py",
        "if value and together and name in SHARED else value",
        "if False else value",
        "tests/test_report.py::test_lanes_share_a_clock_and_say_so_where_the_number_is",
    ),
    Mutation(
        "a report does not say that its data are generated",
        "experiments/harness/experiment.py",
        'if flags["data_dir"] is None and all(',
        "if False and all(",
        "tests/test_report.py::test_every_experiment_says_when_its_data_are_generated",
    ),
    Mutation(
        "sweep: a range that holds its end",
        "experiments/harness/sweep.py",
        "range(int(bounds[1]), int(bounds[2]))",
        "range(int(bounds[1]), int(bounds[2]) + 1)",
        "tests/test_sweep.py::test_ranges_are_half_open_and_only_for_integers",
    ),
    # A sweep seen from outside
    Mutation(
        "a sweep from outside: the lock that a killed process left counts as held",
        "seqjax/train/lock.py",
        'elsewhere = found and not (local and found.get("host") == socket.gethostname())',
        "elsewhere = found",
        "tests/test_train_lock.py::test_who_holds_a_lock_is_seen_from_outside",
    ),
    Mutation(
        "a sweep from outside: a run that could not say why it failed waits",
        "seqjax/train/sweep.py",
        'if listed["status"] == "failed":',
        "if False:",
        "tests/test_train_sweep.py::test_a_row_for_each_run_and_a_column_for_each_scalar",
    ),
    Mutation(
        "a sweep from outside: the time left is that of all steps",
        "experiments/harness/progress.py",
        "left = (steps - step) / rate",
        "left = steps / rate",
        "tests/test_progress.py::test_counts_reasons_and_the_runs_that_are_running",
    ),
    Mutation(
        "a sweep from outside: the best run is the worst",
        "experiments/harness/findings.py",
        "min(runs, key=validation)",
        "max(runs, key=validation)",
        "tests/test_findings.py::test_the_best_run_of_each_method",
    ),
    # Nothing is left out without a word
    Mutation(
        "buckets: a sequence that is too long is let in",
        "seqjax/data/buckets.py",
        "int((lengths > borders[-1]).sum())",
        "int((lengths > 2 * borders[-1]).sum())",
        "tests/test_data_buckets.py::test_errors",
    ),
    Mutation(
        "an evaluation leaves out the last batch, which is not full",
        "seqjax/data/windows.py",
        "rows = jnp.minimum(jnp.arange(-(-count // batch) * batch,",
        "rows = jnp.minimum(jnp.arange(count // batch * batch,",
        "tests/test_mnist.py::test_every_digit_is_measured_whatever_the_batch",
    ),
    Mutation(
        "music: pieces are cut at the last of the usual borders",
        "experiments/music.py",
        "return buckets.make(pieces, buckets.reaching(BORDERS[config.data], max(map(len, pieces))), least)",
        "return buckets.make([p[: BORDERS[config.data][-1]] for p in pieces], BORDERS[config.data], least)",
        "tests/test_music.py::test_music[--model=markov]",
    ),
    Mutation(
        "translation: perplexity without the pairs whose French is long",
        "experiments/translation.py",
        "        rows.append(row)\n",
        "        rows += [row] * (len(french) <= 8)\n",
        "tests/test_translation.py::test_perplexity_is_over_all_tokens_of_all_pairs",
    ),
    Mutation(
        "a text is scored in whole windows alone",
        "experiments/shared/corpora.py",
        "cut(np.ones(targets, bool))",
        "cut(np.arange(targets) % steps < steps // length * length)",
        "tests/test_experiments.py::test_scores_of_a_text_are_over_all_of_its_characters",
    ),
    # Flax
    Mutation(
        "Flax: dropout in evaluation too",
        "seqjax/nnx*",
        "return not self.deterministic and not _omits(rate)",
        "return not _omits(rate)",
        "tests/test_nnx.py::test_dropout_layer",
    ),
    Mutation(
        "Flax: a rate of the number 0 draws masks",
        "seqjax/nnx/noise.py",
        "return isinstance(rate, int | float) and rate == 0",
        "return False",
        "tests/test_nnx_layers.py::test_the_number_zero_omits_a_regularizer_and_a_scalar_zero_draws[input_dropout]",
    ),
    Mutation(
        "Flax: regularizers in evaluation too",
        "seqjax/nnx*",
        "            if self.deterministic:\n                cell = regularizer.evaluated(cell)",
        "            if not self.regularizers:\n                cell = regularizer.evaluated(cell)",
        "tests/test_nnx_layers.py::test_a_regularizer_is_that_of_the_cell_and_its_evaluation[input_dropout]",
    ),
    Mutation(
        "estimators: the gradient of a shard is summed over all shards",
        "seqjax/gradients/estimator.py",
        "return vary(trees, varying(trees))",
        "return trees",
        "tests/test_gradients_mesh.py::test_the_mean_over_shards_is_that_of_what_each_computes_alone[bptt]",
    ),
    Mutation(
        "one-hot tokens: rows without the bias",
        "seqjax/arrays.py",
        "    return total + like(b.astype(dtype), total)",
        "    return total",
        "tests/test_wrappers.py::test_one_hot_tokens_are_real_one_hot_vectors[stack]",
    ),
    Mutation(
        "several one-hot tokens per step: only the first is read",
        "seqjax/arrays.py",
        "    total = sum(taken[1:], start=taken[0])",
        "    total = taken[0]",
        "tests/test_wrappers.py::test_several_tokens_of_a_step_are_the_sum_of_their_vectors[stack]",
    ),
    Mutation(
        "n-grams in their order: each stands at the word that it begins with",
        "seqjax/data/vectorize.py",
        "            result[:, n - 1 :, i] = ints[:, : max(length - n + 1, 0)]",
        "            result[:, :, i] = ints",
        "tests/test_data_vectorize.py::test_ngrams_stand_at_the_word_that_they_end_at",
    ),
    Mutation(
        "unitary: the phases of the decomposition left in",
        "seqjax/initializers/weights.py",
        "            q *= jax.lax.complex(jnp.cos(phase), jnp.sin(phase))",
        "            q *= jax.lax.complex(jnp.ones_like(phase), jnp.zeros_like(phase))",
        "tests/test_initializers.py::test_unitary_is_uniform",
    ),
    Mutation(
        "decoding: the nucleus leaves out the token that fills it",
        "seqjax/decoding.py",
        "before < least, rank, -1)",
        "before + probability < least, rank, -1)",
        "tests/test_decoding.py::test_tokens_are_drawn_as_often_as_they_should[options5-expected5]",
    ),
    Mutation(
        "decoding: beams keep the carries of others",
        "seqjax/decoding.py",
        "carry = jax.tree.map(lambda leaf: _rows(leaf, parent), carry)",
        "pass",
        "tests/test_decoding.py::test_carries_follow_their_beams",
    ),
    Mutation(
        "decoding: the length penalty counts no end",
        "seqjax/decoding.py",
        "scores / penalty(t + 1)",
        "scores / penalty(t)",
        "tests/test_decoding.py::test_a_wide_beam_finds_the_best_of_all_sequences[1.0]",
    ),
    Mutation(
        "attention: padding has a weight where all is padding",
        "seqjax/attention.py",
        "weights = jnp.where(memory.mask, weights, jnp.zeros_like(weights))",
        "pass",
        "tests/test_attention.py::test_a_memory_of_nothing_is_a_context_of_zeros[luong-additive]",
    ),
    Mutation(
        "scheduled sampling: the coin the wrong way round",
        "seqjax/models/decoder.py",
        "read = jnp.where(coin, sampled, given)",
        "read = jnp.where(coin, given, sampled)",
        "tests/test_translation.py::test_scheduled_sampling_reads_what_the_decoder_says",
    ),
    Mutation(
        "pairs: split by sentences as they are written, so that one stands in two parts",
        "seqjax/data/pairs.py",
        'keys = [" ".join(tokens(source)) for source in pairs.source]',
        "keys = list(pairs.source)",
        "tests/test_data_pairs.py::test_no_sentence_stands_in_two_parts",
    ),
    Mutation(
        "Kneser-Ney: counts of contexts that are off by one",
        "seqjax/models/ngram.py",
        "numbers[n][1:][first]",
        "numbers[n][:-1][first]",
        "tests/test_language.py::test_kneser_ney_is_the_formula[2]",
    ),
    Mutation(
        "dynamic evaluation: away from the trained weights",
        "experiments/shared/reading.py",
        "* (trained - w)",
        "* (w - trained)",
        "tests/test_language.py::test_dynamic_evaluation_is_its_equation",
    ),
    Mutation(
        "language model: the tied head misses the dropped words",
        "seqjax/models/language.py",
        "w = table.T if",
        "w = read.T if",
        "tests/test_language.py::test_a_word_is_dropped_wherever_it_stands_and_the_tied_head_keeps_it",
    ),
    Mutation(
        "generate: the stream draws by the keys of the step after",
        "experiments/demos/generate.py",
        "jax.random.fold_in(key, t)",
        "jax.random.fold_in(key, t + 1)",
        "tests/test_language.py::test_streamed_text_is_the_text_of_one_compiled_loop",
    ),
    Mutation(
        "NADE: a key sees itself",
        "seqjax/models/music.py",
        "before = jnp.cumsum(written, -2) - written",
        "before = jnp.cumsum(written, -2)",
        "tests/test_music.py::test_nade_is_the_loop_over_keys",
    ),
    Mutation(
        "archives: a damaged header of a tar archive ends it without a word",
        "seqjax/data/archives.py",
        'if type(error).__name__ == "EOFHeaderError":',
        "if tarfile.offset:",
        "tests/test_data_files.py::test_a_tar_archive_is_whole_or_refused",
    ),
    Mutation(
        "archives: a file that stands there twice is read twice",
        "seqjax/data/files.py",
        "            if plain in names:",
        "            if not plain:",
        "tests/test_data_files.py::test_a_file_that_stands_there_twice_is_refused",
    ),
    Mutation(
        "wav: samples that are cut off",
        "seqjax/data/spoken_digits.py",
        "if not data or len(data) != size or size % 2:",
        "if not data or size % 2:",
        "tests/test_data_spoken_digits.py::test_every_cut_of_a_wav_file_is_noticed",
    ),
    Mutation(
        "MIDI: steps that are shorter than a microsecond",
        "seqjax/data/midi.py",
        "if not 1e-6 <= seconds <= 16:",
        "if not 0 < seconds <= 16:",
        "tests/test_data_music.py::test_what_midi_cannot_say",
    ),
    Mutation(
        "MIDI: times from the start instead of from the event before",
        "seqjax/data/midi.py",
        "track += _variable(_TICKS * (step - last)) + bytes(",
        "track += _variable(_TICKS * step) + bytes(",
        "tests/test_data_music.py::test_a_midi_file_byte_by_byte",
    ),
    Mutation(
        "log-mel: a window that is symmetric instead of periodic",
        "seqjax/data/spectrogram.py",
        "np.arange(count) / count))",
        "np.arange(count) / (count - 1)))",
        "tests/test_data_spectrogram.py::test_the_power_is_that_of_scipy",
    ),
    Mutation(
        "spotting: a detector rests a frame too long",
        "experiments/shared/detection.py",
        "jnp.where(now, rest, jnp",
        "jnp.where(now, rest + 1, jnp",
        "tests/test_spotting.py::test_a_detector_fires_and_then_rests",
    ),
    Mutation(
        "time warping: no step in both series at once",
        "seqjax/models/nearest.py",
        "below(two, start))",
        "below(one, start))",
        "tests/test_nearest.py::test_dtw_is_the_recursion",
    ),
    Mutation(
        "series: a convolution sees the padding",
        "seqjax/models/series.py",
        "norm(conv(jnp.where(real, xs, jnp.zeros_like(xs))))",
        "norm(conv(xs))",
        "tests/test_series.py::test_the_padding_is_not_read[conv]",
    ),
    Mutation(
        "anomalies: learning continues after the probation",
        "experiments/anomalies.py",
        'real = (row < border) if part == "train"',
        'real = (row < last) if part == "train"',
        "tests/test_anomalies.py::test_nothing_is_learned_from_behind_the_probation",
    ),
    Mutation(
        "anomaly score: the place in a window off by one",
        "seqjax/data/nab_score.py",
        "(rows[last + 1 :] - last) / max(width - 1, 1)",
        "(rows[last + 1 :] - last) / width",
        "tests/test_data_nab.py::test_points_of_the_standard_profile_by_hand",
    ),
    Mutation(
        "motion: a wall that does not turn the velocity",
        "seqjax/data/motion.py",
        "jnp.where(phase < rise, speed, -speed))",
        "speed)",
        "tests/test_data_motion.py::test_a_reflection_turns_one_velocity_and_keeps_the_other",
    ),
    Mutation(
        "conv_lstm: even kernels padded on the wrong side",
        "seqjax/cells/convolution.py",
        "((k - 1) // 2, k // 2) for k in kernel",
        "(k // 2, (k - 1) // 2) for k in kernel",
        "tests/test_video.py::test_the_product_of_shifts_is_a_convolution[kernel2]",
    ),
    Mutation(
        "video: unseen frames are looked at",
        "seqjax/models/video.py",
        "jnp.where(known, frame, guess)",
        "frame",
        "tests/test_video.py::test_unseen_frames_are_not_looked_at_and_the_own_ones_are_read",
    ),
]


def place(mutation: Mutation, root: Path = ROOT) -> Path:
    """The one file that contains the old text, exactly once."""
    files = [file for path in root.glob(mutation.file) for file in ([path] if path.is_file() else path.rglob("*.py"))]
    found = {file: file.read_text(encoding="utf-8").count(mutation.old) for file in files}
    if sum(found.values()) != 1:
        raise ValueError(f"{mutation.file} contains {mutation.old!r} {sum(found.values())} times, expected once")
    return max(found, key=lambda file: found[file])


def run(root: Path, tests: Sequence[str]) -> Result:
    """Run tests of a copy of the repository up to the first that fails."""
    report = root / "report.xml"
    began = time.perf_counter()
    environment = os.environ | {
        "PYTHONDONTWRITEBYTECODE": "1",  # stale bytecode would hide a change that keeps the file's size and second
        "XDG_CACHE_HOME": str(root / "cache"),
    }
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if not report.exists():
        return Result(False, f"pytest did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}", seconds)
    suite = ElementTree.parse(report)
    report.unlink()
    found = [found for kind in ("error", "failure", "skipped") for found in suite.iter(kind)]
    message = found[0].get("message", "") if found else ""
    return Result(done.returncode == 0 and not found, message, seconds)


def is_assertion(message: str) -> bool:
    """Whether a test failed because it compared and found a difference."""
    return message.startswith(("AssertionError", "assert ", "Failed: DID NOT RAISE", "Failed: DID NOT WARN"))


def caught(root: Path, mutation: Mutation) -> Result:
    """Put one bug into a copy of the repository, run its test, and take the bug out again.

    Raises:
      AssertionError: if the test passes, or fails other than by an assertion.
    """
    path = place(mutation, root)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        result = run(root, [mutation.test])
    finally:
        path.write_text(text, encoding="utf-8")
    if result.passed:
        raise AssertionError(f"no test caught: {mutation.what} ({mutation.test})")
    if not is_assertion(result.message):
        raise AssertionError(f"not by an assertion: {mutation.what} ({mutation.test}): {result.message}")
    return result


def copy(to: Path) -> Path:
    """A copy of the repository without the files that git ignores."""
    return shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "build"))


def page(results: dict[Mutation, Result], known: str = "") -> str:
    """The results as Markdown, merged with the lines of the page `known` for other mutations."""
    lines = {row.split(" | ")[0].removeprefix("| "): row for row in known.splitlines() if row.startswith("| ")}
    for mutation, result in results.items():
        where = place(mutation).relative_to(ROOT).as_posix()
        test = mutation.test.removeprefix("tests/")
        lines[mutation.what] = f"| {mutation.what} | `{where}` | `{test}` | {result.seconds:.0f} |"
    rows = [lines[mutation.what] for mutation in MUTATIONS if mutation.what in lines]
    total = sum(int(row.split(" | ")[-1].removesuffix(" |")) for row in rows)
    return INTRODUCTION + "\n".join(rows) + f"\n\n{len(rows)} bugs, {total} seconds.\n"


def main(words: Sequence[str]) -> int:
    """Apply the mutations whose name contains one of the words, or all."""
    chosen = [one for one in MUTATIONS if not words or any(word in one.what for word in words)]
    results, missed = {}, []
    with tempfile.TemporaryDirectory() as folder:
        root = copy(Path(folder) / "repository")
        sound = run(root, sorted({mutation.test for mutation in chosen}))
        print(f"{sound.seconds:5.1f} s  without a change: {'all pass' if sound.passed else sound.message}", flush=True)
        if not sound.passed:
            return 1
        for mutation in chosen:
            try:
                results[mutation] = caught(root, mutation)
                print(f"{results[mutation].seconds:5.1f} s  {mutation.what}", flush=True)
            except AssertionError as error:
                missed.append(mutation)
                print(f"MISSED   {error}", flush=True)
    PAGE.write_text(page(results, PAGE.read_text(encoding="utf-8") if words else ""), encoding="utf-8")
    print(f"{len(results)} of {len(chosen)} caught")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
