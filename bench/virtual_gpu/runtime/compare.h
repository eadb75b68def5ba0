// Comparison, selection and moves.
#pragma once
#include "handlers.h"

struct Equal { template <class T> bool operator()(T a, T b) const { return a == b; } };
struct Less { template <class T> bool operator()(T a, T b) const { return a < b; } };
struct LessEqual { template <class T> bool operator()(T a, T b) const { return a <= b; } };
struct Greater { template <class T> bool operator()(T a, T b) const { return a > b; } };
struct GreaterEqual { template <class T> bool operator()(T a, T b) const { return a >= b; } };
struct NotEqual { template <class T> bool operator()(T a, T b) const { return a < b || a > b; } };  // ordered
struct BothNumbers { template <class T> bool operator()(T a, T b) const { return a == a && b == b; } };
// True where the comparison is false, so for NaN too: neu, geu and their like.
template <class Comparison>
struct Unless { template <class T> bool operator()(T a, T b) const { return !Comparison()(a, b); } };

enum Combination : u32 { ALONE, WITH_AND, WITH_OR, WITH_XOR };

inline u32 combined(u32 bits, u32 other, u32 how) {
  return how == WITH_AND ? bits & other : how == WITH_OR ? bits | other : how == WITH_XOR ? bits ^ other : bits;
}

template <class Format, class Comparison>
u32 compared(Warp &warp, const Instruction &it) {
  const auto *a = row<typename Format::Row>(warp, it.first), *b = row<typename Format::Row>(warp, it.second);
  u32 bits = 0;
  for (u32 lane = 0; lane < LANES; lane++)
    bits |= u32(Comparison()(Format::read(a[lane]), Format::read(b[lane]))) << lane;
  return bits;
}

// setp p|q, a, b, c: p is the comparison and c, q its opposite and c.
template <class Format, class Comparison>
void set_predicates(Warp &warp, const Instruction &it, u32 lanes) {
  const u32 bits = compared<Format, Comparison>(warp, it);
  const u32 other = it.option == ALONE ? 0 : predicate(warp, it.third);
  set_predicate(warp, it.target, lanes, combined(bits, other, it.option));
  if (it.extra != NONE) set_predicate(warp, it.extra, lanes, combined(~bits, other, it.option));
}

// set: a word of ones (or 1.0) where true. `immediate` is that word.
template <class Format, class Comparison>
void set_words(Warp &warp, const Instruction &it, u32 lanes) {
  const u32 other = it.option == ALONE ? 0 : predicate(warp, it.third);
  const u32 bits = combined(compared<Format, Comparison>(warp, it), other, it.option), word = u32(it.immediate);
  assign(row<u32>(warp, it.target), lanes, [=](u32 lane) { return bits >> lane & 1 ? word : 0; });
}

template <class T>
void select(Warp &warp, const Instruction &it, u32 lanes) {
  const T *a = row<T>(warp, it.first), *b = row<T>(warp, it.second);
  const u32 chosen = predicate(warp, it.third);
  assign(row<T>(warp, it.target), lanes, [=](u32 lane) { return chosen >> lane & 1 ? a[lane] : b[lane]; });
}

inline void select_predicate(Warp &warp, const Instruction &it, u32 lanes) {
  const u32 chosen = predicate(warp, it.third);
  set_predicate(warp, it.target, lanes,
                (chosen & predicate(warp, it.first)) | (~chosen & predicate(warp, it.second)));
}

// slct: by the sign of the third operand.
template <class T, class Condition>
void select_by_sign(Warp &warp, const Instruction &it, u32 lanes) {
  const T *a = row<T>(warp, it.first), *b = row<T>(warp, it.second);
  const Condition *sign = row<Condition>(warp, it.third);
  assign(row<T>(warp, it.target), lanes, [=](u32 lane) { return sign[lane] >= 0 ? a[lane] : b[lane]; });
}

template <class T>
void move(Warp &warp, const Instruction &it, u32 lanes) {
  const T *a = row<T>(warp, it.first);
  assign(row<T>(warp, it.target), lanes, [=](u32 lane) { return a[lane]; });
}

inline void move_predicate(Warp &warp, const Instruction &it, u32 lanes) {
  set_predicate(warp, it.target, lanes, predicate(warp, it.first));
}

// mov {a, b}, c and mov c, {a, b}: equal parts, the first in the low bits.
template <class Whole, class Part>
void pack(Warp &warp, const Instruction &it, u32 lanes) {
  const u32 *operands = warp.launch.program.lists + it.list;
  assign(row<Whole>(warp, it.target), lanes, [&](u32 lane) {
    Whole whole = 0;
    for (u32 i = 0; i < it.count; i++) whole |= Whole(row<Part>(warp, operands[i])[lane]) << (8 * sizeof(Part) * i);
    return whole;
  });
}

template <class Whole, class Part>
void unpack(Warp &warp, const Instruction &it, u32 lanes) {
  const u32 *operands = warp.launch.program.lists + it.list;
  // A target may be the source itself, so the source is read once.
  Whole whole[LANES];
  std::memcpy(whole, row<Whole>(warp, it.first), sizeof(whole));
  for (u32 i = 0; i < it.count; i++)
    assign(row<Part>(warp, operands[i]), lanes, [&](u32 lane) { return Part(whole[lane] >> (8 * sizeof(Part) * i)); });
}

#define COMPARE(name, C, T, F) {"setp." name "." T, set_predicates<F, C>}, {"set." name "." T, set_words<F, C>}
#define ORDERED(T, F)                                                                                      \
  COMPARE("eq", Equal, T, F), COMPARE("lt", Less, T, F), COMPARE("le", LessEqual, T, F),                   \
      COMPARE("gt", Greater, T, F), COMPARE("ge", GreaterEqual, T, F), COMPARE("ne", NotEqual, T, F)
#define UNORDERED(T, F)                                                                                    \
  COMPARE("equ", Unless<NotEqual>, T, F), COMPARE("neu", Unless<Equal>, T, F),                             \
      COMPARE("ltu", Unless<GreaterEqual>, T, F), COMPARE("leu", Unless<Greater>, T, F),                   \
      COMPARE("gtu", Unless<LessEqual>, T, F), COMPARE("geu", Unless<Less>, T, F),                         \
      COMPARE("num", BothNumbers, T, F), COMPARE("nan", Unless<BothNumbers>, T, F)

static const NamedHandler COMPARE_HANDLERS[] = {
    ORDERED("u16", Plain<u16>), ORDERED("s16", Plain<s16>), ORDERED("u32", Plain<u32>), ORDERED("s32", Plain<s32>),
    ORDERED("u64", Plain<u64>), ORDERED("s64", Plain<s64>), ORDERED("f32", Plain<f32>), UNORDERED("f32", Plain<f32>),
    ORDERED("ftz.f32", FlushedFloat), UNORDERED("ftz.f32", FlushedFloat), ORDERED("f64", Plain<f64>),
    UNORDERED("f64", Plain<f64>), ORDERED("f16", Half), UNORDERED("f16", Half), ORDERED("bf16", BFloat),
    UNORDERED("bf16", BFloat),
    {"selp.b16", select<u16>}, {"selp.b32", select<u32>}, {"selp.b64", select<u64>}, {"selp.pred", select_predicate},
    {"slct.b32.s32", select_by_sign<u32, s32>}, {"slct.b64.s32", select_by_sign<u64, s32>},
    {"slct.b32.f32", select_by_sign<u32, f32>}, {"slct.b64.f32", select_by_sign<u64, f32>},
    {"mov.b16", move<u16>}, {"mov.b32", move<u32>}, {"mov.b64", move<u64>}, {"mov.b128", move<u128>},
    {"mov.pred", move_predicate},
    {"pack.b16.b8", pack<u16, u8>}, {"pack.b32.b8", pack<u32, u8>}, {"pack.b32.b16", pack<u32, u16>},
    {"pack.b64.b16", pack<u64, u16>}, {"pack.b64.b32", pack<u64, u32>}, {"pack.b128.b32", pack<u128, u32>},
    {"pack.b128.b64", pack<u128, u64>},
    {"unpack.b32.b16", unpack<u32, u16>}, {"unpack.b64.b16", unpack<u64, u16>}, {"unpack.b64.b32", unpack<u64, u32>},
    {"unpack.b128.b32", unpack<u128, u32>}, {"unpack.b128.b64", unpack<u128, u64>},
};
