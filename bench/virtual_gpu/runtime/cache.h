// A set-associative cache of 128-byte lines with four 32-byte sectors each, least recently used line out first.
#pragma once
#include <vector>
#include "scalars.h"

class Cache {
 public:
  void resize(u64 bytes, u32 ways) {
    ways_ = ways;
    sets_ = bytes / 128 / ways ? bytes / 128 / ways : 1;
    lines_.assign(sets_ * ways, Line{~0ull, 0, 0, 0});
  }

  // Marks a line's sectors as present. Returns those that were; adds the dirty sectors pushed out to `written_back`.
  u32 access(u64 line, u32 sectors, bool write, u64 &written_back) {
    Line *set = &lines_[set_of(line)], *oldest = set;
    clock_++;
    for (Line *way = set; way < set + ways_; way++) {
      if (way->tag == line) {
        const u32 present = way->valid & sectors;
        way->used = clock_;
        way->valid |= sectors;
        if (write) way->dirty |= sectors;
        return present;
      }
      if (way->used < oldest->used) oldest = way;
    }
    written_back += __builtin_popcount(oldest->dirty);
    *oldest = Line{line, clock_, u8(sectors), u8(write ? sectors : 0)};
    return 0;
  }

  void invalidate(u64 line, u32 sectors) {
    Line *set = &lines_[set_of(line)];
    for (Line *way = set; way < set + ways_; way++)
      if (way->tag == line) way->valid &= ~sectors;
  }

  u64 dirty_sectors() const {
    u64 sum = 0;
    for (const Line &line : lines_) sum += __builtin_popcount(line.dirty);
    return sum;
  }

 private:
  struct Line {
    u64 tag, used;
    u8 valid, dirty;
  };
  // Hashed, as hardware does, so that power-of-two strides do not fall into one set.
  u64 set_of(u64 line) const { return ((line * 0x9E3779B97F4A7C15ull) >> 40) % sets_ * ways_; }

  std::vector<Line> lines_;
  u64 sets_ = 1, clock_ = 0;
  u32 ways_ = 1;
};
