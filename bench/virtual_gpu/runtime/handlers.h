// What all handlers share: a handler applies one PTX instruction to the given lanes of a warp.
#pragma once
#include "warp.h"

struct NamedHandler {
  const char *name;  // opcode and type, without what does not change the result
  Handler handler;
};

// Formats say how a row is read and written (see scalars.h), operations are function objects on values.
template <class To, class From, class Operation>
void unary(Warp &warp, const Instruction &it, u32 lanes) {
  const auto *a = row<typename From::Row>(warp, it.first);
  assign(row<typename To::Row>(warp, it.target), lanes,
         [=](u32 lane) { return To::write(Operation()(From::read(a[lane]))); });
}

template <class Format, class Operation>
void binary(Warp &warp, const Instruction &it, u32 lanes) {
  const auto *a = row<typename Format::Row>(warp, it.first), *b = row<typename Format::Row>(warp, it.second);
  assign(row<typename Format::Row>(warp, it.target), lanes,
         [=](u32 lane) { return Format::write(Operation()(Format::read(a[lane]), Format::read(b[lane]))); });
}

template <class Format, class Operation>
void ternary(Warp &warp, const Instruction &it, u32 lanes) {
  using Row = typename Format::Row;
  const Row *a = row<Row>(warp, it.first), *b = row<Row>(warp, it.second), *c = row<Row>(warp, it.third);
  assign(row<Row>(warp, it.target), lanes, [=](u32 lane) {
    return Format::write(Operation()(Format::read(a[lane]), Format::read(b[lane]), Format::read(c[lane])));
  });
}

// An operation on both halves of packed values.
template <class Operation>
struct Both {
  template <class Result>
  struct Pair {
    Result low, high;
  };
  template <class... Values>
  auto operator()(Values... values) const {
    using Result = decltype(Operation()(values.low...));
    return Pair<Result>{Operation()(values.low...), Operation()(values.high...)};
  }
};
