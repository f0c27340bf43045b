"""Faster arithmetic for training on CPU, in C.

Four things are slow there with PyTorch's own operations, and are replaced in a model by `install`:

- The weight gradient of a depthwise convolution takes 10 to 15 times as long as the convolution, and longer in
  bfloat16: `depthwise_conv2d`. In bfloat16 ours multiplies pairs where the CPU has an instruction for that.
- A block's hidden layer, four times as wide as its input, leaves the processor's cache between one operation and the
  next, so that each waits for memory, and after each all threads wait for the slowest. In `mlp` each thread computes
  all of it for some rows, then for the next. The matrix products are oneDNN's or the BLAS's that PyTorch has:
  `convnext.kernels.products` chooses. For the gradient it keeps the branch's input and, where that is faster than to
  compute it again, the first product.
- In bfloat16 the norms of stem and downsampling take two and three times as long as they should, and what they make is
  converted and put in order for the convolution behind them: `convnext.kernels.downsampling` makes it as it is needed.
- The gradient of max-pooling behind a convolution is written twice, and keeps positions of eight bytes: `max_pool2d`.

Besides, views of a batch of 8-bit images that lies in memory are made by `convnext.kernels.views`, to the bits of the
operations of `convnext.data.batch_augment`, in a fraction of their time: ``benchmarks/views.py`` measures it.

The C (no header but the C library's, vectors by the compiler's extension) is compiled when it is first needed, by
``$CC`` or ``cc``, and kept in the cache folder. It runs in PyTorch's own threads. Wherever it does not apply, the model
computes with PyTorch's operations alone: on other devices, under ``torch.compile``, export and tracing, without
gradient unless `hold` was called, for other types than float32 and bfloat16, without a compiler, and with
``CONVNEXT_KERNELS=0``. `describe` says which it is.
"""

from convnext.kernels.build import describe, is_kept
from convnext.kernels.depthwise import depthwise_conv2d
from convnext.kernels.downsampling import PatchConv2d
from convnext.kernels.mlp import mlp
from convnext.kernels.modules import (
    DepthwiseConv2d,
    held,
    hold,
    install,
    installed,
    release,
    remove,
    usable,
)
from convnext.kernels.pooling import max_pool2d

__all__ = [
    "DepthwiseConv2d",
    "PatchConv2d",
    "depthwise_conv2d",
    "describe",
    "held",
    "hold",
    "install",
    "installed",
    "is_kept",
    "max_pool2d",
    "mlp",
    "release",
    "remove",
    "usable",
]
