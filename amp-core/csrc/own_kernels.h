// Whether layers and losses run by kernels of ours.
#pragma once

namespace amp {

// Whether layers and losses that this thread runs take kernels of ours where there are some, or else libtorch's
// operators alone. Backward passes follow the forward pass.
bool own_kernels();
void set_own_kernels(bool own);

}  // namespace amp
