"""Library patterns as their sources define them: plain Python, one pair of positions at a time.

Each function takes the pattern's parameters, coordinates and tables by name. None is written with
the language or the mask algebra in mind.
"""

import math
from collections.abc import Callable, Sequence


def full(q: int, k: int) -> bool:
    return True


def causal(q: int, k: int) -> bool:
    return k <= q


def window(q: int, k: int, n: int) -> bool:
    return k in range(q - n + 1, q + 1)


def around(q: int, k: int, n: int) -> bool:
    return k in range(q - n, q + n + 1)


def sinks(q: int, k: int, n: int) -> bool:
    return k in range(n)


def prefix(q: int, k: int, n: int) -> bool:
    return k <= q or k in range(n)


def tail(q: int, k: int, n: int, kv_len: int) -> bool:
    return q in range(max(kv_len - n, 0), kv_len)


def chunked(q: int, k: int, n: int) -> bool:
    return q - q % n == k - k % n


def chunks_back(q: int, k: int, n: int, m: int) -> bool:
    own = q - q % n
    return own - m * n <= k < own + n


def block_causal(q: int, k: int, n: int) -> bool:
    return k < q - q % n + n


def dilated(q: int, k: int, n: int, step: int) -> bool:
    return k in [q - step * i for i in range(n)]


def strided(q: int, k: int, n: int) -> bool:
    return abs(q - k) in range(0, 1000, n)


def streaming(q: int, k: int, sinks: int, window: int) -> bool:
    """LM-Infinite: the window, and the first keys where the window has left them."""
    distance = q - k
    return 0 <= distance < window or (k < sinks and k <= q and distance >= window)


def tri_shape(q: int, k: int, sinks: int, window: int, last: int, kv_len: int) -> bool:
    dense = q >= kv_len - min(last, kv_len - 1)
    return k <= q and (k < sinks or q - k < window or dense)


def duo(q: int, k: int, sinks: int, window: int, kv_head: int, retrieval: Sequence[bool]) -> bool:
    return k <= q and (retrieval[kv_head] or k < sinks or q - k < window)


def local_strided(q: int, k: int, block: int, local: int, stride: int) -> bool:
    nearest = range(q // block - local + 1, q // block + 1)
    return k <= q and (k // block in nearest or (k // block + 1) % stride == 0)


def local_stride(
    q: int,
    k: int,
    block: int,
    local: int,
    stride: int,
    offset: int,
    heads: int,
    kv_head: int,
) -> bool:
    step = max(1, int(stride / heads))
    near = q // block - k // block < local
    return k <= q and (near or (k // block + kv_head * step + offset) % stride == 0)


def ladder(
    q: int, k: int, sinks: int, recent: int, rung: int, period: int, kept: int, layer: int
) -> bool:
    step = (k // rung + layer) % period
    return k <= q and (k < sinks or q - k < recent or step in range(kept))


def longformer(q: int, k: int, window: int, dilation: int, globals: int) -> bool:
    seen = range(globals)
    band = k in [q + dilation * i for i in range(-window, window + 1)]
    return band or k in seen or q in seen


def bigbird(
    q: int,
    k: int,
    block: int,
    head: int,
    kv_len: int,
    random: Sequence[Sequence[Sequence[bool]]],
) -> bool:
    row, column, rows = q // block, k // block, math.ceil(kv_len / block)
    if row in (0, rows - 1):
        return True
    if row == 1:
        columns = {0, 1, 2, rows - 1}
    elif row == rows - 2:
        columns = {0, rows - 3, rows - 2, rows - 1}
    else:
        columns = {0, row - 1, row, row + 1, rows - 1}
    return column in columns or random[head][row][column]


def sparse_fixed(
    q: int, k: int, context: int, block: int, verticals: int, width: int, head: int
) -> bool:
    columns = context // block
    turn = head % verticals
    kept = {columns - 1 - turn * width - i for i in range(width)}
    return k <= q and (q // context == k // context or (k // block) % columns in kept)


def sparse_strided(q: int, k: int, local: int, stride: int) -> bool:
    return k <= q and (0 <= q - k < local or (q - k) % stride == 0)


def s2(q: int, k: int, group: int, head: int, heads: int) -> bool:
    if head >= heads // 2:
        return k <= q and (q + group // 2) // group == (k + group // 2) // group
    return k <= q and q // group == k // group


def longnet(q: int, k: int, segment: int, ratio: int, head: int, heads: int) -> bool:
    phase = head // math.ceil(heads / ratio)
    same = q // segment == k // segment
    return k <= q and same and (q % segment) % ratio == phase == (k % segment) % ratio


def swin(q: int, k: int, height: int, width: int, window: int, layer: int) -> bool:
    shift = window // 2 if layer % 2 == 1 and window < min(height, width) else 0

    def region(place: int, extent: int) -> int:
        if not shift or place < extent - window:
            return 0
        return 1 if place < extent - shift else 2

    cells = []
    for token in (q, k):
        y, x = (token // width - shift) % height, (token % width - shift) % width
        cells.append((y // window, x // window, region(y, height), region(x, width)))
    return cells[0] == cells[1]


def natten(q: int, k: int, extent: int, kernel: int, stride: int, dilation: int) -> bool:
    """Neighborhood attention along one dimension."""
    if q % dilation != k % dilation:
        return False
    i, j = q // dilation, k // dilation
    n = math.ceil((extent - q % dilation) / dilation)
    left, right = kernel // 2, kernel - 1 - kernel // 2
    leader = min((i // stride) * stride + stride // 2, n - 1)
    centre = min(max(leader, left), n - 1 - right)
    return j in range(centre - left, centre + right + 1)


def neighborhood_1d(q: int, k: int, kernel: int, stride: int, dilation: int, kv_len: int) -> bool:
    return natten(q, k, kv_len, kernel, stride, dilation)


def neighborhood(
    q: int, k: int, height: int, width: int, kernel: int, stride: int, dilation: int
) -> bool:
    rows = natten(q // width, k // width, height, kernel, stride, dilation)
    return rows and natten(q % width, k % width, width, kernel, stride, dilation)


def sliding_tile(
    q: int,
    k: int,
    tile: int,
    depth: int,
    rows: int,
    columns: int,
    depth_window: int,
    row_window: int,
    column_window: int,
    text: int,
) -> bool:
    video = tile * depth * rows * columns
    if k >= video + text:
        return False
    if q >= video or k >= video:
        return True

    def place(token: int) -> tuple[int, int, int]:
        index = token // tile
        return index // (rows * columns), index // columns % rows, index % columns

    windows = (depth_window, row_window, column_window)
    for a, b, n, size in zip(place(q), place(k), (depth, rows, columns), windows, strict=True):
        centre = min(max(a, size // 2), n - 1 - size // 2)
        if abs(centre - b) > size // 2:
            return False
    return True


def block_diffusion(q: int, k: int, block: int, kv_len: int) -> bool:
    half = kv_len // 2
    noisy_q, noisy_k = q < half, k < half
    row, column = q % half // block, k % half // block
    if noisy_q and noisy_k:
        return row == column
    if noisy_q:
        return column < row
    return not noisy_k and column <= row


def document(q: int, k: int, doc: Sequence[int]) -> bool:
    ids = [i for i in range(len(doc) - 1) for _ in range(doc[i + 1] - doc[i])]
    return ids[q] == ids[k]


def vertical_slash(
    q: int,
    k: int,
    head: int,
    verticals: Sequence[Sequence[bool]],
    slashes: Sequence[Sequence[bool]],
) -> bool:
    return k <= q and (verticals[head][k] or slashes[head][q - k])


def blocks(q: int, k: int, size: int, head: int, keep: Sequence[Sequence[Sequence[bool]]]) -> bool:
    return keep[head][q // size][k // size]


REFERENCES: dict[str, Callable[..., bool]] = {
    function.__name__: function
    for function in (
        *(around, bigbird, block_causal, block_diffusion, blocks, causal, chunked, chunks_back),
        *(dilated, document, duo, full, ladder, local_stride, local_strided, longformer, longnet),
        *(neighborhood, neighborhood_1d, prefix, s2, sinks, sliding_tile, sparse_fixed),
        *(sparse_strided, streaming, strided, swin, tail, tri_shape, vertical_slash, window),
    )
}
