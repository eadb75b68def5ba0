// The state of a launch, a CTA and a warp, and how a handler reads and writes rows of 32 lanes.
#pragma once
#include <vector>
#include "cache.h"
#include "counters.h"
#include "program.h"

// A storage as the kernel sees it: addresses (number << REGION_BITS) + offset, from the middle of the region on.
// Regions are so large that an index past either end of one does not reach another.
constexpr u32 REGION_BITS = 40;
constexpr u64 REGION_START = 1ull << (REGION_BITS - 1);
struct Region {
  u8 *host;        // of offset REGION_START
  u64 begin, end;  // offsets that may be accessed
  u8 *touched;     // per line of 128 bytes: which of its sectors were read (low bits) and written (high bits)
};

enum Approximation : u32 { NEAREST, LOW, HIGH };  // which end of the documented error

struct Options {
  u32 grid[3], threads[3];
  u32 num_sms, ctas_per_sm, quantum, reversed, approximation, caches, races;
  u32 shared_bytes, parameter_bytes, unused;
  u64 l1_bytes, l2_bytes, instruction_limit, warp_limit;
};

struct Launch {
  const Program &program;
  const Options &options;
  const Region *regions;
  u32 num_regions;
  const u8 *parameters;
  Counters counters{};
  std::vector<SiteCounters> sites{};
  std::vector<u64> block_executions{}, block_lanes{};
  std::vector<Cache> l1{};
  Cache l2{};
  std::vector<Fault> faults{};
  u64 fault_counts[FAULT_KINDS]{};
  bool stopped = false;
};

struct Barrier {
  u32 arrived = 0, expected = 0, holding = 0;  // threads; expected 0: every living thread of the CTA
};

// Who accessed a byte of shared memory last, and between which barriers.
struct LastAccess {
  u32 write_phase, read_phase;
  u8 writer, reader;
  bool several_readers;
};

struct Cta {
  u32 id[3], sm;
  std::vector<u8> shared;
  std::vector<Warp *> warps;
  Barrier barriers[16];
  std::vector<LastAccess> last_accesses;
  u32 phase = 0;  // goes on at each barrier
};

// Lanes of a warp that are at the same place.
struct Fragment {
  u32 block, rank, lanes;  // the least rank runs first
  u32 barrier;            // at which it waits, or NONE
  const Block *reduction; // the bar.red whose result it waits for
};

struct Warp {
  Launch &launch;
  Cta *cta;
  u8 *rows[2];  // registers, constants: see IN_CONSTANTS
  u32 first_thread, num_fragments;
  u64 executed;
  Fragment fragments[LANES];

  u32 living() const {
    u32 lanes = 0;
    for (u32 i = 0; i < num_fragments; i++) lanes |= fragments[i].lanes;
    return lanes;
  }
};

template <class T>
inline T *row(Warp &warp, u32 operand) {
  return reinterpret_cast<T *>(warp.rows[operand & IN_CONSTANTS] + (operand & OFFSET));
}

inline u32 predicate(Warp &warp, u32 operand) {
  const u32 bits = *row<u32>(warp, operand);
  return operand & NEGATED ? ~bits : bits;
}

inline void set_predicate(Warp &warp, u32 operand, u32 lanes, u32 bits) {
  u32 *target = row<u32>(warp, operand);
  *target = (*target & ~lanes) | (bits & lanes);
}

// target[lane] = value(lane) for the given lanes. Values of other lanes are computed and dropped, which costs less
// than a branch. A lane reads and writes its own place only, so a target may be one of the sources.
template <class T, class Value>
inline void assign(T *target, u32 lanes, Value value) {
#pragma GCC ivdep
  for (u32 lane = 0; lane < LANES; lane++) {
    const T result = value(lane);
    target[lane] = (lanes >> lane & 1) ? result : target[lane];
  }
}

inline void report(Warp &warp, FaultKind kind, u32 instruction, u32 lane, u64 address, u32 bytes) {
  Launch &launch = warp.launch;
  const u32 *id = warp.cta->id;
  if (launch.fault_counts[kind]++ < FAULTS_KEPT)
    launch.faults.push_back({kind, instruction, {id[0], id[1], id[2]}, warp.first_thread + lane, address, bytes, 0});
}

// Some lanes in the order in which their effects on memory happen.
template <class Action>
inline void for_each_lane(const Warp &warp, u32 lanes, Action action) {
  if (warp.launch.options.reversed) {
    for (; lanes; lanes &= ~(1u << (31 - __builtin_clz(lanes)))) action(u32(31 - __builtin_clz(lanes)));
  } else {
    for (; lanes; lanes &= lanes - 1) action(u32(__builtin_ctz(lanes)));
  }
}
