#include "own_kernels.h"

namespace amp {
namespace {

thread_local bool own = true;

}  // namespace

bool own_kernels() { return own; }

void set_own_kernels(bool wanted) { own = wanted; }

extern "C" {

int amp_own_kernels() { return own ? 1 : 0; }

void amp_own_kernels_set(int wanted) { own = wanted != 0; }

}  // extern "C"

}  // namespace amp
