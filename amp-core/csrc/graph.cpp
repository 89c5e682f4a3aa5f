// CUDA graphs: the kernels of a training step are captured once and then launched with one call. The code calls
// libtorch's class CUDAGraph by its symbol names, so that the build needs neither CUDA's headers nor CUDA's libraries.

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "copy.h"
#include "driver.h"
#include "guard.h"

namespace amp::graph {
namespace {

using PoolId = std::pair<unsigned long long, unsigned long long>;

// A wrapper of at::cuda::CUDAGraph of libtorch 2.11.0 (ATen/cuda/CUDAGraph.h). The member functions are called by their
// mangled names. Each member function takes the object as its first argument (Itanium C++ ABI).
class CudaGraph {
 public:
  CudaGraph() { cuda_symbol<void (*)(void*, bool)>("_ZN2at4cuda9CUDAGraphC1Eb")(object_, false); }
  ~CudaGraph() { cuda_symbol<void (*)(void*)>("_ZN2at4cuda9CUDAGraphD1Ev")(object_); }
  CudaGraph(const CudaGraph&) = delete;

  void capture_begin() {
    // The value of cudaStreamCaptureModeThreadLocal. With this mode other threads, such as those that load data, may
    // allocate memory during a capture.
    constexpr int thread_local_mode = 1;
    cuda_symbol<void (*)(void*, PoolId, int)>(
        "_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode")(
        object_, PoolId{0, 0}, thread_local_mode);
  }
  void capture_end() { cuda_symbol<void (*)(void*)>("_ZN2at4cuda9CUDAGraph11capture_endEv")(object_); }
  void replay() { replay_(object_); }

 private:
  // Memory for the object, which needs about 150 bytes.
  alignas(16) unsigned char object_[512];
  void (*replay_)(void*) = cuda_symbol<void (*)(void*)>("_ZN2at4cuda9CUDAGraph6replayEv");
};

// Frees the workspaces of cuBLAS. cuBLAS keeps a workspace (32 MiB on recent devices) for each stream that it has
// used, even if the stream is not used again. A workspace that a captured graph uses stays reserved for the graph.
void clear_cublas_workspaces() {
  cuda_symbol<void (*)()>("_ZN2at4cuda21clearCublasWorkspacesEv")();
}

// Replaces the state of the device's generator by a copy. If the driver aborts a capture, the generator stays in its
// capturing state and then refuses to return random numbers. A copy of the state is not in the capturing state.
void leave_capture(c10::Device device) {
  auto generator = at::globalContext().defaultGenerator(device);
  std::lock_guard<std::mutex> lock(generator.mutex());
  generator.graphsafe_set_state(generator.clone());
}

struct Capture {
  explicit Capture(c10::Stream stream) : guard(std::in_place, stream) {}
  CudaGraph graph;
  std::optional<c10::StreamGuard> guard;
};

}  // namespace

extern "C" {

// Starts a capture. Until amp_graph_end is called, the work that this thread starts on the device is recorded and not
// executed. The caller frees the capture with amp_graph_drop.
int amp_graph_begin(int index, void** out) {
  return amp::guarded([&] {
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    const c10::impl::VirtualGuardImpl impl(device.type());
    // The device finishes all earlier work now, because nothing may wait for earlier work during the capture.
    impl.synchronizeDevice(device.index());
    clear_cublas_workspaces();
    auto capture = std::make_unique<Capture>(impl.getStreamFromGlobalPool(device));
    capture->graph.capture_begin();
    *out = capture.release();
  });
}

// Ends the capture, whether or not the captured work can be used.
int amp_graph_end(void* handle) {
  auto& capture = *static_cast<Capture*>(handle);
  const auto device = capture.guard->current_stream().device();
  const int status = amp::guarded([&] {
    struct Generator {
      c10::Device device;
      bool ended = false;
      ~Generator() {
        if (!ended) leave_capture(device);
      }
    } generator{device};
    capture.graph.capture_end();
    generator.ended = true;
    clear_cublas_workspaces();
  });
  capture.guard.reset();
  return status;
}

int amp_graph_drop(void* handle) {
  return amp::guarded([&] { delete static_cast<Capture*>(handle); });
}

// Launches the captured work on the device's current stream, and then copies `from` to `to`, which is in pinned
// memory. `event` is recorded after the copy. The caller frees the event with amp_event_drop.
int amp_graph_launch(void* handle, const at::Tensor* from, const at::Tensor* to, void** event) {
  return amp::guarded([&] {
    const c10::NoGradGuard no_grad;
    static_cast<Capture*>(handle)->graph.replay();
    amp::copy::to_pinned(*to, *from);
    auto done = std::make_unique<c10::Event>(c10::DeviceType::CUDA);
    const c10::impl::VirtualGuardImpl impl(c10::DeviceType::CUDA);
    done->record(impl.getStream(from->device()));
    *event = done.release();
  });
}

// Makes each tensor of `grads` the gradient of the parameter at the same index.
int amp_set_grads(const at::Tensor* const* parameters, const at::Tensor* const* grads,
                  size_t count) {
  return amp::guarded([&] {
    for (size_t i = 0; i < count; ++i) parameters[i]->mutable_grad() = *grads[i];
  });
}

}  // extern "C"

}  // namespace amp::graph
