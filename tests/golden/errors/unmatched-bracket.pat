let a = (q - k
let b = [3)
a < b) and k in {1, 2
