# Phi-3-small in the manner of one head: the nearest blocks, and every eighth block of the past.
pattern near_and_every_eighth(block = 64, near = 16, stride = 8):
    local_strided(block, near, stride)
