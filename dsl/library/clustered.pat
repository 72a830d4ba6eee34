# Tokens attend within their cluster, causally.
# cluster[q]: number of the cluster of position q. Routing Transformer and Reformer average over several such
# softmaxes, which is no mask; this is one of them, where each token is in one cluster.
# Source: arXiv:2003.05997; arXiv:2001.04451.
pattern clustered(cluster: int[token]):
    causal and cluster[q] == cluster[k]
