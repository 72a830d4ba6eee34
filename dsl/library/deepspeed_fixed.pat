# DeepSpeed's Fixed: windows of blocks, and global blocks at the end of each, which differ by head.
# The heads take turns at `turns` places. `rows` = 1: global blocks see all besides. Not causal by itself: its
# unidirectional form with a causal mask of tokens is `causal and deepspeed_fixed`.
# Source: FixedSparsityConfig of deepspeedai/DeepSpeed.
pattern seen(a, block, local, count, turns):
    let blocks = (kv_len + block - 1) // block
    let whole = blocks // local * local
    let first = local - (1 + head % turns) * count
    let place = a // block
    let last = min(whole + first, blocks - count)
    place < whole and first <= place % local < first + count or
        whole < blocks and last <= place < last + count

pattern deepspeed_fixed(block = 16, local = 4, count = 1, turns = 1, rows = 0):
    chunked(block * local) or
        seen(k, block, local, count, turns) or
        rows > 0 and seen(q, block, local, count, turns)
