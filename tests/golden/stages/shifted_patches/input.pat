# Windows of an image that begin at 3 in odd layers: the grid of patches begins where they do.
pattern same(a, b, shift):
    (a - shift) // 7 == (b - shift) // 7

pattern windows(width = 56):
    let shifted = same(q // width, k // width, 3) and same(q % width, k % width, 3)
    let plain = same(q // width, k // width, 0) and same(q % width, k % width, 0)
    if layer % 2 == 1 then shifted else plain
