# Gemma 3 with images: tokens of one image see each other both ways, in its window layers too.
# image[q]: number of the image of position q, from 0; -1 for text. A window does not cut what lies ahead in the image.
# Source: arXiv:2503.19786, Hugging Face transformers.
pattern gemma3_images(image: int[token], n = 1024, period = 6):
    let same = image[q] >= 0 and image[q] == image[k]
    (causal or same) and ((layer + 1) % period == 0 or q - k < n)
