pattern a(n: integer, m: itn): k < 3
pattern b(n: bool, m: segments[head]): k < 3
pattern c(n: int[heads], m: int[*], l: int[head, token]): k < 3
pattern d(n: bool[*, head, head]): k < 3
