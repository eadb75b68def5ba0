// Approximate instructions, executable at either end of the error that the PTX ISA documents for them.
#pragma once
#include "handlers.h"

// Bounds of the PTX ISA (9.x, "Floating-Point Instructions"): an error relative to the result, or absolute.
struct ErrorBound {
  f64 relative, absolute;
};

// The float32 furthest below or above the exact result that is still within the bound, or the nearest one.
inline f32 within(f64 exact, ErrorBound bound, u32 end) {
  if (end == NEAREST || !std::isfinite(exact) || exact == 0) return f32(exact);
  const f64 slack = std::fabs(exact) * bound.relative + bound.absolute;
  if (!std::isfinite(f32(exact))) return f32(exact);
  return end == LOW ? double_to_float(exact - slack, Rounding::up) : double_to_float(exact + slack, Rounding::down);
}

// Some units in the last place away from the exact result.
inline f32 units_away(f64 exact, int units, u32 end) {
  f32 result = f32(exact);
  if (end == NEAREST || !std::isfinite(result) || result == 0) return result;
  result = double_to_float(exact, end == LOW ? Rounding::up : Rounding::down);
  for (int i = 0; i < units; i++) {
    const f32 next = std::nextafter(result, end == LOW ? -INFINITY : INFINITY);
    if (!std::isfinite(next)) break;
    result = next;
  }
  return result;
}

// div.full and div.approx: 2 ulp. rcp: 1 ulp.
struct ApproximateDivide { f32 operator()(f64 a, f64 b, u32 end) const { return units_away(a / b, 2, end); } };
struct ApproximateReciprocal { f32 operator()(f64 a, u32 end) const { return units_away(1 / a, 1, end); } };
// sqrt: relative 2^-23. rsqrt: relative 2^-22.9. ex2: relative 2^-22.5, about 2 ulp.
struct ApproximateSqrt { f32 operator()(f64 a, u32 end) const { return within(std::sqrt(a), {0x1p-23, 0}, end); } };
struct ApproximateRsqrt {
  f32 operator()(f64 a, u32 end) const { return within(1 / std::sqrt(a), {1.0717734625362931e0 * 0x1p-23, 0}, end); }
};
struct ApproximateExp2 {
  f32 operator()(f64 a, u32 end) const { return within(std::exp2(a), {M_SQRT2 * 0x1p-23, 0}, end); }
};
// lg2: absolute 2^-22 on [0.5, 2], relative 2^-22 elsewhere.
struct ApproximateLog2 {
  f32 operator()(f64 a, u32 end) const {
    const bool near_one = a >= 0.5 && a <= 2;
    const f64 exact = std::log2(a);
    if (near_one && exact == 0) return 0;
    return within(exact, {near_one ? 0 : 0x1p-22, near_one ? 0x1p-22 : 0}, end);
  }
};
// sin and cos: absolute 2^-20.5 on [-pi, pi]. tanh: relative 2^-11.
struct ApproximateSin {
  f32 operator()(f64 a, u32 end) const { return within(std::sin(a), {0, M_SQRT1_2 * 0x1p-20}, end); }
};
struct ApproximateCos {
  f32 operator()(f64 a, u32 end) const { return within(std::cos(a), {0, M_SQRT1_2 * 0x1p-20}, end); }
};
struct ApproximateTanh { f32 operator()(f64 a, u32 end) const { return within(std::tanh(a), {0x1p-11, 0}, end); } };

template <class Format, class Operation>
void approximately(Warp &warp, const Instruction &it, u32 lanes) {
  const f32 *a = row<f32>(warp, it.first), *b = row<f32>(warp, it.second);
  f32 *target = row<f32>(warp, it.target);
  const u32 end = warp.launch.options.approximation;
  for (; lanes; lanes &= lanes - 1) {
    const u32 lane = u32(__builtin_ctz(lanes));
    if constexpr (std::is_invocable_v<Operation, f64, f64, u32>)
      target[lane] = Format::write(Operation()(Format::read(a[lane]), Format::read(b[lane]), end));
    else
      target[lane] = Format::write(Operation()(Format::read(a[lane]), end));
  }
}

// rcp.approx.ftz.f64 reads and writes the upper 32 bits of a double only.
inline void approximate_double_reciprocal(Warp &warp, const Instruction &it, u32 lanes) {
  const f64 *a = row<f64>(warp, it.first);
  assign(row<f64>(warp, it.target), lanes, [=](u32 lane) {
    const f64 seen = as_bits<f64>(as_bits<u64>(a[lane]) & ~0xffffffffull);
    return as_bits<f64>(as_bits<u64>(1 / seen) & ~0xffffffffull);
  });
}

#define APPROXIMATE(name, Operation)                        \
  {name ".f32", approximately<Plain<f32>, Operation>}, {    \
    name ".ftz.f32", approximately<FlushedFloat, Operation> \
  }

static const NamedHandler APPROXIMATE_HANDLERS[] = {
    APPROXIMATE("div.full", ApproximateDivide), APPROXIMATE("div.approx", ApproximateDivide),
    APPROXIMATE("rcp.approx", ApproximateReciprocal), APPROXIMATE("sqrt.approx", ApproximateSqrt),
    APPROXIMATE("rsqrt.approx", ApproximateRsqrt), APPROXIMATE("ex2.approx", ApproximateExp2),
    APPROXIMATE("lg2.approx", ApproximateLog2), APPROXIMATE("sin.approx", ApproximateSin),
    APPROXIMATE("cos.approx", ApproximateCos), {"tanh.approx.f32", approximately<Plain<f32>, ApproximateTanh>},
    {"rcp.approx.ftz.f64", approximate_double_reciprocal},
};
