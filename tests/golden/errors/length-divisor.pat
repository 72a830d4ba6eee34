q // (kv_len // 4) == k // (kv_len // 4)
