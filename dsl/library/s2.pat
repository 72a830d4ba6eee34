# Shifted sparse attention: causal groups, moved by half a group in the second half of the heads.
# The form without wrap-around, for training; `s2_wrapped` is the other.
# Source: LongLoRA, arXiv:2309.12307, dvlab-research/LongLoRA, with flash attention.
pattern s2(group = 2048):
    let half = group // 2
    let shifted = chunked(group) at (q + half, k + half)
    causal and (if head < heads // 2 then chunked(group) else shifted)
