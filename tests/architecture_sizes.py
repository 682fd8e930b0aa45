"""Numbers of trainable parameters of the papers' architectures, computed from the papers and not by the code."""


def glow(levels, depth, coupling, num_classes, width=512):
  """Of Kingma and Dhariwal (2018): a sum over levels, of images with 3 channels."""
  total, channels = 0, 3
  for level in range(levels):
    channels *= 4
    half = channels // 2
    outputs = channels if coupling == "affine" else half
    actnorm = 2 * channels
    conv1x1 = 2 * channels**2 + channels  # L and U, each stored as a square, and the diagonal.
    # Each has a shift and a scale of its outputs; 3x3 convolutions have one more channel, which marks the border.
    network = (9 * (half + 1) * width + 2 * width) + (width**2 + 2 * width) + (9 * (width + 1) * outputs + 2 * outputs)
    total += depth * (actnorm + conv1x1 + network)
    if level < levels - 1:
      total += 9 * (half + 1) * channels + 2 * channels  # The split's Gaussian.
      channels = half
  top = (9 + 2) * 2 * channels
  if num_classes:
    top += (num_classes + 2) * 2 * channels
    top += (channels + 2) * num_classes  # The classifier.
  return total + top


def residual_flow(num_scales, num_blocks, width, num_dense_blocks, dense_width, size=32, channels=3, num_betas=1,
                  squeeze_first=False, factor_out=False):
  """Of Chen et al. (2019), appendix E and the published commands: a sum over scales, of square images.

  A block has three layers with biases, each after an activation (a LipSwish has one parameter), and actnorm.
  """
  def block(num_values, width, taps):
    layers = (taps * num_values * width + width) + (width**2 + width) + (taps * width * num_values + num_values)
    return layers + 3 * num_betas + 2 * num_values

  if squeeze_first:
    channels, size = 4 * channels, size // 2
  total = 2 * channels - num_betas  # Actnorm of the image; the very first block begins without an activation.
  for scale in range(num_scales):
    total += num_blocks * block(channels, width, taps=9)
    if scale < num_scales - 1:
      channels, size = (2 if factor_out else 4) * channels, size // 2
  return total + num_dense_blocks * block(channels * size**2, dense_width, taps=1)
