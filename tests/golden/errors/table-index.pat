pattern p(w: int[head], keep: bool[head, *], doc: segments, image: int[token]):
    k < w[layer] and k < w[head, q] and keep[kv_head, k] and doc[q] == doc[q, k] and image[q] == 1
