// Loads libraries at run time, so that neither CUDA's headers nor a CUDA build is needed.
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

// The CUDA driver's library: present wherever a GPU can be used, with a stable ABI.
inline Library driver() { return {dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)}; }

// The folder of libtorch with a trailing slash; empty if the loader does not know it.
inline std::string libtorch_folder() {
  Dl_info here{};
  if (dladdr(reinterpret_cast<void*>(&at::globalContext), &here) == 0) return {};
  const std::string path(here.dli_fname);
  return path.substr(0, path.rfind('/') + 1);
}

// A library in libtorch's folder; `flags` are dlopen's.
inline Library beside_libtorch(const char* name, int flags) {
  return {dlopen((libtorch_folder() + name).c_str(), flags)};
}

// A symbol of libtorch's CUDA library by its mangled name: the library was loaded with global
// symbols (cuda_library.cpp).
template <typename Function>
Function cuda_symbol(const char* name) {
  void* found = dlsym(RTLD_DEFAULT, name);
  if (found == nullptr) throw std::runtime_error(std::string("libtorch has no ") + name);
  return reinterpret_cast<Function>(found);
}

}  // namespace amp
