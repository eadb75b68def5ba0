// A decoded kernel as Python hands it over: plain records. `bench/virtual_gpu/native.py` has the same layout.
#pragma once
#include "scalars.h"

struct Warp;
struct Instruction;
using Handler = void (*)(Warp &, const Instruction &, u32 lanes);

constexpr u32 LANES = 32;
constexpr u32 EVERY_LANE = ~0u;
constexpr u32 NONE = ~0u;  // an operand, guard, list or target that is not there

// An operand is the byte offset of its row of 32 lanes, a multiple of 64; the low bits say where and how to read it.
constexpr u32 IN_CONSTANTS = 1;  // in the table of constants, not in the warp's registers
constexpr u32 NEGATED = 2;       // a predicate read as its opposite
constexpr u32 OFFSET = ~63u;

enum Space : u32 { GENERIC, SHARED, PARAMETER };

struct Instruction {
  union {
    u64 number;  // index into the handlers' table, as Python writes it
    Handler handler;
  };
  u32 target, first, second, third;  // operands; a second target is in `extra`
  u32 extra;
  u32 guard;     // predicate, or NONE
  u32 list;      // start of a vector's operands in `Program::lists`
  u32 count;     // elements of that vector
  u32 site;      // index of a memory instruction's counters
  u32 option;    // what a handler needs besides: a `Space`, a mode, a width in bytes
  u32 flags;
  u32 index;     // in the program, for messages
  s64 immediate; // an address offset or a table
};

enum Flag : u32 { NARROW_ADDRESS = 1, BYPASS_L1 = 2 };

// A basic block and how it ends; block `i` falls through to `i + 1`.
enum Ending : u32 { FALL_THROUGH, BRANCH, EXIT, TRAP, BARRIER, ARRIVE, BARRIER_REDUCE };
struct Block {
  u32 first, count;   // its instructions, the ending not among them
  u32 length;         // instructions, the ending among them
  u32 ending, guard;  // whose lanes the ending is for
  u32 target;         // block of a branch
  u32 barrier, threads;  // operands of a barrier; `threads` NONE: every thread of the CTA
  u32 predicate, result, operation;  // of bar.red
  u32 index;          // of the ending in the program, for messages
  u32 next_rank, target_rank;  // of lanes that go to the next block, to the target
};
enum BarrierOperation : u32 { COUNT, ALL, ANY };

enum Special : u32 { TID_X, TID_Y, TID_Z, NTID_X, NTID_Y, NTID_Z, CTAID_X, CTAID_Y, CTAID_Z, NCTAID_X, NCTAID_Y,
                     NCTAID_Z, WARPID, SMID };
struct SpecialRow {
  u32 special, row;
};

struct Program {
  Instruction *instructions;
  const Block *blocks;
  const u32 *lists;
  const SpecialRow *specials;
  const u8 *constants;
  u32 num_instructions, num_blocks, num_specials, num_sites, register_bytes;
};
