# A modulus of the distance: dense tiles, every one partial.
dilated(512, 8)
