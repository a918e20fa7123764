"""DINOv2 and CLIP against independent implementations, with random weights in small sizes of the same layouts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers import CPU
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, interpolate, layer_norm, linear
from torch_fidelity.feature_extractor_clip import VisionTransformer as OpenAIVisionTransformer

from soflow.config import parse
from soflow.config_base import ConfigError
from soflow.data.in_memory import InMemorySource
from soflow.evaluation import feature_networks, metrics, registry
from soflow.evaluation.fidelity import Batch, Evaluator
from soflow.evaluation.vision_transformers import CLIP, DINOv2

DEPTH = 2
pytestmark = pytest.mark.slow  # networks of 20 million weights


@pytest.fixture
def images() -> Tensor:
    """Four images [4, 3, 48, 40] with structure and noise, up to the ends of the scale."""
    random = np.random.default_rng(0)
    waves = 127 + 150 * np.sin(np.arange(48)[:, None] / 5 + np.arange(40) / 9 + np.arange(4)[:, None, None, None])
    noisy = waves + 20 * random.normal(size=(4, 3, 48, 40))
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture
def small(monkeypatch):
    """The two networks with fewer and narrower layers; the images are prepared for them as for the large ones."""
    sizes = {DINOv2: ("vit_small_patch14_dinov2", 384, 224), CLIP: ("vit_base_patch32_clip_quickgelu_224", 512, 224)}
    for network, (name, width, side) in sizes.items():
        options = {"depth": DEPTH}
        spec = dataclasses.replace(network.spec, name=name, num_features=width, side=side, options=options)
        monkeypatch.setattr(network, "spec", spec)
    for name, width in (("dinov2", 384), ("clip", 512)):
        info = dataclasses.replace(registry.FEATURE_NETWORKS[name], num_features=width)
        monkeypatch.setitem(registry.FEATURE_NETWORKS.included, name, info)


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(shape, generator=random) for name, shape in shapes.items()}


def dinov2_state(width: int = 384) -> dict[str, Tensor]:
    """Weights as DINOv2's authors name them, trained on a grid of 37 patches a side."""
    shapes = {"cls_token": (1, 1, width), "mask_token": (1, width), "pos_embed": (1, 1 + 37**2, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,)}
    layers = {"attn.qkv": 3 * width, "attn.proj": width, "mlp.fc1": 4 * width, "mlp.fc2": width}
    for block in range(DEPTH):
        for name, outputs in layers.items():
            inputs = 4 * width if name == "mlp.fc2" else width
            shapes |= {f"blocks.{block}.{name}.weight": (outputs, inputs), f"blocks.{block}.{name}.bias": (outputs,)}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{block}.{name}"] = (width,)
    return random_state(shapes | {"norm.weight": (width,), "norm.bias": (width,)})


def dinov2_features(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """DINOv2's normalized class token in float64, from the layers' definitions; uint8 images resized by Pillow."""
    state = {name: value.double() for name, value in state.items()}
    width, heads = state["cls_token"].shape[-1], 6
    resized = [Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC) for image in images]
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in resized]).permute(0, 3, 1, 2).double() / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double().reshape(2, 3, 1, 1)
    patches = torch.nn.functional.conv2d(
        (pixels - mean) / std, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14
    )
    grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, width).permute(0, 3, 1, 2)
    grid = interpolate(grid, scale_factor=16.1 / 37, mode="bicubic")
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches.flatten(2).mT], 1)
    x = x + torch.cat([state["pos_embed"][:, :1], grid.flatten(2).mT], 1)
    for number in range(DEPTH):
        block = {name.split(".", 2)[2]: v for name, v in state.items() if name.startswith(f"blocks.{number}.")}
        weights = {name: (block[f"{name}.weight"], block[f"{name}.bias"]) for name in ("attn.qkv", "attn.proj")}
        h = layer_norm(x, (width,), block["norm1.weight"], block["norm1.bias"], 1e-6)
        q, k, v = linear(h, *weights["attn.qkv"]).reshape(*h.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT / (width // heads) ** 0.5).softmax(-1) @ v
        x = x + block["ls1.gamma"] * linear(mixed.transpose(1, 2).flatten(2), *weights["attn.proj"])
        h = layer_norm(x, (width,), block["norm2.weight"], block["norm2.bias"], 1e-6)
        h = linear(gelu(linear(h, block["mlp.fc1.weight"], block["mlp.fc1.bias"])), block["mlp.fc2.weight"])
        x = x + block["ls2.gamma"] * (h + block["mlp.fc2.bias"])
    return layer_norm(x, (width,), state["norm.weight"], state["norm.bias"], 1e-6)[:, 0]


def largest_difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_dinov2_is_its_authors_network_on_pillow_s_images(small, images, tmp_path):
    state = dinov2_state()
    torch.save(state, tmp_path / "weights.pth")
    extractor = feature_networks.load("dinov2", ["features"], tmp_path / "weights.pth", CPU)
    found = feature_networks.layers_of(extractor, images, CPU)["features"]
    assert found.dtype == torch.float32
    # Pillow computes with 22 bits: one of 500 pixels may be a level off, of 255; the layers are float32.
    assert largest_difference(found, dinov2_features(state, images)) < 1e-3
    gray = images[:, :1]
    both = [
        feature_networks.layers_of(extractor, values, CPU)["features"] for values in (gray, gray.expand(-1, 3, -1, -1))
    ]
    assert torch.equal(*both)


@pytest.mark.parametrize("side", [8, 32, 300])
def test_images_are_resized_for_dinov2_as_pillow_does(small, side, tmp_path):
    torch.save(dinov2_state(), tmp_path / "weights.pth")
    network = feature_networks.load("dinov2", ["features"], tmp_path / "weights.pth", CPU)
    noise = torch.randint(0, 256, (2, 3, side, side + 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    levels = ((network.prepared(noise) * network.std + network.mean) * 255).round()
    resized = [Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC) for image in noise]
    expected = torch.stack([torch.from_numpy(np.array(image)) for image in resized]).permute(0, 3, 1, 2)
    difference = (levels - expected).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 0.002


def test_weights_that_are_not_clip_s_are_refused(small, tmp_path):
    path = tmp_path / "weights.pth"
    state = {f"visual.{name}": value for name, value in clip_network().state_dict().items()}
    positions = state["visual.positional_embedding"]
    for wrong, reason in (
        (state | {"visual.positional_embedding": positions[:17]}, "its images have 16 patches, not 49"),
        (torch.zeros(2), "it has a Tensor, not weights by name"),
    ):
        torch.save(wrong, path)
        with pytest.raises(ConfigError, match=f"feature_weights = .*: not the weights of clip .{reason}"):
            feature_networks.load("clip", ["features"], path, CPU)


def clip_network(state: dict[str, Tensor] | None = None) -> OpenAIVisionTransformer:
    torch.manual_seed(0)
    network = OpenAIVisionTransformer(224, 32, width=768, layers=DEPTH, heads=12, output_dim=512)
    return network.requires_grad_(False)


def test_clip_is_openai_s_network(small, images, tmp_path):
    network = clip_network()
    state = {f"visual.{name}": value.contiguous() for name, value in network.state_dict().items()}
    save_file(state | {"logit_scale": torch.tensor(1.0)}, tmp_path / "weights.safetensors")
    extractor = feature_networks.load("clip", ["features"], tmp_path / "weights.safetensors", CPU)
    found = feature_networks.layers_of(extractor, images, CPU)["features"]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    resized = interpolate(images.float() / 255, (224, 224), mode="bicubic")
    assert largest_difference(found, network((resized - mean) / std)) < 1e-5  # float32


@pytest.mark.parametrize(("numbers", "shift"), [((700, 600), 0.5), ((50, 40), 0.0)])
def test_cmmd_is_the_distance_of_its_definition(numbers, shift):
    random = np.random.default_rng(0)
    first, second = (random.normal(size=(number, 8)) for number in numbers)
    second[:, 0] += shift
    one, other = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (first, second))

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return np.exp(-((x[:, None] - y) ** 2).sum(2) / (2 * 10**2)).mean()

    expected = 1000 * (kernel(one, one) + kernel(other, other) - 2 * kernel(one, other))
    found = metrics.cmmd(torch.from_numpy(first).float(), torch.from_numpy(second).float())
    assert found == pytest.approx(expected, rel=1e-6)  # float32 features


def test_an_evaluation_has_what_the_network_measures_and_says_with_what(small, images, tmp_path):
    weights = {"dinov2": tmp_path / "dinov2.pth", "clip": tmp_path / "clip.pth"}
    torch.save(dinov2_state(), weights["dinov2"])
    torch.save({f"visual.{name}": value for name, value in clip_network().state_dict().items()}, weights["clip"])
    random = torch.Generator().manual_seed(1)
    stored = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=random)
    source = InMemorySource(stored.numpy(), np.arange(8) % 2, num_classes=2)
    for name, path in weights.items():
        config = parse({"evaluation": {"feature_network": name, "feature_weights": str(path)}})
        evaluator = Evaluator(source, config, CPU, tmp_path / "cache")
        found = evaluator.evaluate([Batch(torch.arange(8), stored.flip(3), torch.arange(8) % 2)])
        assert set(found) == {"fid", "kid", "kid_error", *(("cmmd",) if name == "clip" else ())}
        assert found["fid"] > 0
        facts = evaluator.protocol()
        assert facts["feature_network"] == name
        assert len(facts["feature_weights_sha256"]) == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_network": "dinov2"}, r"feature_weights = None: dinov2 needs a file; download https://dl\.fbai"),
        ({"feature_network": "clip", "feature_weights": "none.pt"}, "feature_weights = .*none.pt: no such file; downl"),
        (
            {"feature_network": "dinov2", "feature_weights": "clip.pth"},
            r"clip\.pth: not the weights of dinov2 \(.*Missing key.*: \"patch_embed\.proj\.bias\"",
        ),
        (
            {"feature_network": "clip", "inception_score": True},
            "inception_score = True: clip has no classes to predict",
        ),
    ],
)
def test_what_cannot_measure_is_one_line(small, settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({f"visual.{name}": value for name, value in clip_network().state_dict().items()}, "clip.pth")
    source = InMemorySource(np.zeros((8, 1, 8, 8), np.uint8), np.arange(8) % 2, num_classes=2)
    with pytest.raises(ConfigError, match=message) as caught:
        Evaluator(source, parse({"evaluation": settings}), CPU, tmp_path / "cache")
    assert "\n" not in str(caught.value)
