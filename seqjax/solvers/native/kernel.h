// A gated recurrence over all steps, forward and backward, for the CPU.
//
// Everything specific to a cell comes from the generated code that includes this file (emit.py): the numbers below, and
// the elementwise functions `stage`, `gates` and their transposes. Everything else is in products.h, threads.h, vectors.h
// and recurrence.h, which has the loops over time and the entry points that XLA calls.
//
//   SLOTS        rows of the pre-activation `a`, each H wide; a product adds to some of them
//   CARRIES      leaves of the carry, all [B, H]
//   STAGES       recurrent products, v_k @ W_k
//   DENSE        whether the input is projected here, a += x @ w_x + b
//   OTHERS       further inputs of the elementwise functions: masks, inner biases, dropout, ...
//
// Units are divided into blocks of VL. A row of `a` is [block][slot][VL], so that the data of one block of units is
// contiguous: a thread can own a range of blocks, and the elementwise functions read and write whole vectors.
//
// The work is partitioned in one of two ways. If the weights are small, every thread runs some rows of the batch through
// all steps, independently, and `a` is recomputed in the backward pass. If they are large, every thread takes a range of
// blocks, so that each weight is read by only one core; the threads then meet once or twice per step, and `a` is kept.

#pragma once

#include <chrono>

#include "products.h"
#include "threads.h"
#include "vectors.h"

namespace {

constexpr long PART_ROWS = 32;    // of the batch, that a thread runs through all steps
constexpr long CHUNK_ROWS = 320;  // rows of a product of the weight gradient
constexpr long RATE = 50000;      // flop that one core does in a microsecond, roughly

struct Problem {
  long T, B, D, H, blocks, ld, ldv;  // ld: from one row of `a` to the next; ldv: of a carry's gradient
  bool columns;                      // the partition: blocks of units, or rows
  long step, row;                    // of inputs and carries: from one step, one sequence to the next
  const real *x, *w_x, *b, *w[STAGES], *start[CARRIES];
  const void* other[OTHERS + 1];
  real *carry[CARRIES], *a;  // [T, B, .], the carries and x also [B, T, .]; `a` is null if it is not kept
  const real *d_last[CARRIES], *d_carry[CARRIES];
  real *d_start[CARRIES], *dx, *dw_x, *db, *dw[STAGES], *d_other[OTHERS + 1];
  long d_other_count[OTHERS + 1];

  int valid(long block) const { return static_cast<int>(std::min<long>(VL, H - block * VL)); }
  long place(long t, long b) const { return t * step + b * row; }
  const real* input(long t, long b) const { return x + place(t, b) * D; }
  // The leaf c of the carry of sequence b before step t.
  const real* before(int c, long t, long b) const {
    return (t ? carry[c] + place(t - 1, b) * CARRY_WIDTH[c] * H : start[c] + b * CARRY_WIDTH[c] * H);
  }
  // From one sequence to the next there.
  long apart(long t) const { return t ? row : 1; }
  // An even number of parts of the batch, each of about PART_ROWS rows.
  int parts() const {
    long n = (B + PART_ROWS - 1) / PART_ROWS;
    n += n % 2;
    return static_cast<int>(std::max(1L, std::min(n, B / 4)));
  }
  // How long to wait for another thread: a small part of the time that one thread alone would take.
  std::chrono::microseconds patience() const {
    return std::chrono::microseconds(std::max(100L, T * B * (D + H) * SLOTS * H / RATE / 8));
  }
  template <class Region>
  Region part(int i) const {
    return {B * i / parts(), B * (i + 1) / parts(), 0, blocks};
  }
};

}  // namespace
