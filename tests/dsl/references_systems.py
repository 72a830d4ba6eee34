"""Library patterns of models and systems as their sources define them, one pair at a time.

The second half of `tests.dsl.references`, whose rules it follows: parameters, coordinates and
tables by name, plain Python, nothing written with the language in mind.
"""

import itertools
import math
from collections.abc import Callable, Sequence

from tests.dsl.lacache_cache import streamed
from tests.dsl.references import local_stride, s2, sliding_tile, streaming, tri_shape

Row = Sequence[bool]
Plan = Sequence[Sequence[Sequence[bool]]]


def at(table: Sequence[bool], place: int) -> bool:
    """An element, false outside."""
    return 0 <= place < len(table) and bool(table[place])


# ---------------------------------------------------------------------- sinks, layers, heads


def block_streaming(q: int, k: int, block: int, sinks: int, local: int) -> bool:
    row, column = q // block, k // block
    return k <= q and (column in range(sinks) or column in range(row - local + 1, row + 1))


def triangle_mix(
    q: int, k: int, start: int, sinks: int, window: int, last: int, layer: int, kv_len: int
) -> bool:
    if layer in range(start):
        return k <= q
    return tri_shape(q, k, sinks, window, last, kv_len)


def duo_chunked(
    q: int, k: int, chunk: int, sinks: int, window: int, kv_head: int, retrieval: Row
) -> bool:
    """The compressed cache before a chunk, and the chunk."""
    start = q - q % chunk
    cache = {*range(min(sinks, start)), *range(max(0, start - window), start)}
    return k <= q and (retrieval[kv_head] or k in cache or k >= start or k < sinks)


def lserve(
    q: int,
    k: int,
    page: int,
    sinks: int,
    window: int,
    kv_head: int,
    head: int,
    batch: int,
    retrieval: Row,
    pages: Plan,
) -> bool:
    if retrieval[kv_head]:
        return k <= q and pages[batch][head][k // page]
    return k <= q and (k < sinks or q - k < window)


def alternating(q: int, k: int, n: int, period: int, layer: int) -> bool:
    return q - k >= 0 if layer % period == period - 1 else 0 <= q - k < n


def modernbert(q: int, k: int, n: int, period: int, layer: int) -> bool:
    return layer in range(0, 1000, period) or -n <= q - k <= n


def late_window(q: int, k: int, n: int, first: int, layer: int) -> bool:
    return 0 <= q - k < (n if layer >= first else 1 << 40)


def gemma3_images(q: int, k: int, n: int, period: int, layer: int, image: Sequence[int]) -> bool:
    both = image[q] == image[k] != -1
    sliding = (layer + 1) % period != 0
    return (k <= q or both) and (not sliding or k > q - n)


def llama4(q: int, k: int, chunk: int, period: int, layer: int) -> bool:
    return k <= q and ((layer + 1) % period == 0 or q // chunk == k // chunk)


def llama4_padded(
    q: int, k: int, chunk: int, period: int, layer: int, batch: int, left_pad: Sequence[int]
) -> bool:
    pad = left_pad[batch]
    if min(q, k) < pad or k > q:
        return False
    return (layer + 1) % period == 0 or (q - pad) // chunk == (k - pad) // chunk


def longgen(q: int, k: int, sinks: int, window: int, layer: int, layers: int) -> bool:
    sparse = [*range(layers // 3), *range(layers - layers // 3, layers)]
    return streaming(q, k, sinks, window) if layer in sparse else k <= q


def longgen_blocks(
    q: int,
    k: int,
    block: int,
    local: int,
    stride: int,
    offset: int,
    layer: int,
    layers: int,
    heads: int,
    kv_head: int,
) -> bool:
    sparse = [*range(layers // 3), *range(layers - layers // 3, layers)]
    if layer not in sparse:
        return k <= q
    return local_stride(q, k, block, local, stride, offset, heads, kv_head)


def local_stride_heads(
    q: int,
    k: int,
    dense: int,
    block: int,
    local: int,
    stride: int,
    offset: int,
    heads: int,
    kv_heads: int,
    kv_head: int,
) -> bool:
    if kv_head in range(kv_heads)[kv_heads - dense :]:
        return k <= q
    return local_stride(q, k, block, local, stride, offset, heads, kv_head)


def local_stride_both(q: int, k: int, block: int, left: int, right: int, stride: int) -> bool:
    row, column = q // block, k // block
    beyond = max(0, row - column - left + 1) + max(0, column - row - right + 1)
    return beyond % stride == 0


def masformer(q: int, k: int, first: int, block: int, layer: int) -> bool:
    return k <= q and (layer in range(first) or k >= q - q % block)


def megalodon(q: int, k: int, chunk: int) -> bool:
    return q - q % chunk <= k <= q


def gecko(q: int, k: int, chunk: int) -> bool:
    return q // chunk - k // chunk in (0, 1) and k <= q


def s2_wrapped(q: int, k: int, group: int, head: int, heads: int, kv_len: int) -> bool:
    """The shifted half by rolling the sequence, as its code does."""
    if head < heads // 2:
        return k <= q and q // group == k // group
    rolled = [*range(group // 2, kv_len), *range(group // 2)]
    a, b = rolled.index(q), rolled.index(k)
    return b <= a and a // group == b // group


def sinklora(q: int, k: int, group: int, sinks: int, head: int, heads: int) -> bool:
    shifted = head >= 3 * heads / 4
    grouped = s2(q, k, group, heads - 1 if shifted else 0, heads)
    return k <= q and (k < sinks or q < sinks or grouped)


# --------------------------------------------------------------------------- sparse transformers


def longformer_tokens(
    q: int, k: int, window: int, dilation: int, batch: int, seen: Sequence[Row]
) -> bool:
    band = k in [q + dilation * i for i in range(-window, window + 1)]
    return band or seen[batch][k] or seen[batch][q]


def block_window(q: int, k: int, block: int, before: int, after: int) -> bool:
    row, column = q // block, k // block
    return column in range(row - before, row + after + 1)


def deepspeed_fixed(
    q: int,
    k: int,
    block: int,
    local: int,
    count: int,
    turns: int,
    rows: int,
    head: int,
    kv_len: int,
) -> bool:
    """Its layout, drawn block by block; bidirectional."""
    blocks = math.ceil(kv_len / block)
    layout = [[i // local == j // local for j in range(blocks)] for i in range(blocks)]
    first = local - (1 + head % turns) * count
    end = blocks - blocks % local
    starts = list(range(first, end, local))
    if end < blocks:
        starts.append(min(end + first, blocks - count))
    for start in starts:
        for column in range(start, start + count):
            for row in range(blocks):
                layout[row][column] = True
                if rows:
                    layout[column][row] = True
    return layout[q // block][k // block]


def deepspeed_variable(
    q: int,
    k: int,
    block: int,
    head: int,
    windows: Sequence[int],
    columns: Sequence[Row],
    random: Plan,
) -> bool:
    inside = [all(start <= x < end for x in (q, k)) for start, end in itertools.pairwise(windows)]
    row, column = q // block, k // block
    return any(inside) or columns[head][column] or random[head][row][column]


def deepspeed_bigbird(
    q: int, k: int, block: int, window: int, globals: int, head: int, random: Plan
) -> bool:
    i, j = q // block, k // block
    return abs(i - j) <= window // 2 or min(i, j) < globals or random[head][i][j]


def deepspeed_longformer(q: int, k: int, block: int, window: int, globals: Row) -> bool:
    i, j = q // block, k // block
    return abs(i - j) <= window // 2 or globals[i] or globals[j]


def clustered(q: int, k: int, cluster: Sequence[int]) -> bool:
    return k <= q and k in [other for other, number in enumerate(cluster) if number == cluster[q]]


# ---------------------------------------------------------------------------- listed at run time


def minference(q: int, k: int, block: int, head: int, keep: Plan) -> bool:
    return k <= q and keep[head][q // block][k]


def minference_dilated(q: int, k: int, sinks: int, reach: int) -> bool:
    return k <= q and (k < sinks or q - k in range(1, reach, 2))


def minference_dilated_window(q: int, k: int, sinks: int, window: int, reach: int) -> bool:
    slashes = {*range(window), *range(window | 1, reach, 2)}
    return k <= q and (k < sinks or q - k in slashes)


def flexprefill(
    q: int,
    k: int,
    block: int,
    head: int,
    columns: Sequence[Row],
    diagonals: Sequence[Row],
    keep: Plan,
) -> bool:
    i, j = q // block, k // block
    return k <= q and (columns[head][j] or at(diagonals[head], i - j) or keep[head][i][j])


def causal_blocks(q: int, k: int, size: int, head: int, keep: Plan) -> bool:
    return k <= q and keep[head][q // size][k // size]


def sale(q: int, k: int, rows: int, columns: int, head: int, kv_len: int, keep: Plan) -> bool:
    i, j = q // rows, k // columns
    blocks = math.ceil(min((i + 1) * rows, kv_len) / columns)
    candidates = 4 * math.floor((blocks - 5) / 4) if blocks > 5 else 0
    forced = {0, *range(candidates + 1, blocks)}
    return k <= q and (j in forced or keep[head][i][j])


def hip(
    q: int, k: int, rows: int, columns: int, sinks: int, window: int, head: int, keep: Plan
) -> bool:
    sparse = k >= sinks and q - k >= window and keep[head][q // rows][k // columns]
    return k <= q and (k < sinks or q - k < window or sparse)


def squeezed(q: int, k: int, context: int, head: int, kept: Sequence[Row]) -> bool:
    return k <= q and (k >= context or kept[head][k])


def nsa(q: int, k: int, block: int, batch: int, kv_head: int, keep: Sequence[Plan]) -> bool:
    return k <= q and keep[batch][kv_head][q][k // block]


def infllm_v2(
    q: int,
    k: int,
    block: int,
    first: int,
    local: int,
    dense: int,
    batch: int,
    kv_head: int,
    kv_len: int,
    keep: Sequence[Plan],
) -> bool:
    own, j = q // block, k // block
    chosen = {*range(first), *range(own - local, own + 1)}
    return k <= q and (kv_len <= dense or j in chosen or keep[batch][kv_head][q][j])


def moba(q: int, k: int, chunk: int, batch: int, head: int, keep: Sequence[Plan]) -> bool:
    return k <= q and (k >= q - q % chunk or keep[batch][head][q][k // chunk])


def landmark(q: int, k: int, block: int, batch: int, head: int, keep: Sequence[Plan]) -> bool:
    return k <= q and (k >= q - q % block or keep[batch][head][q][k // block])


def quest(
    q: int, k: int, page: int, dense: int, layer: int, batch: int, head: int, pages: Plan
) -> bool:
    return k <= q and (layer in range(dense) or pages[batch][head][k // page])


def h2o(q: int, k: int, recent: int, batch: int, head: int, heavy: Plan) -> bool:
    return k in range(q - recent + 1, q + 1) or (k <= q and heavy[batch][head][k])


def snapkv(
    q: int, k: int, window: int, batch: int, head: int, prompt: Sequence[int], kept: Plan
) -> bool:
    length = prompt[batch]
    if q < length:
        return k <= q
    cached = {*range(length - window, length)} | {
        position for position in range(length) if kept[batch][head][position]
    }
    return k <= q and (k in cached or k >= length)


def eviction(q: int, k: int, until: Sequence[int]) -> bool:
    return k in range(q + 1) and q in range(k, until[k])


def lacache(
    q: int,
    k: int,
    recent: int,
    reach: int,
    capacity: int,
    span: int,
    overlap: int,
    sinks: int,
    layer: int,
    layers: int,
    kv_len: int,
    lifetime: Sequence[int],
) -> bool:
    """By its cache; the table and the numbers that come with it say nothing new."""
    return k in streamed(layers, span, overlap, capacity, sinks, kv_len)[layer][q]


# -------------------------------------------------------------------- sequences, trees and grids


def packed(q: int, k: int, doc: Sequence[int]) -> bool:
    return any(start <= k <= q < end for start, end in itertools.pairwise(doc))


def prefix_lengths(q: int, k: int, batch: int, length: Sequence[int]) -> bool:
    return k <= q or k in range(length[batch])


def tree(q: int, k: int, nodes: int, batch: int, kv_len: int, ancestors: Plan) -> bool:
    text = kv_len - nodes
    if q < text:
        return k <= q
    return k < text or ancestors[batch][q - text][k - text]


def neighborhood_causal(
    q: int, k: int, kernel: int, stride: int, dilation: int, kv_len: int
) -> bool:
    if q % dilation != k % dilation:
        return False
    i, j = q // dilation, k // dilation
    n = math.ceil((kv_len - q % dilation) / dilation)
    leader = min((i // stride) * stride + stride - 1, n - 1)
    return j <= i and leader - j < kernel


def neighborhood_3d(
    q: int,
    k: int,
    frames: int,
    height: int,
    width: int,
    frame_kernel: int,
    row_kernel: int,
    column_kernel: int,
) -> bool:
    def place(token: int) -> tuple[int, int, int]:
        frame, rest = divmod(token, height * width)
        return frame, *divmod(rest, width)

    sizes, kernels = (frames, height, width), (frame_kernel, row_kernel, column_kernel)
    for a, b, size, kernel in zip(place(q), place(k), sizes, kernels, strict=True):
        first = min(max(a - kernel // 2, 0), size - kernel)
        if b not in range(first, first + kernel):
            return False
    return True


def sliding_tile_heads(
    q: int,
    k: int,
    tile: int,
    depth: int,
    rows: int,
    columns: int,
    text: int,
    layer: int,
    head: int,
    depth_window: Sequence[Sequence[int]],
    row_window: Sequence[Sequence[int]],
    column_window: Sequence[Sequence[int]],
) -> bool:
    in_depth, in_rows = depth_window[layer][head], row_window[layer][head]
    in_columns = column_window[layer][head]
    return sliding_tile(q, k, tile, depth, rows, columns, in_depth, in_rows, in_columns, text)


SYSTEMS: dict[str, Callable[..., bool]] = {
    function.__name__: function
    for function in (
        *(alternating, block_streaming, block_window, causal_blocks, clustered, deepspeed_bigbird),
        *(deepspeed_fixed, deepspeed_longformer, deepspeed_variable, duo_chunked, eviction),
        *(flexprefill, gecko, gemma3_images, h2o, hip, infllm_v2, lacache, landmark, late_window),
        *(llama4, llama4_padded, local_stride_both, local_stride_heads, longformer_tokens),
        *(longgen, longgen_blocks, lserve, masformer, megalodon, minference, minference_dilated),
        *(minference_dilated_window, moba, modernbert, neighborhood_3d, neighborhood_causal, nsa),
        *(packed, prefix_lengths, quest, s2_wrapped, sale, sinklora, sliding_tile_heads, snapkv),
        *(squeezed, tree, triangle_mix),
    )
}
