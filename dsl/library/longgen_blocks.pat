# LongGen with blocks: the middle third of the layers is causal, the others local and strided blocks.
# Which third is from a review of the paper, and the defaults are not the paper's: it is not known which numbers it has.
# Source: arXiv:2410.01485; the blocks are those of linxihui/dkernel.
pattern longgen_blocks(block = 64, local = 16, stride = 8, offset = 0):
    let third = layers // 3
    if third <= layer < layers - third then causal else local_stride(block, local, stride, offset)
