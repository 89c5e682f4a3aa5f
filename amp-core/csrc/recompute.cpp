// Activation checkpointing: a node of the autograd graph that saves a module's input instead of its
// activations. The node runs the module again when the gradient arrives.

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "cast.h"
#include "guard.h"
#include "own_kernels.h"
#include "random.h"

namespace amp::checkpoint {
namespace {

// The error text of the module that failed last on this thread.
thread_local std::string failure;

// A closure in Rust that runs the module. `run` returns a new tensor, or null if the module failed.
struct Module {
  void* state;
  at::Tensor* (*run)(void* state, const at::Tensor* input);
  void (*drop)(void* state);

  Module(void* state, at::Tensor* (*run)(void*, const at::Tensor*), void (*drop)(void*))
      : state(state), run(run), drop(drop) {}
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
  ~Module() { drop(state); }

  at::Tensor operator()(const at::Tensor& input) const {
    std::unique_ptr<at::Tensor> output(run(state, &input));
    if (output == nullptr) throw std::runtime_error("recomputing a checkpointed module: " + failure);
    return *output;
  }
};

// The state of autocast, and whether layers use the kernels of this crate.
struct Modes {
  c10::DeviceType device;
  bool enabled, cache, own_kernels;
  at::ScalarType dtype;

  explicit Modes(c10::DeviceType type)
      : device(type),
        enabled(at::autocast::is_autocast_enabled(type)),
        cache(at::autocast::is_autocast_cache_enabled()),
        own_kernels(amp::own_kernels()),
        dtype(at::autocast::get_autocast_dtype(type)) {}

  void set() const {
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, dtype);
    at::autocast::set_autocast_cache_enabled(cache);
    amp::set_own_kernels(own_kernels);
  }
};

// State of the module's first run that is set again during its second run: autocast, the choice of kernels and the
// random generator. Afterwards the state from before the second run is restored.
class Surroundings {
 public:
  explicit Surroundings(c10::Device device) : modes_(device.type()), random_(device) {}

  // Must be called after the first run of the module. If the module used no random number, its second run
  // does not set the generator, because another thread may be using it.
  void end_forward() {
    if (at::equal(amp::Random::read(random_->generator), random_->state)) random_.reset();
  }

  template <typename Body>
  auto restore(c10::Device device, Body&& body) {
    struct Outer {
      Modes modes;
      std::optional<amp::Random> random;
      ~Outer() {
        if (random) random->write(random->state);
        if (at::autocast::decrement_nesting() == 0) {
          at::autocast::clear_cache();
          amp::end_cast_weights();
        }
        modes.set();
      }
    } outer{Modes(device.type()), std::nullopt};
    if (random_) outer.random.emplace(device);
    at::autocast::increment_nesting();
    modes_.set();
    if (random_) random_->write(random_->state);
    return body();
  }

 private:
  Modes modes_;
  // The generator's state before the first run. Empty if the module uses no random numbers.
  std::optional<amp::Random> random_;
};

struct CheckpointNode : torch::autograd::Node {
  std::unique_ptr<Module> module;
  at::Tensor input;
  bool input_requires_grad;
  Surroundings surroundings;

  CheckpointNode(std::unique_ptr<Module> module, const at::Tensor& input, Surroundings surroundings)
      : module(std::move(module)),
        input(input.detach()),
        input_requires_grad(input.requires_grad()),
        surroundings(std::move(surroundings)) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    if (module == nullptr) {
      throw std::runtime_error(
          "the backward pass of a checkpointed module ran before and freed the tensors that it needs: keep the graph "
          "(retain_graph), or compute the loss again");
    }
    auto leaf = input.detach().requires_grad_(input_requires_grad);
    at::AutoGradMode enabled(true);
    auto output = surroundings.restore(input.device(), [&] { return (*module)(leaf); });
    // If all parameters that the module reads were frozen after the first run, the output of the second run requires no
    // gradient.
    if (!output.requires_grad()) return {at::Tensor()};
    torch::autograd::backward({output}, {grads.at(0)});
    return {leaf.grad()};
  }

  void release_variables() override {
    module.reset();
    input.reset();
  }

  std::string name() const override { return "AmpCheckpoint"; }
};

}  // namespace

extern "C" {

// Stores the reason why a module failed. The Rust closure calls this function before it returns null.
void amp_checkpoint_failed(const char* text, size_t length) { failure.assign(text, length); }

// Saves the autocast state, the choice of kernels and the random generator of `input`'s device. The result is
// passed to amp_checkpoint, or freed with amp_surroundings_drop.
int amp_surroundings(const at::Tensor* input, void** out) {
  return amp::guarded([&] { *out = new Surroundings(input->device()); });
}

void amp_surroundings_drop(void* surroundings) {
  delete static_cast<Surroundings*>(surroundings);
}

// Adds a node for `output` to the autograd graph. `output` was computed from `input` without gradients, in the state
// that `surroundings` holds. The function takes ownership of `surroundings` and of the closure's state, even if it
// returns an error.
int amp_checkpoint(void* surroundings, void* state, at::Tensor* (*run)(void*, const at::Tensor*),
                   void (*drop)(void*), const at::Tensor* input, const at::Tensor* output) {
  std::unique_ptr<Surroundings> noted(static_cast<Surroundings*>(surroundings));
  std::unique_ptr<void, void (*)(void*)> closure(state, drop);
  return amp::guarded([&] {
    auto module = std::make_unique<Module>(closure.get(), run, drop);
    closure.release();
    noted->end_forward();
    auto node = std::shared_ptr<CheckpointNode>(
        new CheckpointNode(std::move(module), *input, std::move(*noted)),
        torch::autograd::deleteNode);
    node->set_next_edges(torch::autograd::collect_next_edges(*input));
    torch::autograd::set_history(*output, node);
  });
}

}  // extern "C"

}  // namespace amp::checkpoint
