// atom and red: lane after lane, in the launch's order of lanes.
#pragma once
#include "floating.h"
#include "load_store.h"

struct Exchange { template <class T> T operator()(T, T b) const { return b; } };
struct Increment { u32 operator()(u32 a, u32 b) const { return a >= b ? 0 : a + 1; } };
struct Decrement { u32 operator()(u32 a, u32 b) const { return a == 0 || a > b ? b : a - 1; } };

// Targets get the old values where there are any: the list has `count` sources, then as many targets or NONE.
template <class Format, class Operation>
void atomic(Warp &warp, const Instruction &it, u32 lanes) {
  using Row = typename Format::Row;
  if (!lanes) return;
  Places places;
  const u32 *sources = warp.launch.program.lists + it.list, *targets = sources + it.count;
  const u32 valid = locate(warp, it, Access::atomic, it.first, places, lanes, u32(sizeof(Row)) * it.count);
  for_each_lane(warp, valid, [&](u32 lane) {
    for (u32 i = 0; i < it.count; i++) {
      Row before;
      std::memcpy(&before, places.host[lane] + i * sizeof(Row), sizeof(Row));
      const Row operand = row<Row>(warp, sources[i])[lane];
      const Row after = Format::write(Operation()(Format::read(before), Format::read(operand)));
      std::memcpy(places.host[lane] + i * sizeof(Row), &after, sizeof(Row));
      if (targets[i] != NONE) row<Row>(warp, targets[i])[lane] = before;
    }
  });
}

template <class T>
void compare_and_swap(Warp &warp, const Instruction &it, u32 lanes) {
  if (!lanes) return;
  Places places;
  const T *expected = row<T>(warp, it.second), *desired = row<T>(warp, it.third);
  const u32 target = warp.launch.program.lists[it.list];
  const u32 valid = locate(warp, it, Access::atomic, it.first, places, lanes, sizeof(T));
  for_each_lane(warp, valid, [&](u32 lane) {
    T before;
    std::memcpy(&before, places.host[lane], sizeof(T));
    if (before == expected[lane]) std::memcpy(places.host[lane], &desired[lane], sizeof(T));
    if (target != NONE) row<T>(warp, target)[lane] = before;
  });
}

#define ATOMIC(name, T, F, Operation) {"atom." name "." T, atomic<F, Operation>}
#define FOR_WORDS(name, Operation) \
  ATOMIC(name, "b32", Plain<u32>, Operation), ATOMIC(name, "b64", Plain<u64>, Operation)
#define FOR_ORDERED(name, Operation)                                                                         \
  ATOMIC(name, "u32", Plain<u32>, Operation), ATOMIC(name, "s32", Plain<s32>, Operation),                    \
      ATOMIC(name, "u64", Plain<u64>, Operation), ATOMIC(name, "s64", Plain<s64>, Operation)
#define FOR_HALVES(name, Operation)                                                                          \
  ATOMIC(name, "f16", Half, Operation), ATOMIC(name, "bf16", BFloat, Operation),                             \
      ATOMIC(name, "f16x2", Half2, Both<Operation>), ATOMIC(name, "bf16x2", BFloat2, Both<Operation>)

static const NamedHandler ATOMIC_HANDLERS[] = {
    FOR_ORDERED("add", Add), FOR_ORDERED("min", Least), FOR_ORDERED("max", Greatest),
    FOR_WORDS("and", And), FOR_WORDS("or", Or), FOR_WORDS("xor", Xor), FOR_WORDS("exch", Exchange),
    ATOMIC("inc", "u32", Plain<u32>, Increment), ATOMIC("dec", "u32", Plain<u32>, Decrement),
    ATOMIC("add", "f32", Plain<f32>, Add), ATOMIC("add", "f64", Plain<f64>, Add),
    ATOMIC("min", "f32", Plain<f32>, Minimum),
    ATOMIC("max", "f32", Plain<f32>, Maximum), FOR_HALVES("add", Add), FOR_HALVES("min", Minimum),
    FOR_HALVES("max", Maximum), {"atom.cas.b16", compare_and_swap<u16>}, {"atom.cas.b32", compare_and_swap<u32>},
    {"atom.cas.b64", compare_and_swap<u64>},
};
