// Adam steps of our own on CUDA devices (kernels/adam.cu).

#include "guard.h"
#include "kernels/adam.cu.h"
#include "kernels/adam.h"
#include "step.h"

extern "C" {

// params, grads, exp_avgs, exp_avg_sqs, steps (f32 scalars, counted here).
int amp_adam_on_device(const amp::Handle* const* lists, size_t count, const AmpAdam* options,
                       const AmpOnDevice* known) {
  return amp::guarded([&] {
    static amp::KernelSource source("adam.cu", amp_kernels_adam);
    amp::Step step(lists, count, *known);
    step.for_tensors(source, "count_steps");
    step.run(source, options);
  });
}

}  // extern "C"
