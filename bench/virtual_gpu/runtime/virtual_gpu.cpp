// The library's C interface, which `bench/virtual_gpu/native.py` calls.
#include "approximate.h"
#include "collective.h"
#include "compare.h"
#include "convert.h"
#include "floating.h"
#include "integer.h"
#include "scheduler.h"

namespace {

template <size_t count>
void append(std::vector<NamedHandler> &all, const NamedHandler (&some)[count]) {
  all.insert(all.end(), some, some + count);
}

const std::vector<NamedHandler> &handlers() {
  static const std::vector<NamedHandler> all = [] {
    std::vector<NamedHandler> list;
    append(list, INTEGER_HANDLERS);
    append(list, FLOATING_HANDLERS);
    append(list, APPROXIMATE_HANDLERS);
    append(list, COMPARE_HANDLERS);
    append(list, CONVERT_HANDLERS);
    append(list, LOAD_STORE_HANDLERS);
    append(list, ATOMIC_HANDLERS);
    append(list, COLLECTIVE_HANDLERS);
    return list;
  }();
  return all;
}

#define NAME(name) #name,
const char *const LAUNCH_NAMES[] = {LAUNCH_COUNTERS(NAME) nullptr};
const char *const SITE_NAMES[] = {SITE_COUNTERS(NAME) nullptr};

}  // namespace

extern "C" {

// Each ends with a null pointer; beyond the handlers too.
const char *handler_name(u32 i) { return i < handlers().size() ? handlers()[i].name : nullptr; }
const char *launch_counter_name(u32 i) { return LAUNCH_NAMES[i]; }
const char *site_counter_name(u32 i) { return SITE_NAMES[i]; }

// Sizes of the records that both sides lay out.
void record_sizes(u64 *sizes) {
  const u64 all[] = {sizeof(Instruction), sizeof(Block),  sizeof(Program),
                     sizeof(Options),     sizeof(Region), sizeof(Fault)};
  std::copy(std::begin(all), std::end(all), sizes);
}

// `instructions` name their handlers by number until here.
void resolve(Instruction *instructions, u32 count) {
  for (u32 i = 0; i < count; i++) instructions[i].handler = handlers()[instructions[i].number].handler;
}

// Runs a launch to its end or to the first fault that stops it. Returns how many faults are in `faults`, which has
// room for FAULTS_KEPT of each kind.
u32 run(const Program *program, const Options *options, const Region *regions, u32 num_regions, const u8 *parameters,
        Counters *counters, SiteCounters *sites, u64 *block_executions, u64 *block_lanes, Fault *faults,
        u64 *fault_counts) {
  Launch launch{*program, *options, regions, num_regions, parameters};
  launch.sites.resize(program->num_sites);
  launch.block_executions.resize(program->num_blocks);
  launch.block_lanes.resize(program->num_blocks);
  launch.l1.resize(options->num_sms);
  if (options->caches) {
    for (Cache &cache : launch.l1) cache.resize(options->l1_bytes, 8);
    launch.l2.resize(options->l2_bytes, 16);
  }
  Scheduler(launch).run();
  Counters &total = launch.counters;
  if (options->caches) total.dram_write_sectors += launch.l2.dirty_sectors();
  for (u32 i = 0; i < program->num_blocks; i++)
    total.lane_instructions += launch.block_lanes[i] * program->blocks[i].length;
  *counters = total;
  std::copy(launch.sites.begin(), launch.sites.end(), sites);
  std::copy(launch.block_executions.begin(), launch.block_executions.end(), block_executions);
  std::copy(launch.block_lanes.begin(), launch.block_lanes.end(), block_lanes);
  std::copy(launch.faults.begin(), launch.faults.end(), faults);
  std::copy(launch.fault_counts, launch.fault_counts + FAULT_KINDS, fault_counts);
  return u32(launch.faults.size());
}
}
