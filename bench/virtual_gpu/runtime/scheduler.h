// Runs CTAs on SMs: warps one after another, some basic blocks each, reconverging by the rank of blocks.
#pragma once
#include <memory>
#include "collective.h"

// Diverged lanes of a warp run apart until they meet: always the fragment of least rank, which reconverges structured
// code where a compiler would; `flow.py` says why.
inline void add_fragment(Warp &warp, u32 block, u32 rank, u32 lanes, u32 barrier = NONE,
                         const Block *reduction = nullptr) {
  if (!lanes) return;
  for (u32 i = 0; i < warp.num_fragments; i++) {
    Fragment &other = warp.fragments[i];
    if (other.block == block && other.rank == rank && other.barrier == barrier && other.reduction == reduction) {
      other.lanes |= lanes;
      return;
    }
  }
  warp.fragments[warp.num_fragments++] = {block, rank, lanes, barrier, reduction};
}

inline void stop(Warp &warp, FaultKind kind, u32 instruction) {
  report(warp, kind, instruction, 0, 0, 0);
  warp.launch.stopped = true;
}

inline u32 uniform(Warp &warp, u32 operand, u32 lanes) { return row<u32>(warp, operand)[__builtin_ctz(lanes)]; }

inline void arrive(Warp &warp, const Block &block, u32 number, u32 lanes, bool waits) {
  const u32 id = uniform(warp, block.barrier, lanes) & 15;
  Barrier &barrier = warp.cta->barriers[id];
  barrier.arrived += __builtin_popcount(lanes);
  barrier.expected = block.threads == NONE ? 0 : uniform(warp, block.threads, lanes);
  const bool reduces = block.ending == BARRIER_REDUCE;
  if (reduces) barrier.holding += __builtin_popcount(predicate(warp, block.predicate) & lanes);
  add_fragment(warp, number + 1, block.next_rank, lanes, waits ? id : NONE, reduces ? &block : nullptr);
}

inline void end_block(Warp &warp, u32 number, const Block &block, u32 active) {
  const u32 lanes = block.guard == NONE ? active : active & predicate(warp, block.guard);
  const u32 rest = active & ~lanes;
  add_fragment(warp, number + 1, block.next_rank, block.ending == FALL_THROUGH ? active : rest);
  if (!lanes) return;
  switch (block.ending) {
    case BRANCH: add_fragment(warp, block.target, block.target_rank, lanes); break;
    case TRAP: stop(warp, TRAPPED, block.index); break;
    case BARRIER:
    case BARRIER_REDUCE: arrive(warp, block, number, lanes, true); break;
    case ARRIVE: arrive(warp, block, number, lanes, false); break;
    default: break;  // lanes that exit are in no fragment
  }
}

// Runs at most `quantum` blocks. False if every lane waits or has ended.
inline bool run_warp(Warp &warp, u32 quantum) {
  Launch &launch = warp.launch;
  const Program &program = launch.program;
  for (u32 turn = 0; turn < quantum; turn++) {
    u32 chosen = NONE, least = NONE;
    for (u32 i = 0; i < warp.num_fragments; i++) {
      const Fragment &fragment = warp.fragments[i];
      if (fragment.barrier == NONE && fragment.rank < least) chosen = i, least = fragment.rank;
    }
    if (chosen == NONE) return turn > 0;
    const u32 number = warp.fragments[chosen].block, active = warp.fragments[chosen].lanes;
    const Block &block = program.blocks[number];
    launch.block_executions[number]++;
    launch.block_lanes[number] += __builtin_popcount(active);
    warp.executed += block.length;
    launch.counters.warp_instructions += block.length;
    const Instruction *it = program.instructions + block.first, *end = it + block.count;
    for (; it < end; it++) {
      const u32 lanes = it->guard == NONE ? active : active & predicate(warp, it->guard);
      it->handler(warp, *it, lanes);
    }
    warp.fragments[chosen] = warp.fragments[--warp.num_fragments];
    end_block(warp, number, block, active);
    const Options &options = launch.options;
    if (warp.executed > options.warp_limit || launch.counters.warp_instructions > options.instruction_limit)
      stop(warp, INSTRUCTION_LIMIT, block.index);
    if (launch.stopped) return true;
  }
  return true;
}

// Lets go every lane that waits at a barrier, with the result of a reduction.
inline void release(Cta &cta, u32 id) {
  Barrier &barrier = cta.barriers[id];
  for (Warp *warp : cta.warps) {
    Fragment kept[LANES];
    const u32 count = warp->num_fragments;
    std::copy(warp->fragments, warp->fragments + count, kept);
    warp->num_fragments = 0;
    for (u32 i = 0; i < count; i++) {
      const Fragment &old = kept[i];
      if (old.barrier != id) {
        add_fragment(*warp, old.block, old.rank, old.lanes, old.barrier, old.reduction);
        continue;
      }
      if (old.reduction) {
        const u32 holding = barrier.holding, operation = old.reduction->operation;
        if (operation == COUNT) assign(row<u32>(*warp, old.reduction->result), old.lanes, [=](u32) { return holding; });
        else
          set_predicate(*warp, old.reduction->result, old.lanes,
                        (operation == ALL ? holding == barrier.arrived : holding > 0) ? EVERY_LANE : 0);
      }
      add_fragment(*warp, old.block, old.rank, old.lanes);
    }
  }
  barrier = Barrier{};
}

inline void release_complete_barriers(Launch &launch, Cta &cta) {
  for (u32 id = 0; id < 16; id++) {
    Barrier &barrier = cta.barriers[id];
    if (!barrier.arrived) continue;
    u32 expected = barrier.expected;
    if (!expected)
      for (Warp *warp : cta.warps) expected += __builtin_popcount(warp->living());
    if (barrier.arrived < expected) continue;
    launch.counters.barriers++;
    cta.phase++;
    release(cta, id);
  }
}

inline void start_warp(Warp &warp, u32 number) {
  const Options &options = warp.launch.options;
  const Program &program = warp.launch.program;
  const u32 *threads = options.threads, total = threads[0] * threads[1] * threads[2];
  std::memset(warp.rows[0], 0xCD, program.register_bytes);
  warp.first_thread = number * LANES;
  warp.executed = 0;
  warp.num_fragments = 0;
  const u32 living = std::min(LANES, total - warp.first_thread);
  add_fragment(warp, 0, 0, living == LANES ? EVERY_LANE : (1u << living) - 1);
  for (u32 i = 0; i < program.num_specials; i++) {
    const u32 special = program.specials[i].special;
    assign(row<u32>(warp, program.specials[i].row), EVERY_LANE, [&](u32 lane) {
      const u32 thread = warp.first_thread + lane;
      switch (special) {
        case TID_X: return thread % threads[0];
        case TID_Y: return thread / threads[0] % threads[1];
        case TID_Z: return thread / threads[0] / threads[1];
        case WARPID: return number;
        case SMID: return warp.cta->sm;
        default: break;
      }
      if (special >= NCTAID_X) return options.grid[special - NCTAID_X];
      return special >= CTAID_X ? warp.cta->id[special - CTAID_X] : threads[special - NTID_X];
    });
  }
}

class Scheduler {
 public:
  explicit Scheduler(Launch &launch) : launch_(launch), options_(launch.options) {
    total_ = u64(options_.grid[0]) * options_.grid[1] * options_.grid[2];
    num_warps_ = (options_.threads[0] * options_.threads[1] * options_.threads[2] + LANES - 1) / LANES;
  }

  void run() {
    // One CTA to each SM, then a second one, as hardware spreads them.
    for (u32 depth = 0; depth < options_.ctas_per_sm; depth++)
      for (u32 sm = 0; sm < options_.num_sms && next_ < total_; sm++) {
        slots_.push_back(make(sm));
        start(*slots_.back());
      }
    for (bool alive = true; alive && !launch_.stopped;) {
      alive = false;
      for (auto &cta : slots_) {
        if (!cta || launch_.stopped) continue;
        turn(*cta);
        if (cta->warps.empty()) cta.reset();
        else alive = true;
      }
    }
  }

 private:
  // Every warp of a CTA gets its turn; a CTA that has ended makes room for the next one.
  void turn(Cta &cta) {
    bool ran = false, living = false;
    for (u32 i = 0; i < num_warps_ && !launch_.stopped; i++) {
      Warp &warp = *cta.warps[options_.reversed ? num_warps_ - 1 - i : i];
      ran |= run_warp(warp, options_.quantum);
      release_complete_barriers(launch_, cta);
    }
    for (Warp *warp : cta.warps) living |= warp->num_fragments > 0;
    if (launch_.stopped) return;
    if (living && !ran) stop_waiting(cta);
    if (!living) {
      for (Warp *warp : cta.warps)
        launch_.counters.longest_warp = std::max(launch_.counters.longest_warp, warp->executed);
      if (next_ < total_) start(cta);
      else cta.warps.clear();
    }
  }

  void stop_waiting(Cta &cta) {
    for (Warp *warp : cta.warps)
      if (warp->num_fragments && warp->fragments[0].block > 0) {
        stop(*warp, BARRIER_DEADLOCK, launch_.program.blocks[warp->fragments[0].block - 1].index);
        return;
      }
  }

  std::unique_ptr<Cta> make(u32 sm) {
    auto cta = std::make_unique<Cta>();
    cta->sm = sm;
    const u64 bytes = (launch_.program.register_bytes + 63) / 64 * 64;
    for (u32 i = 0; i < num_warps_; i++) {
      registers_.emplace_back(static_cast<u8 *>(std::aligned_alloc(64, bytes)), std::free);
      u8 *constants = const_cast<u8 *>(launch_.program.constants);
      warps_.emplace_back(new Warp{launch_, cta.get(), {registers_.back().get(), constants}, 0, 0, 0, {}});
      cta->warps.push_back(warps_.back().get());
    }
    return cta;
  }

  void start(Cta &cta) {
    const u64 number = options_.reversed ? total_ - 1 - next_ : next_;
    next_++;
    const u32 *grid = options_.grid;
    cta.id[0] = u32(number % grid[0]);
    cta.id[1] = u32(number / grid[0] % grid[1]);
    cta.id[2] = u32(number / grid[0] / grid[1]);
    cta.shared.assign(options_.shared_bytes, 0xFF);  // NaN, to show what is read before it is written
    if (options_.races) cta.last_accesses.resize(options_.shared_bytes);
    cta.phase++;
    for (Barrier &barrier : cta.barriers) barrier = Barrier{};
    for (u32 i = 0; i < num_warps_; i++) start_warp(*cta.warps[i], i);
    launch_.counters.ctas++;
    launch_.counters.warps += num_warps_;
  }

  Launch &launch_;
  const Options &options_;
  u64 total_, next_ = 0;
  u32 num_warps_;
  std::vector<std::unique_ptr<Cta>> slots_;
  std::vector<std::unique_ptr<Warp>> warps_;
  std::vector<std::unique_ptr<u8, void (*)(void *)>> registers_;
};
