// Races in shared memory: accesses of one byte by two warps with no barrier between them, at least one of which changes
// it. Found whatever order the warps happen to run in, unlike a wrong result.
#pragma once
#include "memory.h"

inline bool watched(const Warp &warp, const Instruction &it) {
  return it.option == SHARED && warp.launch.options.races;
}

// Stores of what is there already do no harm; compilers let several warps store one value.
inline void note_store(Warp &warp, const Instruction &it, u32 lane, u64 address, const u8 *before, const u8 *after,
                       u32 bytes) {
  Cta &cta = *warp.cta;
  const u32 own = warp.first_thread / LANES;
  for (u32 i = 0; i < bytes; i++) {
    LastAccess &last = cta.last_accesses[address + i];
    const bool written = last.write_phase == cta.phase && last.writer != own;
    const bool read = last.read_phase == cta.phase && (last.reader != own || last.several_readers);
    const bool changes = before[i] != after[i];
    if (written && !changes) continue;
    last.write_phase = cta.phase;
    last.writer = u8(own);
    if (changes && (written || read)) {
      report(warp, SHARED_RACE, it.index, lane, address, bytes);
      return;
    }
  }
}

inline void note_load(Warp &warp, const Instruction &it, const Places &places, u32 lanes, u32 bytes) {
  Cta &cta = *warp.cta;
  const u32 own = warp.first_thread / LANES;
  for (; lanes; lanes &= lanes - 1) {
    const u32 lane = u32(__builtin_ctz(lanes));
    bool raced = false;
    for (u32 i = 0; i < bytes; i++) {
      LastAccess &last = cta.last_accesses[places.address[lane] + i];
      raced |= last.write_phase == cta.phase && last.writer != own;
      last.several_readers = last.read_phase == cta.phase && (last.several_readers || last.reader != own);
      last.read_phase = cta.phase;
      last.reader = u8(own);
    }
    if (raced) report(warp, SHARED_RACE, it.index, lane, places.address[lane], bytes);
  }
}
