// Vectors of VL numbers, and the elementwise functions that the generated code calls. `real` is defined before.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace {

constexpr int VL = 16;
typedef real vec __attribute__((vector_size(VL * sizeof(real))));
typedef std::conditional_t<sizeof(real) == 4, int32_t, int64_t> integer;
typedef integer ivec __attribute__((vector_size(VL * sizeof(real))));

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
inline vec splat(real x) { return x - vec{}; }  // x + 0 would make 0 of -0

inline ivec bits(vec x) {
  ivec n;
  std::memcpy(&n, &x, sizeof n);
  return n;
}
inline vec of_bits(ivec n) {
  vec x;
  std::memcpy(&x, &n, sizeof x);
  return x;
}

template <class F>
inline vec each(F f, vec x) {
  for (int i = 0; i < VL; i++) x[i] = f(x[i]);
  return x;
}

// 2^n for small n, float32.
inline vec power_of_2(ivec n) { return of_bits((n + 127) << (sizeof(real) == 4 ? 23 : 0)); }

inline vec exp_(vec x) {
  if constexpr (sizeof(real) == 8) {
    return each([](real v) { return std::exp(v); }, x);
  } else {
    // 2^n e^r with r = x - n ln 2, |r| <= ln 2 / 2; Cody & Waite 1980. Of 2^n, half is multiplied at
    // a time, since 2^128 is no number. Where the result is no normal number it is 0, as in XLA.
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
    ivec integral = __builtin_convertvector(n, ivec), half = integral >> 1;
    y = y * power_of_2(half) * power_of_2(integral - half);
    y = x < real(-87.336544) ? vec{} : y;
    y = x > real(89) ? splat(real(INFINITY)) : y;
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
    vec y = ((x < real(0.625)) & (x > real(-0.625))) ? small : large;
    return x == real(0) ? x : y;  // the polynomial makes 0 of -0
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
inline vec abs_(vec x) { return of_bits(bits(x) & std::numeric_limits<integer>::max()); }
inline vec sign_(vec x) { return x > real(0) ? splat(1) : (x < real(0) ? splat(-1) : x); }
// Equal numbers have equal bits, except that -0 < 0 here.
inline vec max_(vec x, vec y) { return x == y ? of_bits(bits(x) & bits(y)) : ((x > y) | (x != x)) ? x : y; }
inline vec min_(vec x, vec y) { return x == y ? of_bits(bits(x) | bits(y)) : ((x < y) | (x != x)) ? x : y; }
inline vec pick(bool c, vec on, vec off) { return c ? on : off; }
inline vec pick(ivec c, vec on, vec off) { return c ? on : off; }

}  // namespace
