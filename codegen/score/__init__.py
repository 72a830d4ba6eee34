"""Score terms on tensors: their values and gradients (`elementwise`), what a call gives them
(`values`), and the dense oracle (`reference`).
"""
