// The loops over time and the entry points; included after the generated functions.

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

struct Region {  // what one thread works on: rows of the batch, and blocks of units
  long row0, row1, block0, block1;
  long rows() const { return row1 - row0; }
};

std::vector<Vector> unit_vectors(const Problem& p, const Region& r) {
  std::vector<Vector> out;
  for (long b = r.block0; b < r.block1; b++) out.push_back({b * VL, p.valid(b), b * VL});
  return out;
}

// The columns of weights [., n H], and the slots of `a` that they add to.
std::vector<Vector> slot_vectors(const Problem& p, const Region& r, const std::vector<int>& slots) {
  std::vector<Vector> out;
  for (long b = r.block0; b < r.block1; b++)
    for (size_t j = 0; j < slots.size(); j++)
      out.push_back({static_cast<long>(j) * p.H + b * VL, p.valid(b), (b * SLOTS + slots[j]) * VL});
  return out;
}

Region everything(const Problem& p) { return {0, p.B, 0, p.blocks}; }

template <class F>
inline void elements(const Problem& p, const Region& r, F f) {
  for (long row = r.row0; row < r.row1; row++)
    for (long block = r.block0; block < r.block1; block++)
      if (int n = p.valid(block); n == VL)
        f(row, block, std::integral_constant<int, VL>{});
      else
        f(row, block, n);
}

// The weights, packed for the columns of a region.
struct Forward {
  Panels dense, recurrent[STAGES];
  Memory bias;
  Forward(const Problem& p, const Region& r) : bias(p.ld) {
    std::fill_n(static_cast<real*>(bias), p.ld, real(0));
    if (DENSE) {
      auto vectors = slot_vectors(p, r, DENSE_SLOTS);
      dense.pack(p.w_x, p.D, static_cast<long>(DENSE_SLOTS.size()) * p.H, vectors);
      for (const Vector& v : vectors) store(bias + v.place, load(p.b + v.column, v.count));
    }
    for (int k = 0; k < STAGES; k++)
      recurrent[k].pack(p.w[k], p.H, static_cast<long>(WEIGHT_SLOTS[k].size()) * p.H,
                        slot_vectors(p, r, WEIGHT_SLOTS[k]));
  }
};

// a = x @ w_x + b for the rows of a region and, if these are all of the batch, for some steps from t on.
void project(const Problem& p, const Forward& w, const Region& r, long t, long steps, real* a) {
  Region rows{0, steps * r.rows(), r.block0, r.block1};
  elements(p, rows, [&](long row, long block, auto) {
    for (int s = 0; s < SLOTS; s++) {
      long place = (block * SLOTS + s) * VL;
      store(a + row * p.ld + place, load(w.bias + place));
    }
  });
  if (!DENSE) return;
  if (p.row == 1 || steps == 1) {
    w.dense.multiply(p.input(t, r.row0), p.row * p.D, rows.rows(), a, p.ld);
  } else {
    for (long row = 0; row < p.B; row++)  // the steps of a sequence are contiguous
      w.dense.multiply(p.input(t, row), p.D, steps, a + row * p.ld, p.B * p.ld);
  }
}

// The recurrent products of a step, added to a. `a` and v[k] point to the first row of the region.
template <class Meet>
void recur(const Problem& p, const Forward& w, const Region& r, long t, real* a, real* const* v, Meet meet) {
  for (int k = 0; k < STAGES; k++) {
    if (IDENTITY[k]) {
      w.recurrent[k].multiply(p.before(0, t, r.row0), p.apart(t) * p.H, r.rows(), a, p.ld, t % 2);
      continue;
    }
    elements(p, r, [&](long row, long block, auto n) {
      stage(k, p, t, row, block, n, a + (row - r.row0) * p.ld, v[k] + (row - r.row0) * p.ldv + block * VL);
    });
    meet();
    w.recurrent[k].multiply(v[k], p.ldv, r.rows(), a, p.ld, t % 2);
  }
}

void run_forward(const Problem& p, const XLA_FFI_CallFrame* frame) {
  // A few rows read all of the weights, so where `a` is kept the inputs of several steps are projected at once.
  long ahead = p.a && p.columns ? std::max(1L, PART_ROWS / p.B) : 1;
  auto loop = [&p, ahead](const Region& r, const Forward& w, real* a, real* const* v, auto meet) {
    for (long t = 0; t < p.T; t++) {
      real* now = p.a ? p.a + (t * p.B + r.row0) * p.ld : a;
      if (t % ahead == 0) project(p, w, r, t, std::min(ahead, p.T - t), now);
      recur(p, w, r, t, now, v, meet);
      elements(p, r, [&](long row, long block, auto n) {
        gates(p, t, row, block, n, now + (row - r.row0) * p.ld);
      });
      meet();
    }
  };
  if (p.columns) {
    Memory a(p.a ? 0 : p.B * p.ld), vs(STAGES * p.B * p.ldv);
    real* v[STAGES];
    for (int k = 0; k < STAGES; k++) v[k] = vs + k * p.B * p.ldv;
    Team::together(frame, p.blocks, p.patience(), [&](int member, int members, auto meet) {
      Region r{0, p.B, p.blocks * member / members, p.blocks * (member + 1) / members};
      loop(r, Forward(p, r), a, v, meet);
    });
  } else {
    Forward w(p, everything(p));
    Team::each(frame, p.parts(), [&](int part) {
      Region r = p.part<Region>(part);
      Memory a(r.rows() * p.ld), vs(STAGES * r.rows() * p.ldv);
      real* v[STAGES];
      for (int k = 0; k < STAGES; k++) v[k] = vs + k * r.rows() * p.ldv;
      loop(r, w, a, v, [] {});
    });
  }
}

// The gradients of everything that all rows share, for the columns of a region.
struct Sums {
  std::unique_ptr<Gradient> dense, recurrent[STAGES];
  Memory shared;  // of the Const inputs without a batch axis: [SHARED, blocks * VL]
  Sums(const Problem& p, const Region& r) : shared(SHARED * p.blocks * VL) {
    if (DENSE) dense = std::make_unique<Gradient>(p.D, slot_vectors(p, r, DENSE_SLOTS), true);
    for (int k = 0; k < STAGES; k++)
      recurrent[k] = std::make_unique<Gradient>(p.H, slot_vectors(p, r, WEIGHT_SLOTS[k]), false);
    std::fill_n(static_cast<real*>(shared), SHARED * p.blocks * VL, real(0));
  }
  void write(const Problem& p, const Region& r) const {
    if (DENSE) dense->write(p.dw_x, static_cast<long>(DENSE_SLOTS.size()) * p.H, p.db);
    for (int k = 0; k < STAGES; k++)
      recurrent[k]->write(p.dw[k], static_cast<long>(WEIGHT_SLOTS[k].size()) * p.H, nullptr);
    for (int i = 0; i < SHARED; i++)
      for (long b = r.block0; b < r.block1; b++) {
        real* to = p.d_other[SHARED_PLACE[i].other] + SHARED_PLACE[i].slot * p.H + b * VL;
        store(to, load(to, p.valid(b)) + load(shared + (i * p.blocks + b) * VL), p.valid(b));
      }
  }
};

// The transposed weights: from gradients of `a` to those of v, for the units of a region, and to those of x.
struct Backward {
  Panels recurrent[STAGES], dense;
  long features = 0, feature0 = 0;
  Backward(const Problem& p, const Region& r, int member, int members) {
    Region all = everything(p);
    for (int k = 0; k < STAGES; k++)
      recurrent[k].pack_transposed(p.w[k], static_cast<long>(WEIGHT_SLOTS[k].size()) * p.H, unit_vectors(p, r),
                                   slot_vectors(p, all, WEIGHT_SLOTS[k]));
    if (DENSE && p.dx) {
      long blocks = (p.D + VL - 1) / VL, first = blocks * member / members, last = blocks * (member + 1) / members;
      std::vector<Vector> out;
      for (long b = first; b < last; b++)
        out.push_back({b * VL, static_cast<int>(std::min<long>(VL, p.D - b * VL)), (b - first) * VL});
      feature0 = first * VL;
      features = std::min(p.D, last * VL) - feature0;
      dense.pack_transposed(p.w_x, static_cast<long>(DENSE_SLOTS.size()) * p.H, out, slot_vectors(p, all, DENSE_SLOTS));
    }
  }
  // dx_t = da @ w_x^T on the features of this member.
  void features_of(const Problem& p, const Region& r, long t, const real* da, real* scratch) const {
    if (features <= 0) return;
    long ld = (features + VL - 1) / VL * VL;
    std::fill_n(scratch, r.rows() * ld, real(0));
    dense.multiply(da, p.ld, r.rows(), scratch, ld);
    for (long row = 0; row < r.rows(); row++)
      std::memcpy(p.dx + p.place(t, r.row0 + row) * p.D + feature0, scratch + row * ld, features * sizeof(real));
  }
};

struct Workspace {  // of a region in rows, or of all threads together
  long chunk;
  Memory a, da, d, dv, v;
  Workspace(const Problem& p, const Region& r)
      : chunk(std::min(p.T, std::max(2L, CHUNK_ROWS / r.rows()))),
        a(p.a ? 0 : r.rows() * p.ld),
        da(chunk * r.rows() * p.ld),
        d(CARRY_SLOTS * r.rows() * p.ldv),
        dv(r.rows() * p.ldv),
        v(STAGES * chunk * r.rows() * p.ldv) {}
};

template <class Meet>
void backward_loop(const Problem& p, const Region& r, const Forward* w, const Backward& b, const Workspace& m,
                   Sums& sums, Meet meet) {
  long rows = r.rows();
  Memory scratch(std::max(m.chunk * rows * PANEL, rows * (b.features + VL)));
  real* d[CARRIES];
  for (int c = 0, slot = 0; c < CARRIES; slot += CARRY_WIDTH[c++]) d[c] = m.d + slot * rows * p.ldv;
  elements(p, r, [&](long row, long block, auto n) {
    for (int c = 0; c < CARRIES; c++)
      for (int s = 0; s < CARRY_WIDTH[c]; s++) {
        long i = row * CARRY_WIDTH[c] + s;
        store(d[c] + ((row - r.row0) * CARRY_WIDTH[c] + s) * p.ldv + block * VL,
              p.d_last[c] ? load(p.d_last[c] + i * p.H + block * VL, n) : vec{});
      }
  });
  std::vector<Rows> x, da, v[STAGES];
  for (long t = p.T - 1; t >= 0; t--) {
    long slot = t % m.chunk;
    real* vs[STAGES];
    for (int k = 0; k < STAGES; k++) vs[k] = m.v + (k * m.chunk + slot) * rows * p.ldv;
    const real* a = m.a;
    if (p.a) {
      a = p.a + (t * p.B + r.row0) * p.ld;
      for (int k = 0; k < STAGES; k++)
        if (!IDENTITY[k])
          elements(p, r, [&](long row, long block, auto n) {
            stage(k, p, t, row, block, n, a + (row - r.row0) * p.ld, vs[k] + (row - r.row0) * p.ldv + block * VL);
          });
    } else {
      project(p, *w, r, t, 1, m.a);
      recur(p, *w, r, t, m.a, vs, meet);
    }
    real* now = m.da + slot * rows * p.ld;
    elements(p, r, [&](long row, long block, auto n) {
      long i = row - r.row0;
      gates_transposed(p, t, row, block, n, a + i * p.ld, now + i * p.ld, d, i, sums.shared);
    });
    meet();
    for (int k = STAGES - 1; k >= 0; k--) {
      if (IDENTITY[k]) {
        b.recurrent[k].multiply(now, p.ld, rows, d[0], p.ldv, t % 2);
        continue;
      }
      for (long row = 0; row < rows; row++)
        for (long block = r.block0; block < r.block1; block++) store(m.dv + row * p.ldv + block * VL, vec{});
      b.recurrent[k].multiply(now, p.ld, rows, m.dv, p.ldv, t % 2);
      elements(p, r, [&](long row, long block, auto n) {
        long i = row - r.row0;
        stage_transposed(k, p, t, row, block, n, a + i * p.ld, now + i * p.ld, d, i, sums.shared,
                         m.dv + i * p.ldv + block * VL);
      });
      meet();
    }
    if (DENSE) b.features_of(p, r, t, now, scratch);
    x.push_back({p.input(t, r.row0), p.row * p.D});
    da.push_back({now, p.ld});
    for (int k = 0; k < STAGES; k++)
      v[k].push_back(IDENTITY[k] ? Rows{p.before(0, t, r.row0), p.apart(t) * p.H} : Rows{vs[k], p.ldv});
    if (slot == 0) {
      if (DENSE) sums.dense->add(x, da, rows, scratch);
      for (int k = 0; k < STAGES; k++) {
        sums.recurrent[k]->add(v[k], da, rows, scratch);
        v[k].clear();
      }
      x.clear();
      da.clear();
      meet();  // what the others still read here is written again in the next step
    }
  }
  elements(p, r, [&](long row, long block, auto n) {
    for (int c = 0; c < CARRIES; c++)
      for (int s = 0; s < CARRY_WIDTH[c]; s++)
        store(p.d_start[c] + (row * CARRY_WIDTH[c] + s) * p.H + block * VL,
              load(d[c] + ((row - r.row0) * CARRY_WIDTH[c] + s) * p.ldv + block * VL), n);
  });
}

void run_backward(const Problem& p, const XLA_FFI_CallFrame* frame) {
  auto zero = [](real* to, long count) {
    if (to) std::memset(to, 0, count * sizeof(real));
  };
  if (DENSE) {
    zero(p.dw_x, p.D * static_cast<long>(DENSE_SLOTS.size()) * p.H);
    zero(p.db, static_cast<long>(DENSE_SLOTS.size()) * p.H);
  }
  for (int k = 0; k < STAGES; k++) zero(p.dw[k], p.H * static_cast<long>(WEIGHT_SLOTS[k].size()) * p.H);
  for (int i = 0; i < OTHERS; i++) zero(p.d_other[i], p.d_other_count[i]);
  if (p.columns) {
    Workspace m(p, everything(p));
    Team::together(frame, p.blocks, p.patience(), [&](int member, int members, auto meet) {
      Region r{0, p.B, p.blocks * member / members, p.blocks * (member + 1) / members};
      Backward b(p, r, member, members);
      Sums sums(p, r);
      backward_loop(p, r, nullptr, b, m, sums, meet);
      sums.write(p, r);
    });
  } else {
    Region all = everything(p);
    Forward w(p, all);
    Backward b(p, all, 0, 1);
    std::vector<std::unique_ptr<Sums>> sums(p.parts());
    Team::each(frame, p.parts(), [&](int part) {
      Region r = p.part<Region>(part);
      sums[part] = std::make_unique<Sums>(p, all);
      backward_loop(p, r, &w, b, Workspace(p, r), *sums[part], [] {});
    });
    for (const auto& part : sums) part->write(p, all);  // in order, so that the result does not depend on the threads
  }
}

// ---- What XLA calls ----

class Reader {  // of the buffers of a call, in order
 public:
  explicit Reader(void** buffers) : buffers_(buffers) {}
  XLA_FFI_Buffer& next() { return *static_cast<XLA_FFI_Buffer*>(buffers_[i_++]); }
  template <class T = real>
  T* data() {  // or null, if the buffer has no elements
    XLA_FFI_Buffer& b = next();
    for (int64_t i = 0; i < b.rank; i++)
      if (b.dims[i] == 0) return nullptr;
    return static_cast<T*>(b.data);
  }

 private:
  void** buffers_;
  long i_ = 0;
};

// XLA takes fresh memory for every run of a program. In pages of 4 KiB, the first touch of it costs more than the
// arithmetic of a wide cell; in large pages a seventh of that.
void advise(const XLA_FFI_Buffer& b, long bytes) {
#ifdef __linux__
  constexpr uintptr_t LARGE = 2 << 20;
  auto begin = (reinterpret_cast<uintptr_t>(b.data) + LARGE - 1) / LARGE * LARGE;
  auto end = (reinterpret_cast<uintptr_t>(b.data) + bytes) / LARGE * LARGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

long count(const XLA_FFI_Buffer& b) {
  long n = 1;
  for (int64_t i = 0; i < b.rank; i++) n *= b.dims[i];
  return n;
}

XLA_FFI_Error* handle(XLA_FFI_CallFrame* frame, bool backward) {
  for (auto* e = frame->extension_start; e; e = e->next)
    if (e->type == XLA_FFI_Extension_Metadata) {
      auto& version = reinterpret_cast<XLA_FFI_Metadata_Extension*>(e)->metadata->api_version;
      version.major_version = XLA_FFI_API_MAJOR;
      version.minor_version = XLA_FFI_API_MINOR;
      return nullptr;
    }
  Problem p{};
  auto attribute = [frame](int i) { return *static_cast<bool*>(static_cast<XLA_FFI_Scalar*>(frame->attrs.attrs[i])->value); };
  bool batch_major = attribute(0);  // in alphabetical order
  p.columns = attribute(1);
  Reader args(frame->args.args), rets(frame->rets.rets);
  for (int c = 0; c < CARRIES; c++) p.start[c] = args.data();
  if (DENSE) {
    XLA_FFI_Buffer& x = args.next();
    p.x = static_cast<real*>(x.data);
    p.D = x.dims[x.rank - 1];
    p.w_x = args.data();
    p.b = args.data();
  }
  for (int k = 0; k < STAGES; k++) p.w[k] = args.data();
  for (int i = 0; i < OTHERS; i++) {
    XLA_FFI_Buffer& other = args.next();
    p.other[i] = other.data;
    p.d_other_count[i] = count(other);
  }
  for (int64_t i = 0; i < frame->rets.size; i++) {
    auto& result = *static_cast<XLA_FFI_Buffer*>(frame->rets.rets[i]);
    advise(result, count(result) * static_cast<long>(sizeof(real)));
  }
  Reader& carries = backward ? args : rets;
  for (int c = 0; c < CARRIES; c++) {
    XLA_FFI_Buffer& carry = carries.next();
    p.carry[c] = static_cast<real*>(carry.data);
    p.T = carry.dims[batch_major ? carry.rank - 2 : 0];
    if (c > 0) continue;
    p.H = carry.dims[carry.rank - 1];
    p.B = count(carry) / std::max(1L, p.T * p.H);
  }
  p.step = batch_major ? 1 : p.B;
  p.row = batch_major ? p.T : 1;
  p.a = carries.data();
  p.blocks = (p.H + VL - 1) / VL;
  // One line more than needed: rows at a power of two from each other would fall into the same lines of the cache.
  p.ld = p.blocks * SLOTS * VL + VL;
  p.ldv = p.blocks * VL + VL;
  if (p.T * p.B * p.H == 0) {  // no steps: all results are sums over none
    for (int64_t i = 0; i < frame->rets.size; i++) {
      auto& result = *static_cast<XLA_FFI_Buffer*>(frame->rets.rets[i]);
      if (long n = count(result)) std::memset(result.data, 0, n * sizeof(real));
    }
    return nullptr;
  }
  if (backward) {
    for (int c = 0; c < CARRIES; c++) p.d_last[c] = args.data();
    for (int c = 0; c < CARRIES; c++) p.d_carry[c] = args.data();
    for (int c = 0; c < CARRIES; c++) p.d_start[c] = rets.data();
    if (DENSE) {
      p.dx = rets.data();
      p.dw_x = rets.data();
      p.db = rets.data();
    }
    for (int k = 0; k < STAGES; k++) p.dw[k] = rets.data();
    for (int i = 0; i < OTHERS; i++) p.d_other[i] = rets.data();
    run_backward(p, frame);
  } else {
    run_forward(p, frame);
  }
  return nullptr;
}

}  // namespace

extern "C" XLA_FFI_Error* seqjax_forward(XLA_FFI_CallFrame* frame) { return handle(frame, false); }
extern "C" XLA_FFI_Error* seqjax_backward(XLA_FFI_CallFrame* frame) { return handle(frame, true); }
