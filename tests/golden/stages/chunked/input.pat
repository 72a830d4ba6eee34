# Both sides divided: bounds are multiples of the chunk.
chunked(512)
