// Which instruction set runs: the best that the processor has, or the one forced by a test.
#pragma once
#include "kernel_table.h"

namespace tk {

const Kernels& kernels();
// Null-terminated list of what this machine can run, best first.
const Kernels* const* available_kernels();
// Why the processor's tile unit cannot be used; empty where it can, or where there is none.
const char* tile_unit_refused();
// False if this build or this processor does not have it.
bool force_kernels(const char* name);

}  // namespace tk
