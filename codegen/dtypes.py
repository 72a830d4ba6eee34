"""The dtypes of torch by the names that problems and kernels have for them."""

import torch

from patterncc.codegen.problem import DType

DTYPE_NAMES: dict[torch.dtype, DType] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
