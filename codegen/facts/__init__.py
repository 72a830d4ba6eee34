"""Facts about patterns, derived from their relations: exact counts of pairs, tiles and operations,
equality and inclusion, live keys, shard plans, reach through layers.
"""
