// Loads libtorch's CUDA library when the program starts. The library must be loaded before any code
// asks whether CUDA is available, because libtorch determines the answer once and keeps it. The
// program itself is linked only with libtorch's CPU library. Therefore the build gives the same
// program on machines with and without a CUDA build of libtorch, and on a machine without a GPU no
// time is spent on the CUDA library.

#include <dlfcn.h>
#include <unistd.h>

#include <string>

#include "driver.h"

namespace amp::cuda_library {
namespace {

// The outcome of loading. ffi/cuda_library.rs uses the same numbers.
enum Status : int { loaded = 0, no_driver = 1, not_installed = 2, failed = 3 };

struct Attempt {
  Status status;
  // The path of the library, or the reason why it could not be loaded.
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

// Runs after the initialisation of libtorch's CPU library, because the CUDA library depends on it.
__attribute__((constructor)) void load_at_start() { attempt(); }

}  // namespace

extern "C" {

// Returns the outcome of loading the CUDA library. Writes the path or the reason to `text`. This
// string stays valid until the process ends.
int amp_cuda_library(const char** text) {
  *text = attempt().text.c_str();
  return attempt().status;
}

}  // extern "C"

}  // namespace amp::cuda_library
