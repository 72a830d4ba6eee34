# Neighborhood attention on a video in raster order: a box of keys around the query.
# frames x height x width tokens; each size of the box is at most that of the video.
# Source: NATTEN, arXiv:2204.07143, SHI-Labs/NATTEN.
pattern near(a, b, size, kernel):
    let left = kernel // 2
    let right = kernel - 1 - left
    let centre = clamp(a, left, size - 1 - right)
    centre - left <= b <= centre + right

pattern neighborhood_3d(frames = 16, height = 30, width = 40, frame_kernel = 7, row_kernel = 9,
        column_kernel = 9):
    let area = height * width
    near(q // area, k // area, frames, frame_kernel) and
        near(q // width % height, k // width % height, height, row_kernel) and
        near(q % width, k % width, width, column_kernel)
