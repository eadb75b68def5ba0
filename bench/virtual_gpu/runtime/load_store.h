// Loads, stores and matrix loads.
#pragma once
#include "handlers.h"
#include "races.h"

// What a load outside memory gives: ones, which are NaN in every floating-point format.
template <class Memory, class Register>
void load(Warp &warp, const Instruction &it, u32 lanes) {
  if (!lanes) return;
  Places places;
  const u32 *targets = warp.launch.program.lists + it.list;
  const u32 valid = locate(warp, it, Access::load, it.first, places, lanes, u32(sizeof(Memory)) * it.count);
  if (watched(warp, it)) note_load(warp, it, places, valid, u32(sizeof(Memory)) * it.count);
  for (u32 i = 0; i < it.count; i++) {
    Register *target = row<Register>(warp, targets[i]);
    for (u32 mask = lanes; mask; mask &= mask - 1) {
      const u32 lane = u32(__builtin_ctz(mask));
      Memory value = Memory(~Memory(0));
      if (valid >> lane & 1) std::memcpy(&value, places.host[lane] + i * sizeof(Memory), sizeof(Memory));
      target[lane] = Register(value);  // extended by the memory type's sign
    }
  }
}

template <class Memory, class Register>
void store(Warp &warp, const Instruction &it, u32 lanes) {
  if (!lanes) return;
  Places places;
  const u32 *sources = warp.launch.program.lists + it.list;
  const u32 valid = locate(warp, it, Access::store, it.first, places, lanes, u32(sizeof(Memory)) * it.count);
  const bool watch = watched(warp, it);
  for_each_lane(warp, valid, [&](u32 lane) {
    for (u32 i = 0; i < it.count; i++) {
      const Memory value = Memory(row<Register>(warp, sources[i])[lane]);
      u8 *place = places.host[lane] + i * sizeof(Memory);
      if (watch)
        note_store(warp, it, lane, places.address[lane] + i * sizeof(Memory), place,
                   reinterpret_cast<const u8 *>(&value), sizeof(Memory));
      std::memcpy(place, &value, sizeof(Memory));
    }
  });
}

// ldmatrix and stmatrix: 8x8 matrices of 16-bit elements. Lane 8 m + r gives the address of row r of matrix m; lane
// 4 r + c holds elements 2 c and 2 c + 1 of row r, or of column r if transposed.
template <bool loads, bool transposed>
void matrix(Warp &warp, const Instruction &it, u32 lanes) {
  Places places;
  const u32 *registers = warp.launch.program.lists + it.list;
  const u32 rows = it.count == 4 ? EVERY_LANE : (1u << 8 * it.count) - 1;
  if (lanes != EVERY_LANE) report(warp, DIVERGED_COLLECTIVE, it.index, 0, lanes, 0);
  const u32 valid = locate(warp, it, loads ? Access::load : Access::store, it.first, places, rows, 16);
  if (loads && watched(warp, it)) note_load(warp, it, places, valid, 16);
  for (u32 m = 0; m < it.count; m++) {
    u32 *values = row<u32>(warp, registers[m]);
    for (u32 lane = 0; lane < LANES; lane++) {
      for (u32 half = 0; half < 2; half++) {
        const u32 row_number = transposed ? 2 * (lane % 4) + half : lane / 4;
        const u32 column = transposed ? lane / 4 : 2 * (lane % 4) + half;
        if (!(valid >> (8 * m + row_number) & 1)) continue;
        u8 *element = places.host[8 * m + row_number] + 2 * column;
        u8 *held = reinterpret_cast<u8 *>(&values[lane]) + 2 * half;
        if (!loads && watched(warp, it))
          note_store(warp, it, lane, places.address[8 * m + row_number] + 2 * column, element, held, 2);
        std::memcpy(loads ? held : element, loads ? element : held, 2);
      }
    }
  }
}

#define MEMORY(action, from, From, to, To) {#action "." from ".b" to, action<From, To>}
#define LOADS_AND_STORES(action)                                                                         \
  MEMORY(action, "u8", u8, "16", u16), MEMORY(action, "u8", u8, "32", u32), MEMORY(action, "u8", u8, "64", u64),      \
      MEMORY(action, "u16", u16, "16", u16), MEMORY(action, "u16", u16, "32", u32),                         \
      MEMORY(action, "u16", u16, "64", u64), MEMORY(action, "u32", u32, "32", u32),                         \
      MEMORY(action, "u32", u32, "64", u64), MEMORY(action, "u64", u64, "64", u64),                         \
      MEMORY(action, "b128", u128, "128", u128)

static const NamedHandler LOAD_STORE_HANDLERS[] = {
    LOADS_AND_STORES(load), LOADS_AND_STORES(store), MEMORY(store, "u8", u8, "8", u8),
    MEMORY(load, "s8", s8, "16", s16), MEMORY(load, "s8", s8, "32", s32), MEMORY(load, "s8", s8, "64", s64),
    MEMORY(load, "s16", s16, "16", s16), MEMORY(load, "s16", s16, "32", s32), MEMORY(load, "s16", s16, "64", s64),
    MEMORY(load, "s32", s32, "32", s32), MEMORY(load, "s32", s32, "64", s64),
    {"ldmatrix", matrix<true, false>}, {"ldmatrix.trans", matrix<true, true>}, {"stmatrix", matrix<false, false>},
    {"stmatrix.trans", matrix<false, true>},
};
