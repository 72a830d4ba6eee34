# A dilated window beside a plain one: the nearest tokens, then every eighth.
pattern far_and_near(near = 128, count = 256, step = 8):
    window(near) or dilated(count, step)
