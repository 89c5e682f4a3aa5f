#include "kernel.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "driver.h"

namespace amp {

namespace kernel {
namespace {

// The functions of cuda.h and nvrtc.h that this file calls. CUDA's handle types are declared as pointers.
struct Functions {
  int (*device_get)(int*, int);
  int (*attribute)(int*, int, int);
  int (*context_current)(void**);
  int (*context_set)(void*);
  int (*context_retain)(void**, int);
  int (*module_load)(void**, const void*);
  int (*module_function)(void**, void*, const char*);
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                void**, void**);
  int (*error_name)(int, const char**);
  int (*create)(void**, const char*, const char*, int, const char* const*, const char* const*);
  int (*compile)(void*, int, const char* const*);
  int (*log_size)(void*, size_t*);
  int (*log)(void*, char*);
  int (*cubin_size)(void*, size_t*);
  int (*cubin)(void*, char*);
  int (*destroy)(void**);
};

template <typename Function>
void find(const amp::Library& library, const char* name, Function*& out) {
  out = library.find<Function>(name);
  if (out == nullptr) throw std::runtime_error(std::string("the CUDA driver or NVRTC has no function ") + name);
}

// Opens NVRTC's library of built-in functions, which is in the same folder as NVRTC. NVRTC opens the
// library by its bare name. The loader finds the bare name only on the search path, or if the library is
// already open, as it is after this call.
void load_builtins(const amp::Library& compiler) {
  int (*version)(int*, int*);
  find(compiler, "nvrtcVersion", version);
  int major = 0, minor = 0;
  Dl_info here{};
  if (version(&major, &minor) != 0 || dladdr(reinterpret_cast<void*>(version), &here) == 0) return;
  const std::string path(here.dli_fname);
  const auto name = "libnvrtc-builtins.so." + std::to_string(major) + "." + std::to_string(minor);
  // The result is not checked, because the compiler reports a missing library itself.
  dlopen((path.substr(0, path.rfind('/') + 1) + name).c_str(), RTLD_NOW | RTLD_LOCAL);
}

const Functions& functions() {
  static const Functions found = [] {
    const auto driver = amp::driver();
    // libcaffe2_nvrtc.so is linked with NVRTC and knows NVRTC's path, so NVRTC's functions can be found
    // through it.
    const auto compiler = amp::beside_libtorch("libcaffe2_nvrtc.so", RTLD_NOW | RTLD_LOCAL);
    Functions f{};
    find(driver, "cuDeviceGet", f.device_get);
    find(driver, "cuDeviceGetAttribute", f.attribute);
    find(driver, "cuCtxGetCurrent", f.context_current);
    find(driver, "cuCtxSetCurrent", f.context_set);
    find(driver, "cuDevicePrimaryCtxRetain", f.context_retain);
    find(driver, "cuModuleLoadData", f.module_load);
    find(driver, "cuModuleGetFunction", f.module_function);
    find(driver, "cuLaunchKernel", f.launch);
    find(driver, "cuGetErrorName", f.error_name);
    find(compiler, "nvrtcCreateProgram", f.create);
    find(compiler, "nvrtcCompileProgram", f.compile);
    find(compiler, "nvrtcGetProgramLogSize", f.log_size);
    find(compiler, "nvrtcGetProgramLog", f.log);
    find(compiler, "nvrtcGetCUBINSize", f.cubin_size);
    find(compiler, "nvrtcGetCUBIN", f.cubin);
    find(compiler, "nvrtcDestroyProgram", f.destroy);
    load_builtins(compiler);
    return f;
  }();
  return found;
}

void check(int status, const std::string& what) {
  if (status == 0) return;
  const char* name = nullptr;
  functions().error_name(status, &name);
  throw std::runtime_error(what + ": " + (name == nullptr ? "unknown error" : name));
}

std::string architecture(int index) {
  // The numbers 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
  int device = 0, major = 0, minor = 0;
  check(functions().device_get(&device, index), "finding the device");
  check(functions().attribute(&major, 75, device), "reading the compute capability");
  check(functions().attribute(&minor, 76, device), "reading the compute capability");
  return "sm_" + std::to_string(major) + std::to_string(minor);
}

// Makes the device's context current on this thread. libtorch does this at the thread's first call of the
// CUDA runtime. A backward pass runs on other threads, and the first kernel on such a thread may be a
// kernel of this crate.
void ensure_context(c10::Device device) {
  const auto& f = functions();
  void* context = nullptr;
  check(f.context_current(&context), "reading the current CUDA context");
  if (context != nullptr) return;
  int own = 0;
  check(f.device_get(&own, device.index()), "finding the device");
  // `context` becomes the device's primary context, which is retained until the process ends.
  check(f.context_retain(&context, own), "finding the context");
  check(f.context_set(context), "setting the context");
}

std::vector<char> compile(const char* file, const char* text, const std::string& architecture,
                          const amp::Types& types) {
  const auto& f = functions();
  void* program = nullptr;
  if (f.create(&program, text, file, 0, nullptr, nullptr) != 0) {
    throw std::runtime_error("libtorch's run-time compiler (NVRTC) cannot be used");
  }
  std::vector<std::string> options{"--gpu-architecture=" + architecture, "--std=c++17"};
  const char* names[] = {"AMP_T", "AMP_P", "AMP_Q", "AMP_R", "AMP_N"};
  for (size_t i = 0; i < types.size(); ++i) {
    options.push_back(std::string("--define-macro=") + names[i] + "=" + types[i]);
  }
  std::vector<const char*> given;
  for (const auto& option : options) given.push_back(option.c_str());
  const int status = f.compile(program, static_cast<int>(given.size()), given.data());
  size_t size = 0;
  std::vector<char> out;
  if (status == 0) {
    f.cubin_size(program, &size);
    out.resize(size);
    f.cubin(program, out.data());
  } else {
    f.log_size(program, &size);
    out.resize(size);
    f.log(program, out.data());
  }
  f.destroy(&program);
  if (status != 0) {
    throw std::runtime_error(std::string("compiling ") + file + " for " + architecture + ": " +
                             std::string(out.begin(), out.end()));
  }
  return out;
}

// Reads a file in the folder that AMP_KERNELS names. Returns an empty text if the file is missing.
std::string read(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream text;
  if (in) text << in.rdbuf();
  return text.str();
}

// Returns the text that replaces a built-in kernel file in an experiment. The environment variable
// AMP_KERNELS names a folder like kernels/. Results may differ from those of the built-in kernels, so a line
// on standard error reports each replaced file. Returns an empty text if the file is not replaced.
std::string tried(const char* file) {
  const char* folder = std::getenv("AMP_KERNELS");
  if (folder == nullptr || *folder == 0) return "";
  const auto at = std::string(folder) + "/";
  const auto own = read(at + file);
  if (own.empty()) return "";
  std::fprintf(stderr, "AMP_KERNELS: %s is read from the folder %s instead of the built-in source\n",
               file, folder);
  const std::string name(file);
  const auto shared = read(at + name.substr(0, name.rfind('.')) + ".h");
  return read(at + "common.h") + read(at + "common.cuh") + shared + own;
}

}  // namespace
}  // namespace kernel

void* KernelSource::module(c10::Device device, const Types& types) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto& found = modules_[{device.index(), types}];
  if (found == nullptr) {
    const auto tried = kernel::tried(file_);
    const auto binary = kernel::compile(file_, tried.empty() ? text_ : tried.c_str(),
                                        kernel::architecture(device.index()), types);
    kernel::check(kernel::functions().module_load(&found, binary.data()),
                  std::string("loading ") + file_);
  }
  return found;
}

void KernelSource::launch(const char* name, const Types& types, c10::Device device,
                          unsigned blocks, unsigned threads, void** arguments) {
  // The device is made current, because ensure_context and the launch apply to the current device.
  const c10::DeviceGuard guard(device);
  kernel::ensure_context(device);
  const c10::impl::VirtualGuardImpl impl(device.type());
  const auto& f = kernel::functions();
  void* function = nullptr;
  kernel::check(f.module_function(&function, module(device, types), name),
                std::string("finding ") + name);
  kernel::check(f.launch(function, blocks, 1, 1, threads, 1, 1, 0,
                         impl.getStream(device).native_handle(), arguments, nullptr),
                std::string("starting ") + name);
}

}  // namespace amp
