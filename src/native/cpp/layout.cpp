// Memory layouts of image batches.

#include "shim.h"

extern "C" {

char* suite_channels_last(const at::Tensor* tensor, at::Tensor** result) {
  return suite::guarded([&] {
    TORCH_CHECK(tensor->dim() == 4, "the channels-last layout needs a tensor [batch, channels, height, width], not one of ",
                tensor->dim(), " dimensions");
    suite::give(result, tensor->contiguous(at::MemoryFormat::ChannelsLast));
  });
}

char* suite_is_channels_last(const at::Tensor* tensor, bool* result) {
  return suite::guarded([&] { *result = tensor->is_contiguous(at::MemoryFormat::ChannelsLast); });
}

}  // extern "C"
