// Shared libraries that are opened at run time, so that the build needs neither CUDA's headers nor a CUDA
// build of libtorch.
#pragma once

#include <ATen/Context.h>
#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace amp {

struct Library {
  void* handle;

  template <typename Function>
  Function* find(const char* name) const {
    return handle == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(handle, name));
  }
};

// Opens the library of the CUDA driver. The library exists wherever a GPU can be used, and its ABI is stable.
inline Library driver() { return {dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)}; }

// Returns the folder from which libtorch was loaded, with a slash at its end. Returns an empty text if the loader
// does not report the folder.
inline std::string libtorch_folder() {
  Dl_info here{};
  if (dladdr(reinterpret_cast<void*>(&at::globalContext), &here) == 0) return {};
  const std::string path(here.dli_fname);
  return path.substr(0, path.rfind('/') + 1);
}

// Opens a library in libtorch's folder. `flags` are the flags of dlopen.
inline Library beside_libtorch(const char* name, int flags) {
  return {dlopen((libtorch_folder() + name).c_str(), flags)};
}

// Returns a symbol of libtorch's CUDA library by its mangled name. The symbols can be found because cuda_library.cpp
// loads the library with RTLD_GLOBAL.
template <typename Function>
Function cuda_symbol(const char* name) {
  void* found = dlsym(RTLD_DEFAULT, name);
  if (found == nullptr) throw std::runtime_error(std::string("libtorch has no ") + name);
  return reinterpret_cast<Function>(found);
}

}  // namespace amp
