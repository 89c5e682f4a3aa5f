// Converts C++ exceptions to error codes. Every function that Rust calls runs its body in
// `guarded`, so that no exception reaches Rust.
#pragma once

#include <cstring>
#include <exception>
#include <string>

namespace amp {

// The text of the last exception on this thread. Rust reads the text through amp_take_error.
inline thread_local std::string last_error;

// Runs `body` and returns 0. Returns 1 if `body` threw an exception.
template <typename Body>
int guarded(Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an exception that is not a std::exception";
  }
  if (last_error.empty()) last_error = "an exception without text";
  return 1;
}

}  // namespace amp
