// Memory accesses of a warp: bounds and alignment, the traffic they cause, and where their bytes lie.
#pragma once
#include <algorithm>
#include "warp.h"

enum class Access { load, store, atomic };

struct Places {
  alignas(64) u64 address[LANES];
  u8 *host[LANES];  // of the lanes that `locate` returns
};

// The 128-byte lines that a request touches, each with a bit for each of its four sectors.
class Lines {
 public:
  void add(u64 address, u32 bytes) {
    const u64 first = address >> 5, last = (address + bytes - 1) >> 5;
    if (first == latest_ && last == latest_) return;  // neighbouring lanes share sectors
    for (u64 sector = first; sector <= last; sector++) add_sector(sector);
    latest_ = last;
  }
  u32 count = 0;
  u64 line[2 * LANES];
  u8 sectors[2 * LANES];

 private:
  void add_sector(u64 sector) {
    const u64 wanted = sector >> 2;
    const u8 bit = u8(1u << (sector & 3));
    for (u32 slot = wanted & 127;; slot = (slot + 1) & 127) {
      const u32 entry = slots_[slot];
      if (!entry) {
        line[count] = wanted;
        sectors[count++] = bit;
        slots_[slot] = u8(count);
        return;
      }
      if (line[entry - 1] == wanted) {
        sectors[entry - 1] |= bit;
        return;
      }
    }
  }
  u64 latest_ = ~0ull;
  u8 slots_[128] = {};  // hash table of 1 + index
};

inline void count_load(Launch &launch, SiteCounters &site, Cache &l1, const Lines &lines, bool bypass) {
  Counters &counters = launch.counters;
  for (u32 i = 0; i < lines.count; i++) {
    u32 missing = lines.sectors[i];
    if (!bypass) {
      const u32 hits = l1.access(lines.line[i], missing, false, counters.dram_write_sectors);
      counters.l1_hits += __builtin_popcount(hits);
      site.l1_hits += __builtin_popcount(hits);
      missing &= ~hits;
    }
    if (!missing) continue;
    const u32 hits = launch.l2.access(lines.line[i], missing, false, counters.dram_write_sectors);
    counters.l2_read_sectors += __builtin_popcount(missing);
    counters.l2_read_hits += __builtin_popcount(hits);
    site.l2_hits += __builtin_popcount(hits);
    counters.dram_read_sectors += __builtin_popcount(missing & ~hits);
  }
}

// Stores and atomics go through to L2; an atomic reads what it changes.
inline void count_write(Launch &launch, SiteCounters &site, Cache &l1, const Lines &lines, bool atomic) {
  Counters &counters = launch.counters;
  for (u32 i = 0; i < lines.count; i++) {
    const u32 sectors = lines.sectors[i];
    l1.invalidate(lines.line[i], sectors);
    const u32 hits = launch.l2.access(lines.line[i], sectors, true, counters.dram_write_sectors);
    counters.l2_write_sectors += __builtin_popcount(sectors);
    site.l2_hits += __builtin_popcount(hits);
    if (atomic) counters.dram_read_sectors += __builtin_popcount(sectors & ~hits);
  }
}

// How often the busiest address of an atomic request comes, less one.
inline u32 repeats(const Places &places, u32 lanes) {
  u32 most = 0;
  for (u32 rest = lanes; rest; ) {
    const u64 address = places.address[__builtin_ctz(rest)];
    u32 same = 0;
    for (u32 mask = rest; mask; mask &= mask - 1)
      if (places.address[__builtin_ctz(mask)] == address) same |= mask & -mask;
    most = std::max<u32>(most, __builtin_popcount(same));
    rest &= ~same;
  }
  return most - 1;
}

inline const Region *region_of(const Launch &launch, u64 address) {
  const u64 number = address >> REGION_BITS;
  return number < launch.num_regions ? &launch.regions[number] : nullptr;
}

inline u64 offset_of(u64 address) { return address & ((1ull << REGION_BITS) - 1); }

// Places of lanes one by one, with reports of those that are wrong; returns the lanes that may be accessed.
inline u32 examine(Warp &warp, const Instruction &it, Places &places, u32 lanes, u32 bytes) {
  u32 valid = 0;
  for (; lanes; lanes &= lanes - 1) {
    const u32 lane = u32(__builtin_ctz(lanes));
    const u64 address = places.address[lane], offset = offset_of(address);
    const Region *region = region_of(warp.launch, address);
    if (!region || offset < region->begin || offset + bytes > region->end) {
      report(warp, GLOBAL_OUT_OF_BOUNDS, it.index, lane, address, bytes);
      continue;
    }
    if (address % bytes) report(warp, MISALIGNED, it.index, lane, address, bytes);
    valid |= 1u << lane;
    places.host[lane] = region->host + (offset - REGION_START);
  }
  return valid;
}

// As `examine`, at once for the usual case: aligned places in the tensor of the first lane.
inline u32 check_places(Warp &warp, const Instruction &it, Places &places, u32 lanes, u32 bytes) {
  const u64 first = places.address[__builtin_ctz(lanes)];
  const Region *region = region_of(warp.launch, first);
  if (!region || region->end - region->begin < bytes) return examine(warp, it, places, lanes, bytes);
  const u64 lowest = first - offset_of(first) + region->begin, room = region->end - bytes - region->begin;
  u64 wrong = 0;
  for (u32 lane = 0; lane < LANES; lane++) {
    const u64 address = places.address[lane];
    wrong |= (lanes >> lane & 1) ? u64(address - lowest > room) | (address & (bytes - 1)) : 0;
    places.host[lane] = region->host + (offset_of(address) - REGION_START);
  }
  return wrong ? examine(warp, it, places, lanes, bytes) : lanes;
}

inline u64 count_first_touches(const Launch &launch, const Lines &lines, bool read) {
  u64 fresh = 0;
  for (u32 i = 0; i < lines.count; i++) {
    const u64 address = lines.line[i] << 7;
    u8 &touched = region_of(launch, address)->touched[(offset_of(address) - REGION_START) >> 7];
    const u32 mark = read ? lines.sectors[i] : u32(lines.sectors[i]) << 4;
    fresh += __builtin_popcount(mark & ~u32(touched));
    touched |= u8(mark);
  }
  return fresh;
}

inline u32 locate_global(Warp &warp, const Instruction &it, Access access, Places &places, u32 lanes, u32 bytes) {
  Launch &launch = warp.launch;
  Counters &counters = launch.counters;
  SiteCounters &site = launch.sites[it.site];
  const u32 valid = check_places(warp, it, places, lanes, bytes);
  Lines lines;
  for (u32 mask = valid; mask; mask &= mask - 1) lines.add(places.address[__builtin_ctz(mask)], bytes);
  u64 &unique = access == Access::load ? counters.unique_read_sectors : counters.unique_written_sectors;
  unique += count_first_touches(launch, lines, access == Access::load);
  u32 sectors = 0;
  for (u32 i = 0; i < lines.count; i++) sectors += __builtin_popcount(lines.sectors[i]);
  const u32 active = __builtin_popcount(lanes);
  site.requests++;
  site.lanes += active;
  site.bytes += u64(active) * bytes;
  site.sectors += sectors;
  site.lines += lines.count;
  counters.l1_lines += lines.count;
  Cache &l1 = launch.l1[warp.cta->sm];
  if (access == Access::load) {
    counters.load_requests++;
    counters.load_sectors += sectors;
    counters.load_bytes += u64(active) * bytes;
    if (launch.options.caches) count_load(launch, site, l1, lines, it.flags & BYPASS_L1);
  } else if (access == Access::store) {
    counters.store_requests++;
    counters.store_sectors += sectors;
    counters.store_bytes += u64(active) * bytes;
    if (launch.options.caches) count_write(launch, site, l1, lines, false);
  } else {
    const u32 conflicts = valid ? repeats(places, valid) : 0;
    counters.atomic_requests++;
    counters.atomic_sectors += sectors;
    counters.atomic_lanes += active;
    counters.atomic_conflicts += conflicts;
    site.conflicts += conflicts;
    if (launch.options.caches) count_write(launch, site, l1, lines, true);
  }
  return valid;
}

// Shared memory has 32 banks of 4 bytes. A request is served in wavefronts, in each of which a bank gives one word;
// wider accesses are split into half and quarter warps first.
inline void count_shared(Warp &warp, const Instruction &it, const u64 *address, u32 lanes, u32 bytes) {
  const u32 group = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8, words = std::max(1u, bytes / 4);
  u32 wavefronts = 0, groups = 0;
  for (u32 start = 0; start < LANES; start += group) {
    u64 in_bank[32][LANES];
    u32 depth[32] = {}, deepest = 0;
    for (u32 lane = start; lane < start + group; lane++) {
      if (!(lanes >> lane & 1)) continue;
      for (u32 i = 0; i < words; i++) {
        const u64 word = address[lane] / 4 + i;
        u64 *bank = in_bank[word & 31];
        u32 &used = depth[word & 31];
        if (std::find(bank, bank + used, word) == bank + used && used < LANES) bank[used++] = word;
        deepest = std::max(deepest, used);
      }
    }
    wavefronts += deepest;
    groups += deepest > 0;
  }
  Counters &counters = warp.launch.counters;
  SiteCounters &site = warp.launch.sites[it.site];
  counters.shared_requests++;
  counters.shared_wavefronts += wavefronts;
  counters.bank_conflicts += wavefronts - groups;
  site.requests++;
  site.lanes += __builtin_popcount(lanes);
  site.bytes += u64(__builtin_popcount(lanes)) * bytes;
  site.wavefronts += wavefronts;
  site.conflicts += wavefronts - groups;
}

inline u32 locate_in(Warp &warp, const Instruction &it, u8 *host, u64 size, FaultKind kind, Places &places, u32 lanes,
                     u32 bytes) {
  u32 valid = 0;
  for (u32 mask = lanes; mask; mask &= mask - 1) {
    const u32 lane = __builtin_ctz(mask);
    const u64 address = places.address[lane];
    if (address > size || address + bytes > size) {
      report(warp, kind, it.index, lane, address, bytes);
      continue;
    }
    if (address % bytes) report(warp, MISALIGNED, it.index, lane, address, bytes);
    places.host[lane] = host + address;
    valid |= 1u << lane;
  }
  return valid;
}

// Addresses of an instruction's lanes, counted; returns the lanes that may be accessed.
inline u32 locate(Warp &warp, const Instruction &it, Access access, u32 address, Places &places, u32 lanes, u32 bytes) {
  if (it.flags & NARROW_ADDRESS) {
    const u32 *base = row<u32>(warp, address);
    for (u32 lane = 0; lane < LANES; lane++) places.address[lane] = u32(base[lane] + u32(it.immediate));
  } else {
    const u64 *base = row<u64>(warp, address);
    for (u32 lane = 0; lane < LANES; lane++) places.address[lane] = base[lane] + u64(it.immediate);
  }
  Cta &cta = *warp.cta;
  switch (it.option) {
    case SHARED:
      count_shared(warp, it, places.address, lanes, bytes);
      return locate_in(warp, it, cta.shared.data(), cta.shared.size(), SHARED_OUT_OF_BOUNDS, places, lanes, bytes);
    case PARAMETER:
      return locate_in(warp, it, const_cast<u8 *>(warp.launch.parameters), warp.launch.options.parameter_bytes,
                       PARAMETER_OUT_OF_BOUNDS, places, lanes, bytes);
    default: return locate_global(warp, it, access, places, lanes, bytes);
  }
}
