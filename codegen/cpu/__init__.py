"""Block-sparse attention on the CPU.

`tiles` evaluates masks on the tiles of a program, `plan` joins tiles into few kernel calls, `heads`
finds the heads that share a plan and keeps plans, `kernels` has what runs one call, `execute` runs
it on the tensors of some heads, `forward` is attention from tensors to tensors, and `backward` its
gradients from the same plans. `scored` has both with score terms.
"""

from patterncc.codegen.cpu.backward import attention_backward
from patterncc.codegen.cpu.double_backward import attention_double_backward
from patterncc.codegen.cpu.forward import attention, cpu_kernel_name, default_config, plans
from patterncc.codegen.cpu.scored import scored_attention, scored_attention_backward

__all__ = [
    "attention",
    "attention_backward",
    "attention_double_backward",
    "cpu_kernel_name",
    "default_config",
    "plans",
    "scored_attention",
    "scored_attention_backward",
]
