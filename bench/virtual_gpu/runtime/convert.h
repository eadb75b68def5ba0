// cvt. Registers may be wider than the type that is converted: sources are cut, results extended by their sign.
#pragma once
#include "handlers.h"

// `option`: width of the source's row, of the target's row (bytes), rounding, and saturation.
struct Conversion {
  u32 from_bytes, to_bytes;
  Rounding rounding;
  bool saturate, flush;
  explicit Conversion(u32 option)
      : from_bytes(option & 31), to_bytes(option >> 5 & 31), rounding(Rounding(option >> 10 & 3)),
        saturate(option >> 12 & 1), flush(option >> 13 & 1) {}
};

template <class T>
inline T read_low(Warp &warp, u32 operand, u32 width, u32 lane) {
  T result;
  std::memcpy(&result, row<u8>(warp, operand) + width * lane, sizeof(T));
  return result;
}

template <class T>
inline void write_extended(Warp &warp, u32 operand, u32 width, u32 lane, T value) {
  const s64 extended = s64(value);
  std::memcpy(row<u8>(warp, operand) + width * lane, &extended, width);
}

template <class To, class From>
inline To integer_to_integer(From x, bool saturate) {
  if (!saturate) return To(x);
  const s128 low = std::numeric_limits<To>::min(), high = std::numeric_limits<To>::max();
  return s128(x) < low ? To(low) : s128(x) > high ? To(high) : To(x);
}

template <class To, class From>
void convert_integer(Warp &warp, const Instruction &it, u32 lanes) {
  const Conversion how(it.option);
  if (how.from_bytes == sizeof(From) && how.to_bytes == sizeof(To) && !how.saturate) {
    const From *a = row<From>(warp, it.first);
    assign(row<To>(warp, it.target), lanes, [=](u32 lane) { return To(a[lane]); });
    return;
  }
  for (; lanes; lanes &= lanes - 1) {
    const u32 lane = u32(__builtin_ctz(lanes));
    const From x = read_low<From>(warp, it.first, how.from_bytes, lane);
    write_extended(warp, it.target, how.to_bytes, lane, integer_to_integer<To>(x, how.saturate));
  }
}

// How a real number becomes each floating-point format. Everything else is converted by way of f64, which holds
// every value of the smaller formats and of 32-bit integers.
template <class T> struct FloatType;
template <> struct FloatType<f32> {
  static f64 read(f32 x) { return x; }
  static f32 write(f64 x, Rounding rounding) { return double_to_float(x, rounding); }
};
template <> struct FloatType<f64> {
  static f64 read(f64 x) { return x; }
  static f64 write(f64 x, Rounding) { return x; }
};
struct HalfBits { u16 bits; };
struct BFloatBits { u16 bits; };
template <> struct FloatType<HalfBits> {
  static f64 read(HalfBits x) { return half_to_float(x.bits); }
  static HalfBits write(f64 x, Rounding rounding) { return {to_small_float(x, 5, 10, rounding)}; }
};
template <> struct FloatType<BFloatBits> {
  static f64 read(BFloatBits x) { return bfloat_to_float(x.bits); }
  static BFloatBits write(f64 x, Rounding rounding) { return {to_small_float(x, 8, 7, rounding)}; }
};

// 64-bit integers do not fit a double: cut to 53 bits, with the last bit set if anything was lost, they round to fewer
// bits as they should.
template <class Integer>
inline f64 integer_to_odd(Integer x) {
  const bool negative = x < 0;
  u64 size = negative ? 0 - u64(x) : u64(x);
  const int excess = size >> 53 ? 11 - __builtin_clzll(size) : 0;
  if (excess > 0) size = (size >> excess << excess) | (size & ((1ull << excess) - 1) ? 1ull << excess : 0);
  const f64 result = f64(size);
  return negative ? -result : result;
}

template <class Integer>
inline f64 integer_to_double(Integer x, Rounding rounding) {
  const f64 near = f64(x);
  const s128 error = s128(near) - s128(x);
  const bool down = rounding == Rounding::down || (rounding == Rounding::zero && x > 0);
  if (rounding == Rounding::nearest || error == 0 || down == (error < 0)) return near;
  return std::nextafter(near, down ? -INFINITY : INFINITY);
}

template <class To, class Integer>
void convert_to_float(Warp &warp, const Instruction &it, u32 lanes) {
  const Conversion how(it.option);
  if constexpr (std::is_arithmetic_v<To>) {
    if (how.from_bytes == sizeof(Integer) && how.rounding == Rounding::nearest) {
      const Integer *a = row<Integer>(warp, it.first);
      assign(row<To>(warp, it.target), lanes, [=](u32 lane) { return To(a[lane]); });
      return;
    }
  }
  for (; lanes; lanes &= lanes - 1) {
    const u32 lane = u32(__builtin_ctz(lanes));
    const Integer x = read_low<Integer>(warp, it.first, how.from_bytes, lane);
    To &target = row<To>(warp, it.target)[lane];
    if constexpr (std::is_same_v<To, f64>) target = integer_to_double(x, how.rounding);
    else target = FloatType<To>::write(integer_to_odd(x), how.rounding);
  }
}

template <class Integer, class From>
void convert_from_float(Warp &warp, const Instruction &it, u32 lanes) {
  const Conversion how(it.option);
  const From *a = row<From>(warp, it.first);
  if constexpr (sizeof(Integer) == 4 && std::is_same_v<From, f32>) {
    if (how.rounding == Rounding::zero && how.to_bytes == 4) {
      assign(row<Integer>(warp, it.target), lanes,
             [=](u32 lane) { return float_to_integer<Integer>(std::trunc(a[lane])); });
      return;
    }
  }
  for (; lanes; lanes &= lanes - 1) {
    const u32 lane = u32(__builtin_ctz(lanes));
    const f64 x = FloatType<From>::read(a[lane]);
    const Integer result = float_to_integer<Integer>(to_integral(how.flush ? f64(flushed(f32(x))) : x, how.rounding));
    write_extended(warp, it.target, how.to_bytes, lane, result);
  }
}

// Between floating-point formats; `flags` asks for an integral result (rni, rzi, rmi, rpi).
template <class To, class From>
void convert_float(Warp &warp, const Instruction &it, u32 lanes) {
  const Conversion how(it.option);
  const From *a = row<From>(warp, it.first);
  assign(row<To>(warp, it.target), lanes, [&](u32 lane) {
    f64 x = FloatType<From>::read(a[lane]);
    if (how.flush) x = flushed(f32(x));
    if (it.flags) x = to_integral(x, how.rounding);
    if (how.saturate) x = x > 0 ? (x < 1 ? x : 1) : 0;
    return FloatType<To>::write(x, it.flags ? Rounding::nearest : how.rounding);
  });
}

// Rounds a float32 to an integral float32, which kernels do often (floor, ceil, trunc).
template <int rounding>
void round_float(Warp &warp, const Instruction &it, u32 lanes) {
  const f32 *a = row<f32>(warp, it.first);
  const bool flush = Conversion(it.option).flush;
  assign(row<f32>(warp, it.target), lanes, [=](u32 lane) {
    const f32 x = flush ? flushed(a[lane]) : a[lane];
    if constexpr (rounding == 0) return std::nearbyint(x);
    else if constexpr (rounding == 1) return std::trunc(x);
    else if constexpr (rounding == 2) return std::floor(x);
    else return std::ceil(x);
  });
}

// cvt.f16x2.f32 d, a, b: a goes to the upper half.
template <class Small, bool relu>
void convert_two(Warp &warp, const Instruction &it, u32 lanes) {
  const Conversion how(it.option);
  const f32 *upper = row<f32>(warp, it.first), *lower = row<f32>(warp, it.second);
  assign(row<u32>(warp, it.target), lanes, [&](u32 lane) {
    const f64 high = relu && upper[lane] < 0 ? 0 : upper[lane], low = relu && lower[lane] < 0 ? 0 : lower[lane];
    const u32 bits = FloatType<Small>::write(high, how.rounding).bits;
    return bits << 16 | FloatType<Small>::write(low, how.rounding).bits;
  });
}

#define TO_INTEGERS(make, from, From)                                                                      \
  make("u8", u8, from, From), make("s8", s8, from, From), make("u16", u16, from, From),                    \
      make("s16", s16, from, From), make("u32", u32, from, From), make("s32", s32, from, From),            \
      make("u64", u64, from, From), make("s64", s64, from, From)
#define INTEGER(to, To, from, From) {"cvt." to "." from, convert_integer<To, From>}
#define FROM_FLOAT(to, To, from, From) {"cvt." to "." from, convert_from_float<To, From>}
#define TO_FLOAT(from, From, to, To) {"cvt." to "." from, convert_to_float<To, From>}
#define TO_FLOATS(from, From)                                                                              \
  {"cvt.f32." from, convert_float<f32, From>}, {"cvt.f64." from, convert_float<f64, From>},                \
      {"cvt.f16." from, convert_float<HalfBits, From>}, {"cvt.bf16." from, convert_float<BFloatBits, From>}

static const NamedHandler CONVERT_HANDLERS[] = {
    TO_INTEGERS(INTEGER, "u8", u8), TO_INTEGERS(INTEGER, "s8", s8), TO_INTEGERS(INTEGER, "u16", u16),
    TO_INTEGERS(INTEGER, "s16", s16), TO_INTEGERS(INTEGER, "u32", u32), TO_INTEGERS(INTEGER, "s32", s32),
    TO_INTEGERS(INTEGER, "u64", u64), TO_INTEGERS(INTEGER, "s64", s64),
    TO_INTEGERS(FROM_FLOAT, "f32", f32), TO_INTEGERS(FROM_FLOAT, "f64", f64),
    TO_INTEGERS(FROM_FLOAT, "f16", HalfBits), TO_INTEGERS(FROM_FLOAT, "bf16", BFloatBits),
    TO_INTEGERS(TO_FLOAT, "f32", f32), TO_INTEGERS(TO_FLOAT, "f64", f64), TO_INTEGERS(TO_FLOAT, "f16", HalfBits),
    TO_INTEGERS(TO_FLOAT, "bf16", BFloatBits),
    TO_FLOATS("f32", f32), TO_FLOATS("f64", f64), TO_FLOATS("f16", HalfBits), TO_FLOATS("bf16", BFloatBits),
    {"cvt.rni.f32.f32", round_float<0>}, {"cvt.rzi.f32.f32", round_float<1>}, {"cvt.rmi.f32.f32", round_float<2>},
    {"cvt.rpi.f32.f32", round_float<3>}, {"cvt.f16x2.f32", convert_two<HalfBits, false>},
    {"cvt.bf16x2.f32", convert_two<BFloatBits, false>}, {"cvt.relu.f16x2.f32", convert_two<HalfBits, true>},
    {"cvt.relu.bf16x2.f32", convert_two<BFloatBits, true>},
};
