# MInference's static form of sinks and every second distance.
# A distance is odd, so a query's own key is seen only as a sink.
# Source: arXiv:2407.02490, `dilated1` of microsoft/MInference, before its kernel merges distances.
pattern minference_dilated(sinks = 1024, reach = 8192):
    causal and (k < sinks or q - k < reach and (q - k) % 2 == 1)
