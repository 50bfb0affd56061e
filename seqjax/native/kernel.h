// A gated recurrence over all steps, forward and backward, for the CPU.
//
// What a cell is made of comes from the generated code that includes this file (emit.py): the numbers below, and the
// elementwise functions `stage`, `gates` and their transposes. Here is everything else: matrix products, the loops over
// time, threads, and the entry points that XLA calls.
//
//   SLOTS        rows of the pre-activation `a`, each H wide; a product adds to some of them
//   CARRIES      leaves of the carry, all [B, H]
//   STAGES       recurrent products, v_k @ W_k
//   DENSE        whether the input is projected here, a += x @ w_x + b
//   OTHERS       further inputs of the elementwise functions: masks, inner biases, dropout, ...
//
// Units are cut into blocks of VL. A row of `a` is [block][slot][VL], so that what belongs to one block of units lies
// together: a thread can own a range of blocks, and the elementwise functions read and write whole vectors.
//
// Two partitions of the work. Where the weights are small, every thread takes rows of the batch through all steps,
// alone, and `a` is computed again in the backward pass. Where they are large, every thread takes a range of blocks, so
// that each weight is read by one core only; the threads then meet once or twice a step, and `a` is kept.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/c_api.h"

namespace {

constexpr int VL = 16;
typedef real vec __attribute__((vector_size(VL * sizeof(real))));
typedef std::conditional_t<sizeof(real) == 4, int32_t, int64_t> integer;
typedef integer ivec __attribute__((vector_size(VL * sizeof(real))));

// A tile of R rows and N vectors is summed up in registers.
#ifdef __AVX512F__
constexpr int TILE_ROWS = 12, TILE_VECTORS = sizeof(real) == 4 ? 2 : 1;
#else
constexpr int TILE_ROWS = 6, TILE_VECTORS = 1;
#endif
constexpr int PANEL = TILE_VECTORS * VL;
constexpr long PART_ROWS = 32;             // of the batch, that a thread takes through all steps
constexpr long DEPTH = 192;               // of a sum that is taken at once
constexpr size_t UNUSED = 128 << 20;        // bytes of working memory that outlive a call
constexpr long CHUNK_ROWS = 320;           // rows of a product of the weight gradient

inline vec load(const real* p) {
  vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline void store(real* p, vec x) { std::memcpy(p, &x, sizeof x); }
inline vec load(const real* p, int n) {
  if (n == VL) return load(p);
  vec x{};
  for (int i = 0; i < n; i++) x[i] = p[i];
  return x;
}
inline void store(real* p, vec x, int n) {
  if (n == VL) return store(p, x);
  for (int i = 0; i < n; i++) p[i] = x[i];
}
inline vec splat(real x) { return vec{} + x; }

// Memory that outlives a call, since fresh pages cost more than the arithmetic on them.
class Memory {
 public:
  explicit Memory(long count) {
    size_t bytes = (std::max(count, 1L) * sizeof(real) + 4095) / 4096 * 4096;
    std::lock_guard<std::mutex> lock(mutex());
    auto& blocks = unused();
    auto best = blocks.end();
    for (auto it = blocks.begin(); it != blocks.end(); ++it)
      if (it->bytes >= bytes && it->bytes <= 2 * bytes && (best == blocks.end() || it->bytes < best->bytes)) best = it;
    if (best != blocks.end()) {
      block_ = *best;
      blocks.erase(best);
    } else {
      block_ = {static_cast<real*>(std::aligned_alloc(4096, bytes)), bytes};
    }
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    std::lock_guard<std::mutex> lock(mutex());
    auto& blocks = unused();
    blocks.push_back(block_);
    size_t total = 0;
    for (const Block& block : blocks) total += block.bytes;
    while (total > UNUSED) {
      total -= blocks.front().bytes;
      std::free(blocks.front().data);
      blocks.erase(blocks.begin());
    }
  }
  operator real*() const { return block_.data; }

 private:
  struct Block {
    real* data;
    size_t bytes;
  };
  static std::mutex& mutex() {
    static auto* m = new std::mutex;
    return *m;
  }
  static std::vector<Block>& unused() {
    static auto* blocks = new std::vector<Block>;
    return *blocks;
  }
  Block block_;
};

// ---- Elementwise functions that the generated code calls ----

template <class F>
inline vec each(F f, vec x) {
  for (int i = 0; i < VL; i++) x[i] = f(x[i]);
  return x;
}

inline vec exp_(vec x) {
  if constexpr (sizeof(real) == 8) {
    return each([](real v) { return std::exp(v); }, x);
  } else {
    // 2^n e^r with r = x - n ln 2, |r| <= ln 2 / 2; Cody & Waite 1980. Below -87.3 it is 0, above 88.7 infinite.
    vec n = x * real(1.44269504088896341);
    const vec magic = splat(12582912);  // 1.5 * 2^23: adding it rounds to an integer
    n = (n + magic) - magic;
    vec r = x - n * real(0.693359375) + n * real(2.12194440e-4);
    vec p = splat(1.9875691500e-4);
    p = p * r + real(1.3981999507e-3);
    p = p * r + real(8.3334519073e-3);
    p = p * r + real(4.1665795894e-2);
    p = p * r + real(1.6666665459e-1);
    p = p * r + real(5.0000001201e-1);
    vec y = p * r * r + r + real(1);
    ivec scale = (__builtin_convertvector(n, ivec) + 127) << (sizeof(real) == 4 ? 23 : 0);
    vec two_n;
    std::memcpy(&two_n, &scale, sizeof two_n);
    y = y * two_n;
    y = x < real(-87.3) ? vec{} : y;
    y = x > real(88.3) ? splat(real(INFINITY)) : y;
    return x != x ? x : y;
  }
}
inline vec logistic_(vec x) { return real(1) / (real(1) + exp_(-x)); }
inline vec tanh_(vec x) {
  if constexpr (sizeof(real) == 8) {
    return each([](real v) { return std::tanh(v); }, x);
  } else {
    // Near 0 an odd polynomial, since 1 - 2 / (e^2x + 1) cancels there; Cephes' coefficients.
    vec s = x * x;
    vec p = splat(-5.70498872745e-3);
    p = p * s + real(2.06390887954e-2);
    p = p * s + real(-5.37397155531e-2);
    p = p * s + real(1.33314422036e-1);
    p = p * s + real(-3.33332819422e-1);
    vec small = p * s * x + x;
    vec large = real(1) - real(2) / (exp_(x + x) + real(1));
    return ((x < real(0.625)) & (x > real(-0.625))) ? small : large;
  }
}
inline vec log_(vec x) { return each([](real v) { return std::log(v); }, x); }
inline vec log1p_(vec x) { return each([](real v) { return std::log1p(v); }, x); }
inline vec expm1_(vec x) { return each([](real v) { return std::expm1(v); }, x); }
inline vec sqrt_(vec x) { return each([](real v) { return std::sqrt(v); }, x); }
inline vec rsqrt_(vec x) { return real(1) / sqrt_(x); }
inline vec erf_(vec x) { return each([](real v) { return std::erf(v); }, x); }
inline vec erfc_(vec x) { return each([](real v) { return std::erfc(v); }, x); }
inline vec sin_(vec x) { return each([](real v) { return std::sin(v); }, x); }
inline vec cos_(vec x) { return each([](real v) { return std::cos(v); }, x); }
inline vec abs_(vec x) { return x < real(0) ? -x : x; }
inline vec sign_(vec x) { return x > real(0) ? splat(1) : (x < real(0) ? splat(-1) : x); }
inline vec max_(vec x, vec y) { return ((x > y) | (x != x)) ? x : y; }
inline vec min_(vec x, vec y) { return ((x < y) | (x != x)) ? x : y; }
inline vec pick(bool c, vec on, vec off) { return c ? on : off; }
inline vec pick(ivec c, vec on, vec off) { return c ? on : off; }

// ---- Matrix products ----

struct Span {  // columns of the left factor that follow each other
  long offset, count;
};

// C[r, dst] += A[r, :] B for R rows; B is a packed panel [K, N * VL].
template <int R, int N>
void tile(const real* A, long lda, const std::vector<Span>& spans, const real* B, real* C, long ldc, const long* dst) {
  constexpr int U = R * N >= 8 ? 1 : 8 / (R * N);  // few rows: several sums side by side, to hide the latency
  vec sum[U][R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) {
      sum[0][r][n] = load(C + r * ldc + dst[n]);
      for (int u = 1; u < U; u++) sum[u][r][n] = vec{};
    }
  for (const Span& span : spans) {
    const real* a = A + span.offset;
    long k = 0;
    if constexpr (U > 1) {
      for (; k + U <= span.count; k += U, B += U * N * VL)
#pragma GCC unroll 8
        for (int u = 0; u < U; u++)
#pragma GCC unroll 12
          for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int n = 0; n < N; n++) sum[u][r][n] += a[r * lda + k + u] * load(B + (u * N + n) * VL);
    }
    for (; k < span.count; k++, B += N * VL) {
      vec b[N];
      for (int n = 0; n < N; n++) b[n] = load(B + n * VL);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) sum[0][r][n] += a[r * lda + k] * b[n];
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) {
      vec total = sum[0][r][n];
      for (int u = 1; u < U; u++) total += sum[u][r][n];
      store(C + r * ldc + dst[n], total);
    }
}

struct Rows {  // the rows of a matrix at one step
  const real* data;
  long stride;
};

// C[r, :] += sum_i A[i, k + r] B[i, :] over the rows of all steps, for R columns of A; B is a packed panel [., N * VL].
template <int R, int N>
void transposed_tile(const std::vector<Rows>& as, long rows, long k, const real* B, real* C, long ldc, const long* dst) {
  vec sum[R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) sum[r][n] = load(C + r * ldc + dst[n]);
  for (const Rows& step : as) {
    const real* A = step.data + k;
    for (long i = 0; i < rows; i++, A += step.stride, B += N * VL) {
      vec b[N];
      for (int n = 0; n < N; n++) b[n] = load(B + n * VL);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) sum[r][n] += A[r] * b[n];
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(C + r * ldc + dst[n], sum[r][n]);
}

// Calls f<R, N>(first row) for tiles that cover `rows` rows, as even as can be.
template <int N, template <int, int> class F, int R = TILE_ROWS, class... Args>
inline void one_tile(int r, Args&&... args) {
  if constexpr (R > 0) {
    if (r == R)
      F<R, N>::run(std::forward<Args>(args)...);
    else
      one_tile<N, F, R - 1>(r, std::forward<Args>(args)...);
  }
}
template <int R, int N>
struct Tile {
  template <class... Args>
  static void run(Args&&... args) {
    tile<R, N>(std::forward<Args>(args)...);
  }
};
template <int R, int N>
struct TransposedTile {
  template <class... Args>
  static void run(Args&&... args) {
    transposed_tile<R, N>(std::forward<Args>(args)...);
  }
};
template <class F>
inline void cut(long rows, F f) {
  long tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, row = 0;
  for (long i = 0; i < tiles; i++) {
    int r = static_cast<int>((rows - row + tiles - i - 1) / (tiles - i));
    f(row, r);
    row += r;
  }
}

struct Vector {    // VL columns of a matrix
  long column;     // the first of them, in the row-major weights
  int count;       // fewer than VL at the end of the units
  long place;      // where they stand in a row of the packed side
};

// A matrix in packed panels, so that a product reads it from start to end.
class Panels {
 public:
  // The columns `vectors` of w [K, N].
  void pack(const real* w, long K, long N, const std::vector<Vector>& vectors) {
    reserve(K, vectors);
    for (long k0 = 0; k0 < K; k0 += 16)
      for (size_t v = 0; v < vectors.size(); v++) {
        real* to = at(v);
        for (long k = k0; k < std::min(K, k0 + 16); k++)
          store(to + k * width(v), load(w + k * N + vectors[v].column, vectors[v].count));
      }
    cut_depth({{0, K}});
  }
  // The rows `out` of w [., N], as columns; the sum runs over the columns `over` of w.
  void pack_transposed(const real* w, long N, const std::vector<Vector>& out, const std::vector<Vector>& over) {
    long K = 0;
    std::vector<Span> spans;
    for (const Vector& v : over) {
      if (!spans.empty() && spans.back().offset + spans.back().count == v.place)
        spans.back().count += v.count;
      else
        spans.push_back({v.place, v.count});
      K += v.count;
    }
    reserve(K, out);
    cut_depth(spans);
    for (size_t v = 0; v < out.size(); v++) {
      real* to = at(v);
      long k = 0;
      for (const Vector& o : over) {
        for (int j = 0; j < VL; j++)
          for (int i = 0; i < o.count; i++)
            to[(k + i) * width(v) + j] = j < out[v].count ? w[(out[v].column + j) * N + o.column + i] : 0;
        k += o.count;
      }
    }
  }
  // C[rows, places] += A[rows, spans] times the matrix.
  void multiply(const real* A, long lda, long rows, real* C, long ldc) const {
    for (size_t v = 0; v < places_.size(); v += TILE_VECTORS) {
      const real* panel = *memory_ + K_ * v * VL;
      for (const Depth& depth : depths_) {
        cut(rows, [&](long row, int r) {
          const real* a = A + row * lda;
          real* c = C + row * ldc;
          if (v + TILE_VECTORS <= places_.size())
            one_tile<TILE_VECTORS, Tile>(r, a, lda, depth.spans, panel, c, ldc, &places_[v]);
          else
            one_tile<1, Tile>(r, a, lda, depth.spans, panel, c, ldc, &places_[v]);
        });
        panel += depth.count * width(v);
      }
    }
  }

 private:
  void reserve(long K, const std::vector<Vector>& vectors) {
    K_ = K;
    places_.clear();
    for (const Vector& v : vectors) places_.push_back(v.place);
    memory_ = std::make_unique<Memory>(K * static_cast<long>(vectors.size()) * VL);
  }
  long width(size_t v) const { return v / TILE_VECTORS * TILE_VECTORS + TILE_VECTORS <= places_.size() ? PANEL : VL; }
  real* at(size_t v) const {
    size_t first = v / TILE_VECTORS * TILE_VECTORS;
    return *memory_ + K_ * first * VL + (v - first) * VL;
  }
  // Cut the sum so that the part of a panel that all tiles of rows read stays in the cache nearest to the core.
  void cut_depth(const std::vector<Span>& spans) {
    depths_.clear();
    for (Span span : spans)
      while (span.count > 0) {
        if (depths_.empty() || depths_.back().count >= DEPTH) depths_.push_back({});
        Depth& last = depths_.back();
        long n = std::min(span.count, DEPTH - last.count);
        last.spans.push_back({span.offset, n});
        last.count += n;
        span.offset += n;
        span.count -= n;
      }
  }
  struct Depth {
    std::vector<Span> spans;
    long count = 0;
  };
  long K_ = 0;
  std::vector<long> places_;
  std::vector<Depth> depths_;
  std::unique_ptr<Memory> memory_;
};

// The gradient of weights [K, N] for some of their columns: the sum over steps and rows of a^T da.
class Gradient {
 public:
  Gradient(long K, const std::vector<Vector>& vectors, bool bias)
      : K_(K), vectors_(vectors), width_(static_cast<long>(vectors.size()) * VL), sum_((K + bias) * width_) {
    std::fill_n(static_cast<real*>(sum_), (K + bias) * width_, real(0));
    bias_ = bias ? sum_ + K * width_ : nullptr;
  }
  // as[i] are the left factors of a step, das[i] the rows of `a` gradients; `scratch` holds a packed panel.
  void add(const std::vector<Rows>& as, const std::vector<Rows>& das, long rows, real* scratch) {
    long steps = static_cast<long>(as.size());
    for (size_t v = 0; v < vectors_.size(); v += TILE_VECTORS) {
      int n = static_cast<int>(std::min<size_t>(TILE_VECTORS, vectors_.size() - v));
      real* to = scratch;
      vec total[TILE_VECTORS] = {};
      for (long s = 0; s < steps; s++)
        for (long row = 0; row < rows; row++, to += n * VL)
          for (int i = 0; i < n; i++) {
            vec x = load(das[s].data + row * das[s].stride + vectors_[v + i].place);
            total[i] += x;
            store(to + i * VL, x);
          }
      long places[TILE_VECTORS];
      for (int i = 0; i < n; i++) {
        places[i] = static_cast<long>(v + i) * VL;
        if (bias_) store(bias_ + places[i], load(bias_ + places[i]) + total[i]);
      }
      cut(K_, [&](long k, int r) {
        real* c = sum_ + k * width_;
        if (n == TILE_VECTORS)
          one_tile<TILE_VECTORS, TransposedTile>(r, as, rows, k, scratch, c, width_, places);
        else
          one_tile<1, TransposedTile>(r, as, rows, k, scratch, c, width_, places);
      });
    }
  }
  // out [K, N] += this, and the bias.
  void write(real* out, long N, real* bias) const {
    for (long k = 0; k < K_ + (bias_ != nullptr); k++)
      for (size_t v = 0; v < vectors_.size(); v++) {
        real* to = (k < K_ ? out + k * N : bias) + vectors_[v].column;
        store(to, load(to, vectors_[v].count) + load(sum_ + k * width_ + v * VL), vectors_[v].count);
      }
  }

 private:
  long K_;
  std::vector<Vector> vectors_;
  long width_;
  Memory sum_;
  real* bias_;
};

// ---- Threads: those of XLA's pool ----

class Team {
 public:
  // f(part) for every part, on as many threads as are free.
  static void each(const XLA_FFI_CallFrame* frame, int parts, std::function<void(int)> f) {
    auto work = std::make_shared<Parts>();
    work->parts = parts;
    work->f = std::move(f);
    int threads = std::min(parts, size(frame));
    for (int i = 1; i < threads; i++) schedule(frame, [work] { work->run(); });
    work->run();
    for (int spin = 0; work->done.load(std::memory_order_acquire) < parts; spin++) pause(spin);
  }
  // f(member, members, meet) on up to `wanted` threads at once; meet() waits for all of them.
  template <class F>
  static void together(const XLA_FFI_CallFrame* frame, int wanted, F f) {
    auto work = std::make_shared<Meeting>();
    wanted = std::min(wanted, size(frame));
    auto body = [work, f](int member, int members) { f(member, members, [&] { work->meet(members); }); };
    work->f = body;
    for (int i = 1; i < wanted; i++) schedule(frame, [work] { work->join(); });
    // Whoever has not come by now is busy elsewhere: the door closes, and the work is cut among those present.
    auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
    while (work->present.load() < wanted && std::chrono::steady_clock::now() < until) pause(0);
    int members = work->present.exchange(CLOSED);
    work->members.store(members, std::memory_order_release);
    body(0, members);
    for (int spin = 0; work->left.load(std::memory_order_acquire) < members - 1; spin++) pause(spin);
    work->f = nullptr;
  }

 private:
  static constexpr int CLOSED = -1;
  struct Parts {
    std::atomic<int> next{0}, done{0};
    int parts;
    std::function<void(int)> f;
    void run() {
      for (int part; (part = next.fetch_add(1)) < parts;) {
        f(part);
        done.fetch_add(1, std::memory_order_release);
      }
    }
  };
  struct Meeting {
    std::atomic<int> present{1}, members{0}, left{0}, arrived{0}, round{0};
    std::function<void(int, int)> f;
    void join() {
      int seen = present.load();
      do {
        if (seen == CLOSED) return;
      } while (!present.compare_exchange_weak(seen, seen + 1));
      for (int spin = 0; members.load(std::memory_order_acquire) == 0; spin++) pause(spin);
      f(seen, members.load());
      left.fetch_add(1, std::memory_order_release);
    }
    void meet(int of) {
      int now = round.load(std::memory_order_relaxed);
      if (arrived.fetch_add(1, std::memory_order_acq_rel) == of - 1) {
        arrived.store(0, std::memory_order_relaxed);
        round.store(now + 1, std::memory_order_release);
      } else {
        for (int spin = 0; round.load(std::memory_order_acquire) == now; spin++) pause(spin);
      }
    }
  };
  static void pause(int spin) {
    if (spin < 4096) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }
  static int size(const XLA_FFI_CallFrame* frame) {
    int64_t threads = 1;
    XLA_FFI_ThreadPool_NumThreads_Args args{XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, nullptr, frame->ctx, &threads};
    if (ignore(frame, frame->api->XLA_FFI_ThreadPool_NumThreads(&args))) return 1;
    return static_cast<int>(std::max<int64_t>(threads, 1));
  }
  static void schedule(const XLA_FFI_CallFrame* frame, std::function<void()> task) {
    auto* data = new std::function<void()>(std::move(task));
    XLA_FFI_ThreadPool_Schedule_Args args{XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, nullptr, frame->ctx,
                                          [](void* data) {
                                            std::unique_ptr<std::function<void()>> task(
                                                static_cast<std::function<void()>*>(data));
                                            (*task)();
                                          },
                                          data};
    if (ignore(frame, frame->api->XLA_FFI_ThreadPool_Schedule(&args))) delete data;
  }
  static bool ignore(const XLA_FFI_CallFrame* frame, XLA_FFI_Error* error) {
    if (!error) return false;
    XLA_FFI_Error_Destroy_Args args{XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
    frame->api->XLA_FFI_Error_Destroy(&args);
    return true;
  }
};

// ---- The arguments of a call ----

struct Problem {
  long T, B, D, H, blocks, ld, ldv;  // ld: from one row of `a` to the next; ldv: of a carry's gradient
  bool columns;                      // the partition: blocks of units, or rows
  const real *x, *w_x, *b, *w[STAGES], *start[CARRIES];
  const void* other[OTHERS + 1];
  real *carry[CARRIES], *a;  // [T, B, .]; `a` is null if it is not kept
  const real *d_last[CARRIES], *d_carry[CARRIES];
  real *d_start[CARRIES], *dx, *dw_x, *db, *dw[STAGES], *d_other[OTHERS + 1];
  long d_other_count[OTHERS + 1];

  int valid(long block) const { return static_cast<int>(std::min<long>(VL, H - block * VL)); }
  // The leaf c of the carry before step t, [B, .].
  const real* before(int c, long t) const {
    return t ? carry[c] + (t - 1) * B * CARRY_WIDTH[c] * H : start[c];
  }
  // An even number of parts of the batch, each of about PART_ROWS rows.
  int parts() const {
    long n = (B + PART_ROWS - 1) / PART_ROWS;
    n += n % 2;
    return static_cast<int>(std::max(1L, std::min(n, B / 4)));
  }
  template <class Region>
  Region part(int i) const {
    return {B * i / parts(), B * (i + 1) / parts(), 0, blocks};
  }
};

}  // namespace
