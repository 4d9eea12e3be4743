"""Check the documents' parameter counts, the arithmetic of sizes, and initial scales."""

import pytest
import torch
from torch import nn

from src.networks.blocks import ConvGeometry, DrawingLayer, Residual, ResidualConv
from src.networks.conv import ConvDecoder, ConvEncoder
from src.networks.lstm import LSTMEncoder
from src.networks.mlp import MLPDecoder, MLPEncoder
from src.system.errors import UserError
from tests.helpers import built


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def with_statistics(module: nn.Module) -> int:
    """Count parameters as Keras does: with running means and variances of batch norm."""
    return trainable(module) + sum(b.numel() for n, b in module.named_buffers() if "running" in n)


def parts(*overrides: str) -> tuple[nn.Module, nn.Module]:
    _, model = built(*overrides)
    return nn.ModuleList([model.encoder, model.posterior_head]), model.decoder


def test_conv_deep_count_is_that_of_ece_175b_without_its_last_batch_norm():
    encoder, decoder = parts("model=conv_deep", "data=chest_xray")
    assert trainable(encoder) + trainable(decoder) == 27_104_769


def test_conv_dropout_count_is_that_of_nikhade():
    encoder, decoder = parts("model=conv_dropout", "data=mnist", "data.image_size=32")
    assert trainable(encoder) + trainable(decoder) == 165_409


def test_lstm_count_is_that_of_kivril():
    encoder, decoder = parts("model=lstm", "data=mnist")
    assert trainable(encoder) + trainable(decoder) == 175_665


@pytest.mark.parametrize("latents", [2, 16])
def test_conv_shallow_count_follows_from_two_valid_convolutions(latents):
    encoder, decoder = parts("model=conv_shallow", "data=fashion_mnist", f"model.latent_dim={latents}")
    # Two valid 3x3 convolutions leave 24 x 24; Yin & Wang 2023's c (d - (k - 1))^2 counts one of them (26 x 26).
    flat = 32 * 24**2
    assert trainable(encoder) == (16 * 9 + 16) + (32 * 16 * 9 + 32) + 2 * (flat * latents + latents)
    assert trainable(decoder) == (latents * flat + flat) + (32 * 16 * 9 + 16) + (16 * 9 + 1)


def test_conv_wide_counts_are_those_of_nikure():
    encoder, decoder = parts("model=conv_wide", "data=mnist")
    assert with_statistics(encoder) == 7_207_608
    assert with_statistics(decoder) == 15_992_321
    statistics = sum(with_statistics(m) - trainable(m) for m in (encoder, decoder))
    assert statistics == 108_072


def test_conv_tiny_count_is_that_of_nikures_base():
    encoder, decoder = parts("model=conv_tiny", "data=mnist")
    assert with_statistics(encoder) + with_statistics(decoder) == 26_345


def test_mlp_count_is_that_of_784_400_40():
    encoder, decoder = parts("model=mlp", "data=mnist")
    assert trainable(encoder) == (784 * 400 + 400) + 2 * (400 * 40 + 40)
    assert trainable(decoder) == (40 * 400 + 400) + (400 * 784 + 784)


def test_gated_mlp_count_is_that_of_tomczak_and_welling():
    encoder, decoder = parts("model=mlp", "data=mnist", "model.encoder.act=gated", "model.encoder.widths=[300,300]")
    gated = 2 * (784 * 300 + 300) + 2 * (300 * 300 + 300)
    assert trainable(encoder) == gated + 2 * (300 * 40 + 40)
    assert trainable(decoder) == 2 * (40 * 300 + 300) + 2 * (300 * 300 + 300) + (300 * 784 + 784)


def test_gated_layers_multiply_a_linear_one_by_its_gate():
    torch.manual_seed(0)
    encoder = MLPEncoder((1, 2, 3), 1, [4], act="gated")
    x, (_, layer, _) = torch.rand(5, 1, 2, 3), encoder.layers
    value, gate = (layer.weight @ x.flatten(1).T + layer.bias[:, None]).T.chunk(2, dim=1)
    torch.testing.assert_close(encoder(x), value * torch.sigmoid(gate))


def test_mlp_mirrors_its_widths_and_takes_images_of_any_shape():
    shape = (3, 5, 7)
    encoder, decoder = MLPEncoder(shape, 2, [6, 4]), MLPDecoder(2, shape, 2, [6, 4])
    sizes = [[(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]
             for net in (encoder, decoder)]  # fmt: skip
    assert sizes == [[(105, 6), (6, 6), (6, 4), (4, 4)], [(2, 4), (4, 4), (4, 6), (6, 6), (6, 105)]]
    assert sum(isinstance(m, Residual) for m in encoder.modules()) == 2
    assert encoder(torch.rand(2, *shape)).shape == (2, 4)
    assert decoder(torch.randn(2, 2)).shape == (2, *shape)


@pytest.mark.parametrize("norm", ["before", "after", "none"])
def test_gated_convolutions_keep_their_widths(norm):
    recipe = {"widths": [4, 6], "norm": norm, "act": "gated"}
    encoder = ConvEncoder((1, 12, 12), 2, **recipe, hidden=5, hidden_norm=norm)
    decoder = ConvDecoder(3, (1, 12, 12), 2, **recipe, dense_norm=norm)
    assert encoder(torch.rand(2, 1, 12, 12)).shape == (2, 5)
    assert decoder(torch.randn(2, 3)).shape == (2, 1, 12, 12)
    outputs = [m.out_channels for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert outputs == [8, 8, 12, 12]  # values and gates


@pytest.mark.parametrize("side", [28, 31, 37, 64, 100])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 1), (4, 2, 1), (3, 1, 0), (5, 3, 0), ([3, 4], [2, 1], [1, 0])]
)
def test_decoder_gives_back_every_size_the_encoder_takes(side, kernel, stride, padding):
    shape = (3, side, side + 5)
    recipe = {"widths": [4, 6], "kernel_size": kernel, "stride": stride, "padding": padding}
    encoder, decoder = ConvEncoder(shape, 2, **recipe), ConvDecoder(7, shape, 2, **recipe)
    assert encoder(torch.rand(2, *shape)).shape == (2, encoder.out_features)
    assert decoder(torch.randn(2, 7)).shape == (2, *shape)


def test_sizes_that_work_are_derived():
    geometry = ConvGeometry(4, 4, 2, [1, 1, 1, 0])
    smallest = next(size for size in range(1, 100) if geometry.fits(size))
    assert smallest == 32
    assert geometry.chain(32) == [32, 16, 8, 4, 1]
    with pytest.raises(UserError, match=r"28 -> 14 -> 7 -> 3 -> 0.*32 and above.*data.image_size"):
        geometry.maps((1, 28, 28), "net")
    with pytest.raises(UserError, match="none up to"):
        ConvGeometry(30, 7, 2, 0).maps((1, 64, 64), "net")


def test_wrong_lists_are_named():
    with pytest.raises(UserError, match=r"stride=\[2, 2\] has 2 entries for 3 widths"):
        ConvEncoder((1, 32, 32), 1, [4, 4, 4], stride=[2, 2])
    with pytest.raises(UserError, match=r"widths=\[\]: give at least one"):
        ConvEncoder((1, 32, 32), 1, [])
    with pytest.raises(UserError, match="unknown activation 'relo'"):
        ConvEncoder((1, 32, 32), 1, [4], act="relo")
    with pytest.raises(UserError, match="unknown norm 'middle'"):
        ConvEncoder((1, 32, 32), 1, [4], norm="middle")


def test_lstm_reads_rows_in_both_directions():
    encoder = LSTMEncoder((1, 6, 5), 1, hidden=3)
    x = torch.rand(1, 1, 6, 5)
    base = encoder(x)
    assert base.shape == (1, 6)
    _, (state, _) = encoder.lstm(x[:, 0])
    torch.testing.assert_close(base[:, :3], state[0])
    torch.testing.assert_close(base[:, 3:], state[1])
    backwards = x.flip(-2)  # the last row first
    encoder.lstm.load_state_dict(
        {
            **encoder.lstm.state_dict(),
            **{f"{n}_reverse": p for n, p in encoder.lstm.state_dict().items() if "reverse" not in n},
        }
    )
    torch.testing.assert_close(encoder(backwards)[:, 3:], encoder(x)[:, :3])  # both directions read alike
    assert LSTMEncoder((3, 40, 7), 2, hidden=3)(torch.rand(2, 3, 40, 7)).shape == (2, 6)


def test_last_layer_starts_at_the_scale_of_its_input():
    torch.manual_seed(0)
    x = torch.randn(4, 64, 16, 16)
    ours, pytorchs = (
        DrawingLayer(64, 1, 3, 2, 1, output_padding=1),
        nn.ConvTranspose2d(64, 1, 3, 2, 1, output_padding=1),
    )
    assert 0.2 < float(ours(x).std()) < 1
    assert float(pytorchs(x).std()) > 2


@pytest.mark.parametrize("norm", ["before", "after", "none"])
def test_residual_convolution_starts_near_the_identity(norm):
    torch.manual_seed(0)
    x = torch.randn(8, 6, 10, 10)
    change = ResidualConv(6, norm, "relu")(x) - x
    assert 0 < float(change.std()) < 0.15
