// Libraries that are found where they are needed, so that neither CUDA's headers nor a CUDA build are.
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

// The CUDA driver's own: present wherever a GPU can be used, and its ABI is stable.
inline Library driver() { return {dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)}; }

// The folder that libtorch was loaded from, with the slash at its end; empty if the loader cannot say.
inline std::string libtorch_folder() {
  Dl_info here{};
  if (dladdr(reinterpret_cast<void*>(&at::globalContext), &here) == 0) return {};
  const std::string path(here.dli_fname);
  return path.substr(0, path.rfind('/') + 1);
}

// A library of libtorch's own folder; `flags` are dlopen's.
inline Library beside_libtorch(const char* name, int flags) {
  return {dlopen((libtorch_folder() + name).c_str(), flags)};
}

// A symbol of libtorch's CUDA half by its mangled name: the library was loaded with its symbols for
// all (cuda_library.cpp).
template <typename Function>
Function cuda_symbol(const char* name) {
  void* found = dlsym(RTLD_DEFAULT, name);
  if (found == nullptr) throw std::runtime_error(std::string("libtorch has no ") + name);
  return reinterpret_cast<Function>(found);
}

}  // namespace amp
