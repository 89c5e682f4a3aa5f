// Random generators, and events that measure times on a device.

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <memory>
#include <optional>

#include "guard.h"
#include "random.h"

namespace amp::run {
namespace {

// A copy of the CPU generator's state. Making this copy is faster than reading libtorch's state tensor, which
// libtorch builds word by word in some microseconds.
struct CpuRandom {
  at::mt19937 engine;
  std::optional<float> next_float;
  std::optional<double> next_double;

  static CpuRandom of(at::CPUGeneratorImpl& generator) {
    return {generator.engine(), generator.next_float_normal_sample(),
            generator.next_double_normal_sample()};
  }
  void write(at::CPUGeneratorImpl& generator) const {
    generator.set_engine(engine);
    generator.set_next_float_normal_sample(next_float);
    generator.set_next_double_normal_sample(next_double);
  }
};

// The last state that this thread dropped. It is kept because its memory can be used again: each step saves a
// state and drops the previous one, and an allocation of this size is slow.
thread_local std::unique_ptr<CpuRandom> spare;

CpuRandom* note(at::CPUGeneratorImpl& generator) {
  if (!spare) return new CpuRandom(CpuRandom::of(generator));
  *spare = CpuRandom::of(generator);
  return spare.release();
}

at::CPUGeneratorImpl& cpu(const at::Generator& generator) {
  return *at::check_generator<at::CPUGeneratorImpl>(generator);
}

c10::Device device(int cuda) {
  return cuda < 0 ? c10::Device(c10::DeviceType::CPU)
                  : c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(cuda));
}

}  // namespace

extern "C" {

// Reads the state of a CUDA generator. `cuda` is the index of the device. The caller owns the new tensor.
int amp_random_get(int cuda, at::Tensor** out) {
  return amp::guarded([&] { *out = new at::Tensor(amp::Random(device(cuda)).state); });
}

int amp_random_set(int cuda, const at::Tensor* state) {
  return amp::guarded([&] { amp::Random(device(cuda)).write(*state); });
}

// Seeds the generators of all devices, as torch.manual_seed does. Fails while a CUDA graph is captured.
int amp_random_seed_all(uint64_t seed) {
  return amp::guarded([&] { at::manual_seed(seed); });
}

// Seeds the generator of a CUDA device.
int amp_random_seed(int cuda, uint64_t seed) {
  return amp::guarded([&] {
    at::Generator generator = at::globalContext().defaultGenerator(device(cuda));
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(seed);
  });
}

// Reads the state of the CPU's default generator. The caller frees the result with amp_cpu_random_drop.
int amp_cpu_random_read(void** out) {
  return amp::guarded([&] {
    auto generator = at::detail::getDefaultCPUGenerator();
    std::lock_guard<std::mutex> lock(generator.mutex());
    *out = note(cpu(generator));
  });
}

int amp_cpu_random_write(const void* random) {
  return amp::guarded([&] {
    auto generator = at::detail::getDefaultCPUGenerator();
    std::lock_guard<std::mutex> lock(generator.mutex());
    static_cast<const CpuRandom*>(random)->write(cpu(generator));
  });
}

// Seeds the CPU's default generator as torch.manual_seed does, and no generator of another device.
int amp_cpu_random_seed(uint64_t seed) {
  return amp::guarded([&] {
    auto generator = at::detail::getDefaultCPUGenerator();
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(seed);
  });
}

// Returns the state as a new tensor in the layout of torch.get_rng_state(). The caller owns the tensor.
int amp_cpu_random_tensor(const void* random, at::Tensor** out) {
  return amp::guarded([&] {
    const auto generator = at::detail::createCPUGenerator();
    static_cast<const CpuRandom*>(random)->write(cpu(generator));
    *out = new at::Tensor(generator.get_state());
  });
}

// Makes a state from a tensor that amp_cpu_random_tensor returned. The caller frees the state with
// amp_cpu_random_drop.
int amp_cpu_random_of(const at::Tensor* state, void** out) {
  return amp::guarded([&] {
    auto generator = at::detail::createCPUGenerator();
    generator.set_state(*state);
    *out = note(cpu(generator));
  });
}

void amp_cpu_random_drop(void* random) { spare.reset(static_cast<CpuRandom*>(random)); }

// Records an event in the device's current stream. The caller frees the event with amp_event_drop.
int amp_event_record(int cuda, void** out) {
  return amp::guarded([&] {
    // With this flag the event stores its time. PyTorch's events do not store their time by default.
    auto event = std::make_unique<c10::Event>(c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT);
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    event->record(guard.getStream(device(cuda)));
    *out = event.release();
  });
}

// Writes the time in milliseconds between two events of one device. Waits for the later event.
int amp_event_elapsed(const void* from, const void* to, double* milliseconds) {
  return amp::guarded([&] {
    const auto& end = *static_cast<const c10::Event*>(to);
    end.synchronize();
    *milliseconds = static_cast<const c10::Event*>(from)->elapsedTime(end);
  });
}

int amp_event_synchronize(const void* event) {
  return amp::guarded([&] { static_cast<const c10::Event*>(event)->synchronize(); });
}

void amp_event_drop(void* event) { delete static_cast<c10::Event*>(event); }

}  // extern "C"

}  // namespace amp::run
