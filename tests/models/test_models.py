"""The reference models do what their first lines say."""

import pytest
import torch

from train.models.convnet import ConvNet
from train.models.gpt import GPT


def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(vocabulary=50, layers=2, heads=2, width=16).double()


def test_no_token_sees_a_later_one() -> None:
    model, tokens = gpt(), torch.randint(0, 50, (3, 12))
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 50

    assert torch.allclose(model(tokens)[:, :8], model(changed)[:, :8], rtol=0, atol=1e-12)
    assert not torch.allclose(model(tokens)[:, 8:], model(changed)[:, 8:])


def test_with_the_mask_a_document_in_a_block_is_as_if_alone() -> None:
    model, first, second = gpt(), torch.randint(0, 50, (2, 5)), torch.randint(0, 50, (2, 7))
    documents = torch.tensor([[1] * 5 + [2] * 7] * 2)

    both = torch.cat((first, second), dim=1)

    assert torch.allclose(model(both, documents)[:, 5:], model(second), rtol=0, atol=1e-12)
    assert not torch.allclose(model(both)[:, 5:], model(second), rtol=0, atol=1e-6)


def test_the_embedding_is_the_last_layer_too() -> None:
    names = [name for name, _ in gpt().named_parameters()]

    assert names.count("embedding.weight") == 1
    assert not any("head" in name for name in names)


def test_order_matters() -> None:
    """Without positions the last token would see the same set of tokens."""
    model, tokens = gpt(), torch.arange(6)[None]
    swapped = tokens[:, [1, 0, 2, 3, 4, 5]]

    assert not torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], rtol=0, atol=1e-6)


def test_a_width_that_cannot_be_turned_is_refused() -> None:
    with pytest.raises(ValueError, match="width=10 is no multiple of 2"):
        GPT(vocabulary=5, heads=2, width=10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_in_every_layout_give_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = ConvNet(outputs=4, channels=3, widths=(8, 12)).to(dtype)
    images = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)

    expected = model(images.to(dtype) / 255)

    assert expected.shape == (2, 4)
    assert torch.allclose(model(images), expected)
    assert torch.allclose(model(images.permute(0, 2, 3, 1)), expected)


def test_images_of_one_channel_need_no_channel() -> None:
    model, images = ConvNet(outputs=2, widths=(8,)), torch.rand(2, 5, 5)

    assert torch.equal(model(images), model(images[:, None]))


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 4, 5, 5\). Set model.args.channels"):
        ConvNet(outputs=2, channels=3)(torch.rand(2, 4, 5, 5))
