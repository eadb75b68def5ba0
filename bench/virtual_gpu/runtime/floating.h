// Floating-point arithmetic that is rounded as IEEE 754 says.
#pragma once
#include <cfenv>
#include "handlers.h"
#include "integer.h"

struct FloatMultiply { template <class T> T operator()(T a, T b) const { return a * b; } };
struct FloatDivide { template <class T> T operator()(T a, T b) const { return a / b; } };
struct Reciprocal { template <class T> T operator()(T a) const { return T(1) / a; } };
struct SquareRoot { template <class T> T operator()(T a) const { return std::sqrt(a); } };
struct FusedMultiplyAdd { template <class T> T operator()(T a, T b, T c) const { return std::fma(a, b, c); } };
struct SmallFusedMultiplyAdd { f64 operator()(f64 a, f64 b, f64 c) const { return fma_to_odd(a, b, c); } };
struct Magnitude { template <class T> T operator()(T a) const { return std::fabs(a); } };
struct Opposite { template <class T> T operator()(T a) const { return -a; } };
// PTX names the number whose sign is taken first.
struct CopySign { template <class T> T operator()(T a, T b) const { return std::copysign(b, a); } };

// A number beats NaN, and -0 is below +0 (IEEE 754-2019 minimumNumber); with `propagate` NaN beats a number.
template <bool least, bool propagate>
struct Extreme {
  template <class T> T operator()(T a, T b) const {
    const bool a_wins = a == b ? std::signbit(a) == least : least ? a < b : a > b;
    const T number = a_wins ? a : b;
    if (propagate) return a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : number;
    return a != a ? b : b != b ? a : number;
  }
};

// NaN in f32 is always the canonical one, as on a GPU, and not an operand's: narrower formats make theirs in writing.
template <class Operation>
struct OneNaN {
  template <class... T>
  auto operator()(T... operands) const -> std::invoke_result_t<Operation, T...> {
    const auto result = Operation()(operands...);
    if constexpr (sizeof(result) == sizeof(f32)) return result == result ? result : as_bits<f32>(0x7fffffffu);
    return result;
  }
};

// In one of the processor's rounding modes. Volatile values keep the compiler from moving the operation out.
template <class Format, class Operation>
void rounded(Warp &warp, const Instruction &it, u32 lanes) {
  using Row = typename Format::Row;
  static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  const Row *a = row<Row>(warp, it.first), *b = row<Row>(warp, it.second), *c = row<Row>(warp, it.third);
  Row *target = row<Row>(warp, it.target);
  std::fesetround(modes[it.option]);
  for (u32 lane = 0; lane < LANES; lane++) {
    if (!(lanes >> lane & 1)) continue;
    volatile Row x = Format::read(a[lane]), y = Format::read(b[lane]), z = Format::read(c[lane]);
    volatile Row result;
    if constexpr (std::is_invocable_v<Operation, Row, Row, Row>) result = Operation()(Row(x), Row(y), Row(z));
    else if constexpr (std::is_invocable_v<Operation, Row, Row>) result = Operation()(Row(x), Row(y));
    else result = Operation()(Row(x));
    target[lane] = Format::write(result);
  }
  std::fesetround(FE_TONEAREST);
}

#define FOR_FLOATS_AS_THEY_ARE(name, operands, Operation)                                                \
  {name ".f32", operands<Plain<f32>, Operation>}, {name ".ftz.f32", operands<FlushedFloat, Operation>},  \
      {name ".f64", operands<Plain<f64>, Operation>}
#define FOR_FLOATS(name, operands, Operation) FOR_FLOATS_AS_THEY_ARE(name, operands, OneNaN<Operation>)
#define FOR_SMALL(name, operands, Operation)                                                     \
  {name ".f16", operands<Half, Operation>}, {name ".bf16", operands<BFloat, Operation>},         \
      {name ".f16x2", operands<Half2, Both<Operation>>}, {name ".bf16x2", operands<BFloat2, Both<Operation>>}
#define FOR_PAIRS_TOO(name, operands, Operation)                                     \
  FOR_FLOATS(name, operands, Operation), FOR_SMALL(name, operands, Operation),       \
      {name ".f32x2", operands<Float2, Both<OneNaN<Operation>>>}
#define ROUNDED(name, Operation)                                                                                  \
  {name ".directed.f32", rounded<Plain<f32>, OneNaN<Operation>>},                                                  \
      {name ".directed.ftz.f32", rounded<FlushedFloat, OneNaN<Operation>>},                                         \
      {name ".directed.f64", rounded<Plain<f64>, Operation>}

template <class Format, class Operation>
void same(Warp &warp, const Instruction &it, u32 lanes) {
  unary<Format, Format, Operation>(warp, it, lanes);
}

using Minimum = Extreme<true, false>;
using Maximum = Extreme<false, false>;
using MinimumNaN = Extreme<true, true>;
using MaximumNaN = Extreme<false, true>;

static const NamedHandler FLOATING_HANDLERS[] = {
    FOR_PAIRS_TOO("add", binary, Add), FOR_PAIRS_TOO("sub", binary, Subtract),
    FOR_PAIRS_TOO("mul", binary, FloatMultiply), FOR_FLOATS("fma", ternary, FusedMultiplyAdd),
    FOR_SMALL("fma", ternary, SmallFusedMultiplyAdd), {"fma.f32x2", ternary<Float2, Both<OneNaN<FusedMultiplyAdd>>>},
    FOR_FLOATS("div", binary, FloatDivide), FOR_FLOATS("rcp", same, Reciprocal), FOR_FLOATS("sqrt", same, SquareRoot),
    FOR_FLOATS("min", binary, Minimum), FOR_SMALL("min", binary, Minimum), FOR_FLOATS("max", binary, Maximum),
    FOR_SMALL("max", binary, Maximum), FOR_FLOATS("min.NaN", binary, MinimumNaN),
    FOR_SMALL("min.NaN", binary, MinimumNaN), FOR_FLOATS("max.NaN", binary, MaximumNaN),
    FOR_SMALL("max.NaN", binary, MaximumNaN), FOR_FLOATS_AS_THEY_ARE("abs", same, Magnitude),
    FOR_SMALL("abs", same, Magnitude), FOR_FLOATS_AS_THEY_ARE("neg", same, Opposite), FOR_SMALL("neg", same, Opposite),
    {"copysign.f32", binary<Plain<f32>, CopySign>}, {"copysign.f64", binary<Plain<f64>, CopySign>},
    ROUNDED("add", Add), ROUNDED("sub", Subtract), ROUNDED("mul", FloatMultiply), ROUNDED("fma", FusedMultiplyAdd),
    ROUNDED("div", FloatDivide), ROUNDED("rcp", Reciprocal), ROUNDED("sqrt", SquareRoot),
};
