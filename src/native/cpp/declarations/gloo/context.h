// libtorch is distributed without gloo's headers, but its own ProcessGroupGloo.hpp includes some. What lies here declares as much
// of gloo's types as that header needs: they are only held through shared pointers that libtorch itself has made, so that their
// sizes do not matter.
#pragma once

#include <chrono>

namespace gloo {
class Context {
 public:
  // The one member that ProcessGroupGloo.hpp calls. It is not virtual.
  void setTimeout(std::chrono::milliseconds timeout);
};
}  // namespace gloo
