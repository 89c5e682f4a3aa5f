// The CUDA driver's own library: present wherever a GPU can be used, and its ABI is stable, so that
// neither CUDA headers nor a CUDA build are needed.
#pragma once

#include <ATen/Context.h>
#include <dlfcn.h>

#include <string>

namespace amp {

struct Library {
  void* handle;

  template <typename Function>
  Function* find(const char* name) const {
    return handle == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(handle, name));
  }
};

inline Library driver() { return {dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)}; }

// A library of libtorch's own folder; `flags` are dlopen's.
inline Library beside_libtorch(const char* name, int flags) {
  Dl_info here{};
  if (dladdr(reinterpret_cast<void*>(&at::globalContext), &here) == 0) return {nullptr};
  const std::string path(here.dli_fname);
  return {dlopen((path.substr(0, path.rfind('/') + 1) + name).c_str(), flags)};
}

}  // namespace amp
