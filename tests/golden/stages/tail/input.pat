# A bound that follows the number of keys.
pattern p(last): causal and (window(256) or q >= kv_len - last)
