"""Floating-point operations of an autoencoder on one image, by closed formulas, without torch.

One multiply-add is two operations; elementwise work is not counted.

Shapes: h x w pixels of a layer, A to B channels; a convolution of k x k is 2 k^2 A B h w.
"""

from safelight.models.autoencoders.options import KLOptions, Options, TinyOptions


def decode_flops(options: Options, height: int, width: int) -> int:
    """Operations of decoding one image from latents of `height` x `width`."""
    if isinstance(options, KLOptions):
        return _decode_kl(options, height, width)
    return _decode_tiny(options, height, width)


def encode_flops(options: Options, height: int, width: int) -> int:
    """Operations of encoding one image of `height` x `width` pixels."""
    if isinstance(options, KLOptions):
        return _encode_kl(options, height, width)
    return _encode_tiny(options, height, width)


def _encode_kl(options: KLOptions, height: int, width: int) -> int:
    """AutoencoderKL: a convolution from pixels, one block a scale, the middle, mean and variance.

    Each block but the last halves the size.
    """
    moments, widths = 2 * options.latent_channels, options.block_out_channels
    total = _conv(options.in_channels, widths[0], height * width)
    in_channels = widths[0]
    for scale, channels in enumerate(widths):
        total += _residuals(in_channels, channels, options.layers_per_block, height * width)
        if scale < len(widths) - 1:
            height, width = height // 2, width // 2
            total += _conv(channels, channels, height * width)
        in_channels = channels
    pixels = height * width
    total += _middle(in_channels, pixels, options.mid_block_add_attention)
    total += _conv(in_channels, moments, pixels)
    return total + (_conv(moments, moments, pixels, kernel=1) if options.use_quant_conv else 0)


def _encode_tiny(options: TinyOptions, height: int, width: int) -> int:
    """AutoencoderTiny: at each scale a convolution, which halves the size but at the first, then blocks."""
    widths = options.encoder_block_out_channels
    total, in_channels = 0, options.in_channels
    for scale, (channels, blocks) in enumerate(zip(widths, options.num_encoder_blocks, strict=True)):
        if scale:
            height, width = (height + 1) // 2, (width + 1) // 2
        pixels = height * width
        total += _conv(in_channels, channels, pixels) + blocks * 3 * _conv(channels, channels, pixels)
        in_channels = channels
    return total + _conv(in_channels, options.latent_channels, height * width)


def _decode_kl(options: KLOptions, height: int, width: int) -> int:
    """AutoencoderKL: a convolution to the widest channels, the middle, then one block a scale.

    Each block but the last doubles the size; blocks have one layer more than the encoder's.
    """
    latent, widths = options.latent_channels, options.block_out_channels[::-1]
    pixels = height * width
    total = _conv(latent, latent, pixels, kernel=1) if options.use_post_quant_conv else 0
    total += _conv(latent, widths[0], pixels) + _middle(widths[0], pixels, options.mid_block_add_attention)
    in_channels = widths[0]
    for scale, channels in enumerate(widths):
        total += _residuals(in_channels, channels, options.layers_per_block + 1, pixels)
        if scale < len(widths) - 1:
            pixels *= 4
            total += _conv(channels, channels, pixels)
        in_channels = channels
    return total + _conv(in_channels, options.out_channels, pixels)


def _decode_tiny(options: TinyOptions, height: int, width: int) -> int:
    """AutoencoderTiny: blocks of three convolutions, and one convolution to the next scale or to pixels."""
    widths, pixels = options.decoder_block_out_channels, height * width
    total = _conv(options.latent_channels, widths[0], pixels)
    for scale, (channels, blocks) in enumerate(zip(widths, options.num_decoder_blocks, strict=True)):
        total += blocks * 3 * _conv(channels, channels, pixels)
        is_last = scale == len(widths) - 1
        pixels *= 1 if is_last else options.upsampling_scaling_factor**2
        total += _conv(channels, options.out_channels if is_last else channels, pixels)
    return total


def _conv(in_channels: int, out_channels: int, pixels: int, kernel: int = 3) -> int:
    return 2 * kernel**2 * in_channels * out_channels * pixels


def _residuals(in_channels: int, channels: int, layers: int, pixels: int) -> int:
    """Two convolutions a layer, and a shortcut of 1 x 1 where the first one changes the channels."""
    shortcut = _conv(in_channels, channels, pixels, kernel=1) if in_channels != channels else 0
    return (
        _conv(in_channels, channels, pixels) + shortcut + (2 * layers - 1) * _conv(channels, channels, pixels)
    )


def _middle(channels: int, pixels: int, has_attention: bool) -> int:
    """Two layers, and between them attention of one head: four projections and two products of pixels."""
    attention = 8 * pixels * channels**2 + 4 * pixels**2 * channels
    return 4 * _conv(channels, channels, pixels) + (attention if has_attention else 0)
