# Shifted sparse attention on a ring: the first tokens see the last ones.
# The last shifted group is the end of the sequence and then its start, causal in that order. kv_len is a multiple of group.
# Source: LongLoRA, arXiv:2309.12307, dvlab-research/LongLoRA, without flash attention.
pattern ring(group):
    let half = group // 2
    let a = if q < half then q + kv_len - half else q - half
    let b = if k < half then k + kv_len - half else k - half
    b <= a and a // group == b // group

pattern s2_wrapped(group = 2048):
    if head < heads // 2 then causal and chunked(group) else ring(group)
