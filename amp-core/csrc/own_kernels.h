// Selects the kernels of layers and losses: this crate's or libtorch's.
#pragma once

namespace amp {

// Returns whether layers and losses on this thread use the kernels of this crate where such kernels
// exist. Otherwise layers and losses use only libtorch's operators. Backward passes use the kernels
// of their forward pass.
bool own_kernels();
void set_own_kernels(bool own);

}  // namespace amp
