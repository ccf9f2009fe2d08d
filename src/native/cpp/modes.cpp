// Autocast, a mode of each thread.

#include "shim.h"

#include <ATen/autocast_mode.h>

extern "C" {

// `device` is a c10::DeviceType, `type` a c10::ScalarType or -1 to leave the type as it is.
char* suite_autocast_enter(int8_t device, bool enabled, int8_t type, bool* previously_enabled, int8_t* previous_type) {
  return suite::guarded([&] {
    const auto device_type = static_cast<c10::DeviceType>(device);
    *previously_enabled = at::autocast::is_autocast_enabled(device_type);
    *previous_type = static_cast<int8_t>(at::autocast::get_autocast_dtype(device_type));
    if (type >= 0) at::autocast::set_autocast_dtype(device_type, static_cast<at::ScalarType>(type));
    at::autocast::set_autocast_enabled(device_type, enabled);
    at::autocast::increment_nesting();
  });
}

char* suite_autocast_exit(int8_t device, bool previously_enabled, int8_t previous_type) {
  return suite::guarded([&] {
    const auto device_type = static_cast<c10::DeviceType>(device);
    // The cache holds parameters cast to the low precision: the optimizer is about to change them.
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device_type, previously_enabled);
    at::autocast::set_autocast_dtype(device_type, static_cast<at::ScalarType>(previous_type));
  });
}

}  // extern "C"
