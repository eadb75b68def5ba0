// Integer arithmetic and bit manipulation. Types of one width share a handler where the bits agree.
#pragma once
#include <type_traits>
#include "handlers.h"

template <class T> struct Widened;
template <> struct Widened<u16> { using Type = u32; };
template <> struct Widened<s16> { using Type = s32; };
template <> struct Widened<u32> { using Type = u64; };
template <> struct Widened<s32> { using Type = s64; };
template <> struct Widened<u64> { using Type = u128; };
template <> struct Widened<s64> { using Type = s128; };
template <class T> using Wide = typename Widened<T>::Type;
template <class T> constexpr u32 BITS = 8 * sizeof(T);

struct Add { template <class T> T operator()(T a, T b) const { return T(a + b); } };
struct Subtract { template <class T> T operator()(T a, T b) const { return T(a - b); } };
// The product in 64 bits, as two u16 would be multiplied as int and could overflow.
struct Multiply { template <class T> T operator()(T a, T b) const { return T(u64(a) * u64(b)); } };
struct MultiplyAdd { template <class T> T operator()(T a, T b, T c) const { return T(u64(a) * u64(b) + u64(c)); } };
struct MultiplyHigh {
  template <class T> T operator()(T a, T b) const { return T((Wide<T>(a) * Wide<T>(b)) >> BITS<T>); }
};
struct MultiplyAddHigh {
  template <class T> T operator()(T a, T b, T c) const { return T(MultiplyHigh()(a, b) + c); }
};
// A GPU does not trap on division by zero; the PTX ISA leaves the result open, hardware gives all ones.
struct Divide {
  template <class T> T operator()(T a, T b) const {
    if (b == 0) return T(-1);
    return T(-1) < 0 && b == T(-1) ? T(0 - a) : T(a / b);
  }
};
struct Remainder {
  template <class T> T operator()(T a, T b) const {
    if (b == 0) return a;
    return T(-1) < 0 && b == T(-1) ? T(0) : T(a % b);
  }
};
struct Least { template <class T> T operator()(T a, T b) const { return a < b ? a : b; } };
struct Greatest { template <class T> T operator()(T a, T b) const { return a > b ? a : b; } };
struct Absolute { template <class T> T operator()(T a) const { return a < 0 ? T(0 - a) : a; } };
struct Negative { template <class T> T operator()(T a) const { return T(0 - a); } };
struct SaturatingAdd {
  s32 operator()(s32 a, s32 b) const { return clamp(s64(a) + b); }
  static s32 clamp(s64 x) { return x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : s32(x); }
};
struct SaturatingSubtract { s32 operator()(s32 a, s32 b) const { return SaturatingAdd::clamp(s64(a) - b); } };

struct And { template <class T> T operator()(T a, T b) const { return a & b; } };
struct Or { template <class T> T operator()(T a, T b) const { return a | b; } };
struct Xor { template <class T> T operator()(T a, T b) const { return a ^ b; } };
struct Not { template <class T> T operator()(T a) const { return T(~a); } };
struct LogicalNot { template <class T> T operator()(T a) const { return T(a == 0); } };
struct Reverse {
  template <class T> T operator()(T a) const {
    T result = 0;
    for (u32 i = 0; i < BITS<T>; i++) result |= T(a >> i & 1) << (BITS<T> - 1 - i);
    return result;
  }
};
struct CountOnes { u32 operator()(u64 a) const { return u32(__builtin_popcountll(a)); } };
template <class T>
struct LeadingZeros {
  u32 operator()(T a) const { return a ? u32(__builtin_clzll(u64(a))) - (64 - BITS<T>) : BITS<T>; }
};
// Position of the highest bit that differs from the sign; -1 if there is none.
template <class T>
struct FindBit {
  u32 operator()(T a) const {
    const u64 bits = u64(a < 0 ? T(~a) : a);
    return bits ? 63 - u32(__builtin_clzll(bits)) : ~0u;
  }
};

template <class T>
void multiply_wide(Warp &warp, const Instruction &it, u32 lanes) {
  const T *a = row<T>(warp, it.first), *b = row<T>(warp, it.second);
  assign(row<Wide<T>>(warp, it.target), lanes, [=](u32 lane) { return Wide<T>(a[lane]) * Wide<T>(b[lane]); });
}

template <class T>
void multiply_add_wide(Warp &warp, const Instruction &it, u32 lanes) {
  const T *a = row<T>(warp, it.first), *b = row<T>(warp, it.second);
  const Wide<T> *c = row<Wide<T>>(warp, it.third);
  assign(row<Wide<T>>(warp, it.target), lanes,
         [=](u32 lane) { return Wide<T>(a[lane]) * Wide<T>(b[lane]) + c[lane]; });
}

// Shifts by the width or more give zero, or the sign.
template <class T>
void shift_left(Warp &warp, const Instruction &it, u32 lanes) {
  const T *a = row<T>(warp, it.first);
  const u32 *by = row<u32>(warp, it.second);
  assign(row<T>(warp, it.target), lanes,
         [=](u32 lane) { return by[lane] < BITS<T> ? T(a[lane] << (by[lane] & (BITS<T> - 1))) : T(0); });
}

template <class T>
void shift_right(Warp &warp, const Instruction &it, u32 lanes) {
  const T *a = row<T>(warp, it.first);
  const u32 *by = row<u32>(warp, it.second);
  assign(row<T>(warp, it.target), lanes, [=](u32 lane) {
    const T sign = a[lane] < 0 ? T(-1) : T(0);
    return by[lane] < BITS<T> ? T(a[lane] >> (by[lane] & (BITS<T> - 1))) : sign;
  });
}

template <bool left, bool clamp>
void funnel_shift(Warp &warp, const Instruction &it, u32 lanes) {
  const u32 *low = row<u32>(warp, it.first), *high = row<u32>(warp, it.second), *by = row<u32>(warp, it.third);
  assign(row<u32>(warp, it.target), lanes, [=](u32 lane) {
    const u32 distance = clamp ? (by[lane] > 32 ? 32 : by[lane]) : by[lane] & 31;
    const u64 both = u64(high[lane]) << 32 | low[lane];
    return left ? u32((both << distance) >> 32) : u32(both >> distance);
  });
}

template <class T>
void extract_field(Warp &warp, const Instruction &it, u32 lanes) {
  const T *a = row<T>(warp, it.first);
  const u32 *start = row<u32>(warp, it.second), *length = row<u32>(warp, it.third);
  assign(row<T>(warp, it.target), lanes, [=](u32 lane) {
    const u32 from = start[lane] & 255, count = length[lane] & 255;
    if (count == 0) return T(0);
    const T sign = a[lane] < 0 ? T(-1) : T(0);
    const T shifted = from < BITS<T> ? T(a[lane] >> from) : sign;
    if (count >= BITS<T> || from + count > BITS<T>) return shifted;
    const u32 unused = BITS<T> - count;
    return T(T(std::make_unsigned_t<T>(shifted) << unused) >> unused);
  });
}

template <class T>
void insert_field(Warp &warp, const Instruction &it, u32 lanes) {
  const T *field = row<T>(warp, it.first), *whole = row<T>(warp, it.second);
  const u32 *start = row<u32>(warp, it.third), *length = row<u32>(warp, it.extra);
  assign(row<T>(warp, it.target), lanes, [=](u32 lane) {
    const u32 from = start[lane] & 255, count = length[lane] & 255;
    if (from >= BITS<T> || count == 0) return whole[lane];
    const T ones = count >= BITS<T> ? T(-1) : T((T(1) << count) - 1), mask = T(ones << from);
    return T((whole[lane] & ~mask) | ((field[lane] << from) & mask));
  });
}

// Bit i of the table is the result where i = 4 a + 2 b + c.
inline void logic_of_three(Warp &warp, const Instruction &it, u32 lanes) {
  const u32 *a = row<u32>(warp, it.first), *b = row<u32>(warp, it.second), *c = row<u32>(warp, it.third);
  u32 chosen[8];
  for (u32 i = 0; i < 8; i++) chosen[i] = it.immediate >> i & 1 ? ~0u : 0u;
  assign(row<u32>(warp, it.target), lanes, [&](u32 lane) {
    u32 result = 0;
    for (u32 i = 0; i < 8; i++)
      result |= chosen[i] & (i & 4 ? a[lane] : ~a[lane]) & (i & 2 ? b[lane] : ~b[lane]) & (i & 1 ? c[lane] : ~c[lane]);
    return result;
  });
}

inline void permute_bytes(Warp &warp, const Instruction &it, u32 lanes) {
  const u32 *a = row<u32>(warp, it.first), *b = row<u32>(warp, it.second), *selector = row<u32>(warp, it.third);
  assign(row<u32>(warp, it.target), lanes, [=](u32 lane) {
    const u64 bytes = u64(b[lane]) << 32 | a[lane];
    u32 result = 0;
    for (u32 i = 0; i < 4; i++) {
      const u32 choice = selector[lane] >> 4 * i & 15, byte = u32(bytes >> 8 * (choice & 7)) & 255;
      // The selector's top bit asks for eight copies of the byte's sign.
      result |= (choice & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return result;
  });
}

template <class Operation>
void of_predicates(Warp &warp, const Instruction &it, u32 lanes) {
  set_predicate(warp, it.target, lanes, Operation()(predicate(warp, it.first), predicate(warp, it.second)));
}

inline void not_predicate(Warp &warp, const Instruction &it, u32 lanes) {
  set_predicate(warp, it.target, lanes, ~predicate(warp, it.first));
}

#define FOR_UNSIGNED(name, make) {name ".u16", make(u16)}, {name ".u32", make(u32)}, {name ".u64", make(u64)}
#define FOR_SIGNED(name, make) {name ".s16", make(s16)}, {name ".s32", make(s32)}, {name ".s64", make(s64)}
#define FOR_INTEGERS(name, make) FOR_UNSIGNED(name, make), FOR_SIGNED(name, make)
#define FOR_BITS(name, make) {name ".b16", make(u16)}, {name ".b32", make(u32)}, {name ".b64", make(u64)}
#define ADD(T) binary<Plain<T>, Add>
#define SUBTRACT(T) binary<Plain<T>, Subtract>
#define MULTIPLY(T) binary<Plain<T>, Multiply>
#define MULTIPLY_ADD(T) ternary<Plain<T>, MultiplyAdd>
#define MULTIPLY_HIGH(T) binary<Plain<T>, MultiplyHigh>
#define MULTIPLY_ADD_HIGH(T) ternary<Plain<T>, MultiplyAddHigh>
#define DIVIDE(T) binary<Plain<T>, Divide>
#define REMAINDER(T) binary<Plain<T>, Remainder>
#define LEAST(T) binary<Plain<T>, Least>
#define GREATEST(T) binary<Plain<T>, Greatest>
#define ABSOLUTE(T) unary<Plain<T>, Plain<T>, Absolute>
#define NEGATIVE(T) unary<Plain<T>, Plain<T>, Negative>
#define AND(T) binary<Plain<T>, And>
#define OR(T) binary<Plain<T>, Or>
#define XOR(T) binary<Plain<T>, Xor>
#define NOT(T) unary<Plain<T>, Plain<T>, Not>
#define SHIFT_LEFT(T) shift_left<T>
#define SHIFT_RIGHT(T) shift_right<T>
#define LOGICAL_NOT(T) unary<Plain<T>, Plain<T>, LogicalNot>

static const NamedHandler INTEGER_HANDLERS[] = {
    FOR_UNSIGNED("add", ADD), FOR_UNSIGNED("sub", SUBTRACT), FOR_UNSIGNED("mul.lo", MULTIPLY),
    FOR_UNSIGNED("mad.lo", MULTIPLY_ADD), FOR_INTEGERS("mul.hi", MULTIPLY_HIGH),
    FOR_INTEGERS("mad.hi", MULTIPLY_ADD_HIGH), FOR_INTEGERS("div", DIVIDE), FOR_INTEGERS("rem", REMAINDER),
    FOR_INTEGERS("min", LEAST), FOR_INTEGERS("max", GREATEST), FOR_SIGNED("abs", ABSOLUTE), FOR_SIGNED("neg", NEGATIVE),
    FOR_INTEGERS("shr", SHIFT_RIGHT), FOR_BITS("shl", SHIFT_LEFT), FOR_BITS("and", AND), FOR_BITS("or", OR),
    FOR_BITS("xor", XOR), FOR_BITS("not", NOT), FOR_BITS("cnot", LOGICAL_NOT),
    {"mul.wide.u16", multiply_wide<u16>}, {"mul.wide.s16", multiply_wide<s16>}, {"mul.wide.u32", multiply_wide<u32>},
    {"mul.wide.s32", multiply_wide<s32>}, {"mad.wide.u16", multiply_add_wide<u16>},
    {"mad.wide.s16", multiply_add_wide<s16>}, {"mad.wide.u32", multiply_add_wide<u32>},
    {"mad.wide.s32", multiply_add_wide<s32>}, {"add.sat.s32", binary<Plain<s32>, SaturatingAdd>},
    {"sub.sat.s32", binary<Plain<s32>, SaturatingSubtract>},
    {"shf.l.clamp.b32", funnel_shift<true, true>}, {"shf.l.wrap.b32", funnel_shift<true, false>},
    {"shf.r.clamp.b32", funnel_shift<false, true>}, {"shf.r.wrap.b32", funnel_shift<false, false>},
    {"bfe.u32", extract_field<u32>}, {"bfe.s32", extract_field<s32>}, {"bfe.u64", extract_field<u64>},
    {"bfe.s64", extract_field<s64>}, {"bfi.b32", insert_field<u32>}, {"bfi.b64", insert_field<u64>},
    {"lop3.b32", logic_of_three}, {"prmt.b32", permute_bytes},
    {"brev.b32", unary<Plain<u32>, Plain<u32>, Reverse>}, {"brev.b64", unary<Plain<u64>, Plain<u64>, Reverse>},
    {"popc.b32", unary<Plain<u32>, Plain<u32>, CountOnes>}, {"popc.b64", unary<Plain<u32>, Plain<u64>, CountOnes>},
    {"clz.b32", unary<Plain<u32>, Plain<u32>, LeadingZeros<u32>>},
    {"clz.b64", unary<Plain<u32>, Plain<u64>, LeadingZeros<u64>>},
    {"bfind.u32", unary<Plain<u32>, Plain<u32>, FindBit<u32>>},
    {"bfind.s32", unary<Plain<u32>, Plain<s32>, FindBit<s32>>},
    {"bfind.u64", unary<Plain<u32>, Plain<u64>, FindBit<u64>>},
    {"bfind.s64", unary<Plain<u32>, Plain<s64>, FindBit<s64>>},
    {"and.pred", of_predicates<And>}, {"or.pred", of_predicates<Or>}, {"xor.pred", of_predicates<Xor>},
    {"not.pred", not_predicate},
};
