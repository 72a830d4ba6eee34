# Each pattern uses the one before it twice.
pattern p0(x): k < x
pattern p1(x): p0(x) or p0(x // 2 + 1)
pattern p2(x): p1(x) or p1(x // 3 + 1)
pattern p3(x): p2(x) or p2(x // 4 + 1)
pattern p4(x): p3(x) or p3(x // 5 + 1)
pattern p5(x): p4(x) or p4(x // 6 + 1)
pattern p6(x): p5(x) or p5(x // 7 + 1)
pattern p7(x): p6(x) or p6(x // 8 + 1)
pattern p8(x): p7(x) or p7(x // 9 + 1)
pattern p9(x): p8(x) or p8(x // 10 + 1)
