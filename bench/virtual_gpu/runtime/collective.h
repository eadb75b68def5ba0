// Exchanges between the lanes of a warp: shfl, vote, match, redux, activemask, elect.
#pragma once
#include "atomic.h"

// Lanes named by the instruction's member mask must be at the instruction together. Those that live but are elsewhere
// would be waited for by hardware, perhaps for ever, so it is a fault here.
inline void check_members(Warp &warp, const Instruction &it, u32 members, u32 lanes) {
  const u32 absent = members & warp.living() & ~lanes;
  if (absent) report(warp, DIVERGED_COLLECTIVE, it.index, u32(__builtin_ctz(absent)), absent, 0);
}

inline u32 members_of(Warp &warp, u32 operand, u32 lanes) { return row<u32>(warp, operand)[__builtin_ctz(lanes)]; }

enum class Shuffle { up, down, butterfly, index };

template <Shuffle mode>
void shuffle(Warp &warp, const Instruction &it, u32 lanes) {
  if (!lanes) return;
  const u32 *operands = warp.launch.program.lists + it.list;  // the member mask, if there is one
  if (it.list != NONE) check_members(warp, it, members_of(warp, operands[0], lanes), lanes);
  u32 values[LANES], found = 0;
  std::memcpy(values, row<u32>(warp, it.first), sizeof(values));
  const u32 *distance = row<u32>(warp, it.second), *limits = row<u32>(warp, it.third);
  u32 *target = row<u32>(warp, it.target);
  for (u32 mask = lanes; mask; mask &= mask - 1) {
    const u32 lane = u32(__builtin_ctz(mask));
    const s32 by = s32(distance[lane] & 31);
    const u32 clamp = limits[lane] & 31, segment = limits[lane] >> 8 & 31;
    const s32 most = s32((lane & segment) | (clamp & ~segment)), least = s32(lane & segment);
    s32 from;
    bool inside;
    if (mode == Shuffle::up) from = s32(lane) - by, inside = from >= most;
    else if (mode == Shuffle::down) from = s32(lane) + by, inside = from <= most;
    else if (mode == Shuffle::butterfly) from = s32(lane) ^ by, inside = from <= most;
    else from = least | (by & s32(~segment)), inside = from <= most;
    if (!inside) from = s32(lane);
    found |= u32(inside) << lane;
    target[lane] = values[from & 31];
  }
  if (it.extra != NONE) set_predicate(warp, it.extra, lanes, found);
}

enum class Vote { all, any, uniform, ballot };

template <Vote mode>
void vote(Warp &warp, const Instruction &it, u32 lanes) {
  if (!lanes) return;
  if (it.second != NONE) check_members(warp, it, members_of(warp, it.second, lanes), lanes);
  const u32 true_in = predicate(warp, it.first) & lanes;
  if (mode == Vote::ballot) {
    assign(row<u32>(warp, it.target), lanes, [=](u32) { return true_in; });
    return;
  }
  const bool all = true_in == lanes, none = true_in == 0;
  const bool result = mode == Vote::all ? all : mode == Vote::any ? !none : all || none;
  set_predicate(warp, it.target, lanes, result ? EVERY_LANE : 0);
}

template <class T, bool all>
void match(Warp &warp, const Instruction &it, u32 lanes) {
  if (!lanes) return;
  check_members(warp, it, members_of(warp, it.second, lanes), lanes);
  const T *a = row<T>(warp, it.first);
  u32 equal[LANES];
  for (u32 lane = 0; lane < LANES; lane++) {
    equal[lane] = 0;
    for (u32 other = 0; other < LANES; other++) equal[lane] |= u32(a[other] == a[lane]) << other;
    equal[lane] &= lanes;
  }
  const bool alike = equal[__builtin_ctz(lanes)] == lanes;
  assign(row<u32>(warp, it.target), lanes, [&](u32 lane) { return all ? (alike ? lanes : 0) : equal[lane]; });
  if (it.extra != NONE) set_predicate(warp, it.extra, lanes, alike ? EVERY_LANE : 0);
}

template <class T, class Operation>
void reduce(Warp &warp, const Instruction &it, u32 lanes) {
  if (!lanes) return;
  check_members(warp, it, members_of(warp, it.second, lanes), lanes);
  const T *a = row<T>(warp, it.first);
  T result = a[__builtin_ctz(lanes)];
  for (u32 mask = lanes & (lanes - 1); mask; mask &= mask - 1) result = Operation()(result, a[__builtin_ctz(mask)]);
  assign(row<T>(warp, it.target), lanes, [=](u32) { return result; });
}

inline void active_mask(Warp &warp, const Instruction &it, u32 lanes) {
  assign(row<u32>(warp, it.target), lanes, [=](u32) { return lanes; });
}

// The lowest member is elected: its number goes to the target, and the predicate is true in it alone.
inline void elect(Warp &warp, const Instruction &it, u32 lanes) {
  if (!lanes) return;
  check_members(warp, it, members_of(warp, it.first, lanes), lanes);
  const u32 leader = u32(__builtin_ctz(lanes));
  assign(row<u32>(warp, it.target), lanes, [=](u32) { return leader; });
  if (it.extra != NONE) set_predicate(warp, it.extra, lanes, 1u << leader);
}

inline void check_warp(Warp &warp, const Instruction &it, u32 lanes) {  // bar.warp.sync
  if (lanes) check_members(warp, it, members_of(warp, it.first, lanes), lanes);
}

inline void nothing(Warp &, const Instruction &, u32) {}  // fences, hints

#define REDUCE(name, T, type, Operation) {"redux." name "." T, reduce<type, Operation>}

static const NamedHandler COLLECTIVE_HANDLERS[] = {
    {"shfl.up", shuffle<Shuffle::up>}, {"shfl.down", shuffle<Shuffle::down>},
    {"shfl.bfly", shuffle<Shuffle::butterfly>}, {"shfl.idx", shuffle<Shuffle::index>},
    {"vote.all", vote<Vote::all>}, {"vote.any", vote<Vote::any>}, {"vote.uni", vote<Vote::uniform>},
    {"vote.ballot", vote<Vote::ballot>},
    {"match.any.b32", match<u32, false>}, {"match.any.b64", match<u64, false>},
    {"match.all.b32", match<u32, true>}, {"match.all.b64", match<u64, true>},
    REDUCE("add", "u32", u32, Add), REDUCE("min", "u32", u32, Least), REDUCE("max", "u32", u32, Greatest),
    REDUCE("min", "s32", s32, Least), REDUCE("max", "s32", s32, Greatest), REDUCE("and", "b32", u32, And),
    REDUCE("or", "b32", u32, Or), REDUCE("xor", "b32", u32, Xor), REDUCE("min", "f32", f32, Minimum),
    REDUCE("max", "f32", f32, Maximum), REDUCE("min.NaN", "f32", f32, MinimumNaN),
    REDUCE("max.NaN", "f32", f32, MaximumNaN), {"activemask", active_mask}, {"elect", elect},
    {"bar.warp", check_warp}, {"nothing", nothing},
};
