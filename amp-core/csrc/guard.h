// Every entry point runs inside `guarded`: a C++ exception never crosses into Rust.
#pragma once

#include <cstring>
#include <exception>
#include <string>

namespace amp {

// The text of the last exception on this thread; Rust takes it through amp_take_error.
inline thread_local std::string last_error;

// Runs `body`; 0 when it returned, 1 when it threw.
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
