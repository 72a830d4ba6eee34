# LongLoRA in training: groups, moved by half a group in the second half of the heads.
pattern grouped(size = 1024):
    s2(size)
