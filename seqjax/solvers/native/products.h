// Matrix products whose weights are packed once and used at every step, and the memory that they work in.

#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "vectors.h"

namespace {

// A tile of R rows and N vectors is summed up in registers.
#ifdef __AVX512F__
constexpr int TILE_ROWS = 12, TILE_VECTORS = sizeof(real) == 4 ? 2 : 1;
#else
constexpr int TILE_ROWS = 6, TILE_VECTORS = 1;
#endif
constexpr int PANEL = TILE_VECTORS * VL;
constexpr long DEPTH = 192;           // of a sum that is taken at once
#ifdef __SANITIZE_ADDRESS__
constexpr size_t PAGE = 64, UNUSED = 0;  // the sanitizer sees the end of a block, and a block only while it is in use
#else
constexpr size_t PAGE = 4096, UNUSED = 128 << 20;  // bytes of working memory that outlive a call
#endif

// Memory that outlives a call, since fresh pages cost more than the arithmetic on them.
class Memory {
 public:
  explicit Memory(long count) {
    size_t bytes = (std::max(count, 1L) * sizeof(real) + PAGE - 1) / PAGE * PAGE;
    std::lock_guard<std::mutex> lock(mutex());
    auto& blocks = unused();
    auto best = blocks.end();
    for (auto it = blocks.begin(); it != blocks.end(); ++it)
      if (it->bytes >= bytes && it->bytes <= 2 * bytes && (best == blocks.end() || it->bytes < best->bytes)) best = it;
    if (best != blocks.end()) {
      block_ = *best;
      blocks.erase(best);
    } else {
      block_ = {static_cast<real*>(std::aligned_alloc(PAGE, bytes)), bytes};
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

struct Span {  // columns of the left factor that follow each other
  long offset, count;
};

// C[r, dst] += A[r, :] B for R rows; B is a packed panel [K, N * VL].
template <int R, int N>
void tile(const real* A, long lda, const std::vector<Span>& spans, const real* B, real* C, long ldc, const long* dst) {
  // Few rows: several sums side by side, to hide the latency. Not by N, which depends on how many threads are free.
  constexpr int U = R * TILE_VECTORS >= 8 ? 1 : 8 / (R * TILE_VECTORS);
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
  // C[rows, places] += A[rows, spans] times the matrix. `turned`: from the last panel to the first. Alternating
  // the direction from step to step finds the last panels still in the nearer cache, if not all of them fit there.
  void multiply(const real* A, long lda, long rows, real* C, long ldc, bool turned = false) const {
    size_t panels = (places_.size() + TILE_VECTORS - 1) / TILE_VECTORS;
    for (size_t i = 0; i < panels; i++) {
      size_t v = (turned ? panels - 1 - i : i) * TILE_VECTORS;
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

}  // namespace
