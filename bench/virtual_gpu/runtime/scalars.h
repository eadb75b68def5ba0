// Scalar types, bit patterns, and conversions between floating-point formats with PTX's rounding.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

using u8 = std::uint8_t;
using s8 = std::int8_t;
using u16 = std::uint16_t;
using s16 = std::int16_t;
using u32 = std::uint32_t;
using s32 = std::int32_t;
using u64 = std::uint64_t;
using s64 = std::int64_t;
using u128 = unsigned __int128;
using s128 = __int128;
using f32 = float;
using f64 = double;

template <class To, class From>
inline To as_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit pattern keeps its size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

enum class Rounding { nearest, zero, down, up };

inline f64 to_integral(f64 x, Rounding rounding) {
  switch (rounding) {
    case Rounding::nearest: return std::nearbyint(x);
    case Rounding::zero: return std::trunc(x);
    case Rounding::down: return std::floor(x);
    default: return std::ceil(x);
  }
}

// The bits of `x` in a format of at most 11 significand and 8 exponent bits (float16, bfloat16), sign included.
// NaN becomes the canonical 0x7fff, as the PTX ISA says for cvt.
inline u16 to_small_float(f64 x, int exponent_bits, int fraction_bits, Rounding rounding) {
  if (x != x) return 0x7fff;
  const u16 sign = std::signbit(x) ? 0x8000 : 0;
  const int least = 2 - (1 << (exponent_bits - 1));  // exponent of the smallest normal number
  const u32 infinity = ((1u << exponent_bits) - 1) << fraction_bits;
  f64 size = std::fabs(x);
  if (size == 0) return sign;
  if (std::isinf(size)) return sign | infinity;
  if (sign && rounding == Rounding::down) rounding = Rounding::up;  // of the size, from here on
  else if (sign && rounding == Rounding::up) rounding = Rounding::down;
  int exponent;
  std::frexp(size, &exponent);
  exponent = exponent - 1 < least ? least : exponent - 1;
  const f64 significand = to_integral(std::ldexp(size, fraction_bits - exponent), rounding);
  // The hidden bit carries into the exponent field, so that a normal number needs no other case.
  const s64 encoded = (s64(exponent - least) << fraction_bits) + s64(significand);
  if (encoded < s64(infinity)) return sign | u16(encoded);
  const bool beyond = rounding == Rounding::nearest || rounding == Rounding::up;
  return sign | u16(beyond ? infinity : infinity - 1);
}

inline f32 half_to_float(u16 x) {
  const u32 sign = u32(x & 0x8000) << 16, rest = x & 0x7fff;
  // Multiplying by 2^112 moves the bias from 15 to 127 and turns subnormal halves into normal floats.
  u32 size = as_bits<u32>(as_bits<f32>(rest << 13) * 0x1p112f);
  size = rest >= 0x7c00 ? 0x7f800000 | (rest << 13) : size;
  return as_bits<f32>(sign | size);
}

inline u16 float_to_half(f32 x) {
  const u32 pattern = as_bits<u32>(x), size = pattern & 0x7fffffff;
  const u16 sign = u16(pattern >> 16) & 0x8000;
  // Above 2^-14 rounding is an integer addition; below, adding 0.5 aligns the significand for the adder to round.
  const u32 normal = (size - (112u << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
  const u32 subnormal = as_bits<u32>(as_bits<f32>(size) + 0.5f) - 0x3f000000;
  u32 half = size < (113u << 23) ? subnormal : normal;
  half = size >= 0x477ff000 ? 0x7c00 : half;
  return size > 0x7f800000 ? 0x7fff : u16(sign | half);
}

inline f32 bfloat_to_float(u16 x) { return as_bits<f32>(u32(x) << 16); }

inline u16 float_to_bfloat(f32 x) {
  const u32 pattern = as_bits<u32>(x);
  const u16 rounded = u16((pattern + 0x7fff + ((pattern >> 16) & 1)) >> 16);
  return (pattern & 0x7fffffff) > 0x7f800000 ? 0x7fff : rounded;
}

// The float32 that a real number, given as a double, rounds to.
inline f32 double_to_float(f64 x, Rounding rounding) {
  const f32 near = f32(x);
  if (rounding == Rounding::nearest || near == x || x != x) return near;
  const bool down = rounding == Rounding::down || (rounding == Rounding::zero && x > 0);
  const bool wrong = down ? near > x : near < x;
  return wrong ? std::nextafter(near, down ? -INFINITY : INFINITY) : near;
}

// a * b + c with the last bit set if anything was lost, so that a second rounding to few bits is right.
inline f64 fma_to_odd(f64 a, f64 b, f64 c) {
  const f64 product = a * b;  // exact: the operands have at most 11 significant bits
  const f64 sum = product + c;
  const f64 part = sum - product;
  const f64 lost = (product - (sum - part)) + (c - part);
  if (lost == 0 || lost != lost || std::isinf(sum)) return sum;
  const u64 pattern = as_bits<u64>(sum);
  if (pattern & 1) return sum;
  return as_bits<f64>((lost > 0) == (sum > 0) ? pattern + 1 : pattern - 1);
}

// Subnormal numbers become zeros of their sign (.ftz).
inline f32 flushed(f32 x) {
  const u32 pattern = as_bits<u32>(x);
  return (pattern & 0x7f800000) == 0 ? as_bits<f32>(pattern & 0x80000000) : x;
}

// An integer of a float that is integral or not finite: out of range goes to the nearest end, NaN to 0 (cvt).
template <class Integer, class Float>
inline Integer float_to_integer(Float x) {
  constexpr Integer low = std::numeric_limits<Integer>::min(), high = std::numeric_limits<Integer>::max();
  if (x != x) return 0;
  if (x <= Float(low)) return low;
  if (x >= Float(high)) return high;
  return Integer(x);
}

// How numbers lie in a register row and what arithmetic is done in.
template <class T>
struct Plain {
  using Row = T;
  using Value = T;
  static Value read(Row x) { return x; }
  static Row write(Value x) { return x; }
};
struct FlushedFloat {
  using Row = f32;
  using Value = f32;
  static Value read(Row x) { return flushed(x); }
  static Row write(Value x) { return flushed(x); }
};
struct Half {
  using Row = u16;
  using Value = f32;
  static Value read(Row x) { return half_to_float(x); }
  static Row write(f32 x) { return float_to_half(x); }
  static Row write(f64 x) { return to_small_float(x, 5, 10, Rounding::nearest); }
};
struct BFloat {
  using Row = u16;
  using Value = f32;
  static Value read(Row x) { return bfloat_to_float(x); }
  static Row write(f32 x) { return float_to_bfloat(x); }
  static Row write(f64 x) { return to_small_float(x, 8, 7, Rounding::nearest); }
};
// Two numbers side by side, the first in the low bits: f16x2, bf16x2, f32x2.
template <class Element, class Wide, class Narrow>
struct Packed {
  using Row = Wide;
  struct Value {
    typename Element::Value low, high;
  };
  static constexpr int shift = 8 * sizeof(Narrow);
  static Value read(Row x) {
    return {Element::read(as_bits<typename Element::Row>(Narrow(x))),
            Element::read(as_bits<typename Element::Row>(Narrow(x >> shift)))};
  }
  template <class Pair>
  static Row write(Pair x) {
    return Wide(as_bits<Narrow>(Element::write(x.low))) | Wide(as_bits<Narrow>(Element::write(x.high))) << shift;
  }
};
using Half2 = Packed<Half, u32, u16>;
using BFloat2 = Packed<BFloat, u32, u16>;
using Float2 = Packed<Plain<f32>, u64, u32>;
