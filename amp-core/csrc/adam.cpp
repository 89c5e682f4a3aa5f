// Adam and AdamW steps by this crate's own kernel on CUDA devices (kernels/adam.cu).

#include "guard.h"
#include "kernels/adam.cu.h"
#include "options.h"
#include "philox.h"
#include "step.h"

namespace amp::adam {
extern "C" {

// Runs an Adam or AdamW step. `lists` are params, grads, exp_avgs, exp_avg_sqs and steps (f32 scalars, which this
// function increments). With 8-bit averages, the lists exp_avg_scales and exp_avg_sq_scales follow. The averages are
// exp_avg and exp_avg_sq. An average has the layout of its parameter, and the parameter's dtype or bfloat16. An 8-bit
// average instead consists of contiguous u8 codes in whole blocks of 256. With 8-bit averages, `code` contains four
// tensors: the values (f32 [256]) and the bounds (f32 [255]) of exp_avg's codes, and the values and the bounds of
// exp_avg_sq's codes.
int amp_adam_on_device(const amp::Handle* const* lists, size_t count, const AmpAdam* options,
                       const amp::Handle* code, const AmpOnDevice* known) {
  return amp::guarded([&] {
    static amp::KernelSource source("adam.cu", amp_kernels_adam);
    if (count == 0) return;
    amp::Step step(lists, count, *known);
    const auto dtype = lists[0][0]->scalar_type(), kept = lists[2][0]->scalar_type();
    const bool coded = kept == at::kByte;
    const auto types = step.types(coded ? dtype : kept);
    for (auto& start : step.starts()) {
      step.on_tensors(source, types, "count_steps", start);
      if (coded) {
        const auto table = [&](int at) { return code[at]->const_data_ptr<float>(); };
        const Code exp_avg_code{table(0), table(1)}, exp_avg_sq_code{table(2), table(3)};
        step.on_elements(source, types, "step_8bit", start,
                         {options, &exp_avg_code, &exp_avg_sq_code});
      } else {
        // If the averages have fewer bits than their parameters, the averages are rounded stochastically
        // with these random numbers.
        at::PhiloxCudaState random;
        if (kept != dtype) random = amp::draw_random(known->rates->device());
        step.on_elements(source, types, "step", start, {options, &random});
      }
    }
  });
}

}  // extern "C"

}  // namespace amp::adam
