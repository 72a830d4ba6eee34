# LongGen: the middle third of the layers is causal, the others have sinks and a window.
# Which third is from a review of the paper, and the defaults are not the paper's: it is not known which numbers it has.
# Source: arXiv:2410.01485.
pattern longgen(sinks = 64, window = 1024):
    let third = layers // 3
    if third <= layer < layers - third then causal else streaming(sinks, window)
