// What a launch counts. Python reads the names, so that this list is the only one.
#pragma once
#include "scalars.h"

#define LAUNCH_COUNTERS(X)                                                                                      \
  X(warp_instructions) X(lane_instructions) X(longest_warp) X(warps) X(ctas) X(barriers)                        \
  X(load_requests) X(load_sectors) X(load_bytes) X(l1_hits)                                                     \
  X(store_requests) X(store_sectors) X(store_bytes)                                                             \
  X(atomic_requests) X(atomic_sectors) X(atomic_lanes) X(atomic_conflicts)                                      \
  X(l1_lines) X(l2_read_sectors) X(l2_read_hits) X(l2_write_sectors) X(dram_read_sectors) X(dram_write_sectors) \
  X(unique_read_sectors) X(unique_written_sectors)                                                              \
  X(shared_requests) X(shared_wavefronts) X(bank_conflicts)

#define SITE_COUNTERS(X) \
  X(requests) X(lanes) X(bytes) X(sectors) X(lines) X(l1_hits) X(l2_hits) X(wavefronts) X(conflicts)

#define FIELD(name) u64 name;
struct Counters {
  LAUNCH_COUNTERS(FIELD)
};
struct SiteCounters {
  SITE_COUNTERS(FIELD)
};
#undef FIELD

enum FaultKind : u32 {
  GLOBAL_OUT_OF_BOUNDS, SHARED_OUT_OF_BOUNDS, PARAMETER_OUT_OF_BOUNDS, MISALIGNED, DIVERGED_COLLECTIVE,
  SHARED_RACE, BARRIER_DEADLOCK, INSTRUCTION_LIMIT, TRAPPED, FAULT_KINDS
};
struct Fault {
  u32 kind, instruction;
  u32 program_id[3];
  u32 thread;
  u64 address;
  u32 bytes, unused;
};
constexpr u32 FAULTS_KEPT = 32;
