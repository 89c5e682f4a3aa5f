// Loads libtorch's CUDA library when the program starts. This happens before any code can ask
// whether CUDA is available, because libtorch determines that once and keeps the answer. The
// program is linked only with the CPU library. It is therefore the same wherever it was built, and
// a machine without a GPU does not spend time on loading the CUDA library.

#include <dlfcn.h>
#include <unistd.h>

#include <string>

#include "driver.h"

namespace amp::cuda_library {
namespace {

// Has the same values as in Rust (ffi/cuda_library.rs).
enum Status : int { loaded = 0, no_driver = 1, not_installed = 2, failed = 3 };

struct Attempt {
  Status status;
  // The library's path, or the reason why it could not be loaded.
  std::string text;
};

Attempt load() {
  const auto path = libtorch_folder() + "libtorch_cuda.so";
  if (driver().handle == nullptr) return {no_driver, path};
  if (access(path.c_str(), F_OK) != 0) return {not_installed, path};
  if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) return {loaded, path};
  const char* reason = dlerror();
  return {failed, reason == nullptr ? "the loader gives no reason" : reason};
}

const Attempt& attempt() {
  static const Attempt made = load();
  return made;
}

// Runs after libtorch's CPU library is initialised, because this library depends on it.
__attribute__((constructor)) void load_at_start() { attempt(); }

}  // namespace

extern "C" {

// Returns the result of loading. `text` stays valid.
int amp_cuda_library(const char** text) {
  *text = attempt().text.c_str();
  return attempt().status;
}

}  // extern "C"

}  // namespace amp::cuda_library
