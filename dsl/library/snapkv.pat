# SnapKV: after a causal prompt, the prompt's last keys and listed ones before, per head.
# prompt[b]: tokens of the prompt. kept[b, h, k]: does head h keep key k of it?
# Source: arXiv:2404.14469, FasterDecoding/SnapKV.
pattern snapkv(prompt: int[batch], kept: bool[batch, head, *], window = 32):
    let length = prompt[batch]
    causal and (q < length or k >= length - window or kept[batch, head, k])
