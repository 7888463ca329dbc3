import json

import pytest
import safetensors.torch
import torch
import torchvision.models
from composer.models import ComposerClassifier
from omegaconf import OmegaConf

from reuse_algos.data import DataConfig, dataloader_of, load_datasets
from reuse_algos.errors import ModelError
from reuse_algos.models import DigitsCNN, ModelConfig, build_model, model_names
from reuse_algos.models import torchvision_models as ours


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("config", "num_classes", "image_shape"),
    [
        (ModelConfig("resnet_small", width=8), 20, (3, 16, 16)),
        ({"name": "resnet20"}, 100, [3, 32, 32]),
        ({"name": "resnet_small", "width": 4, "depth": 26}, 10, (1, 8, 8)),
        ("digits_cnn", 10, (1, 8, 8)),
        ({"name": "digits_cnn", "autocast": "bfloat16"}, 10, (1, 8, 8)),
        ("resnet18", 5, (3, 32, 32)),
        ("squeezenet1_1", 5, (3, 32, 32)),
        ("vit_b_32", 5, (3, 32, 32)),
    ],
)
def test_a_model_is_rebuilt_from_its_reuse_config(config, num_classes, image_shape):
    model = build_model(config, num_classes, image_shape)
    assert isinstance(model, ComposerClassifier)
    again = build_model(json.loads(json.dumps(model.reuse_config)))
    assert shapes(again) == shapes(model)
    assert again.reuse_config == model.reuse_config
    again.load_state_dict(model.state_dict())
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    batch = images, torch.tensor([0, 1])
    with torch.no_grad():
        logits = model.eval()(batch)
        assert logits.shape == (2, num_classes)
        assert torch.equal(again.eval()(batch), logits)


def test_a_depth_is_the_network_of_that_name():
    assert shapes(build_model({"name": "resnet_small", "depth": 20}, 10, (3, 32, 32))) == shapes(
        build_model("resnet20", 10, (3, 32, 32))
    )
    deep = build_model({"name": "resnet_small", "depth": 50}, 10, (3, 32, 32)).module
    layers = [one for one in deep.modules() if isinstance(one, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(layers) == 50


def test_autocast_is_torchs_around_the_network_with_float32_logits():
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(4, 1, 8, 8, generator=generator), torch.tensor([0, 1, 2, 3])
    model = build_model({"name": "digits_cnn", "autocast": "bfloat16"}, 10, (1, 8, 8)).train()
    logits = model(batch)
    assert logits.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        by_hand = model.module(batch[0])
    assert by_hand.dtype == torch.bfloat16
    assert torch.equal(logits, by_hand.float())
    assert not torch.equal(logits, model.module(batch[0]))
    model.loss(logits, batch).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    with pytest.raises(ModelError, match=r"model.autocast: 'bf16' is none of bfloat16, float16"):
        build_model({"name": "digits_cnn", "autocast": "bf16"}, 10, (1, 8, 8))


def test_metrics_and_loss_are_those_of_composer():
    model = build_model("digits_cnn", 10, (1, 8, 8))
    assert list(model.get_metrics(is_train=True)) == ["MulticlassAccuracy"]
    assert sorted(model.get_metrics(is_train=False)) == ["CrossEntropy", "MulticlassAccuracy"]
    assert model.get_metrics(is_train=True)["MulticlassAccuracy"].average == "micro"
    logits, targets = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3, 4])
    expected = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(model.loss(logits, (torch.empty(0), targets)), expected)


def test_initial_weights_come_from_the_global_generator():
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(build_model("resnet8", 10, (3, 32, 32)).module.conv1.weight)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def test_resnet_small_is_resnet8():
    assert shapes(build_model("resnet_small", 10, (3, 32, 32))) == shapes(build_model("resnet8", 10, (3, 32, 32)))


def test_torchvision_models_get_a_new_head_and_stay_as_they_are():
    torch.manual_seed(0)
    module = build_model("resnet18", 7, (3, 32, 32)).module
    torch.manual_seed(0)
    reference = torchvision.models.resnet18(num_classes=7)
    assert module.training
    for key, value in reference.state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key
    assert module.fc.out_features == 7


def test_models_with_auxiliary_heads_give_logits_in_training():
    model = build_model("googlenet", 5, (3, 64, 64))
    assert model((torch.rand(2, 3, 64, 64), torch.tensor([0, 1]))).shape == (2, 5)
    assert not model.module.transform_input


def test_pretrained_transformer_refuses_another_size(monkeypatch):
    pretrained = torchvision.models.vit_b_32(num_classes=1000).state_dict()
    monkeypatch.setattr(torchvision.models.ViT_B_32_Weights, "get_state_dict", lambda *_args, **_options: pretrained)
    with pytest.raises(ModelError, match=r"images of another size: encoder\.pos_embedding is \(1, 50, 768\)"):
        build_model({"name": "vit_b_32", "weights": "DEFAULT"}, 5, (3, 32, 32))


def test_pretrained_weights_keep_all_but_the_head(monkeypatch):
    pretrained = torchvision.models.resnet18(num_classes=1000).state_dict()
    weights = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda *_args, **_options: pretrained)
    model = build_model({"name": "resnet18", "weights": "DEFAULT"}, 7, (3, 64, 64))
    state = model.module.state_dict()
    assert all(torch.equal(state[key], pretrained[key]) for key in state if not key.startswith("fc."))
    assert state["fc.weight"].shape == (7, 512)
    assert "weights" not in model.reuse_config
    whole = build_model({"name": "resnet18", "weights": "IMAGENET1K_V1"}, 1000, (3, 64, 64)).module.state_dict()
    assert all(torch.equal(whole[key], pretrained[key]) for key in whole)

    def unreachable(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setattr(weights, "get_state_dict", unreachable)
    with pytest.raises(ModelError, match="could not be fetched: no network"):
        build_model({"name": "resnet18", "weights": "DEFAULT"}, 7, (3, 64, 64))


@pytest.mark.parametrize("whole_model", [True, False])
def test_weights_from_a_safetensors_file(tmp_path, whole_model):
    source = build_model("resnet8", 10, (3, 32, 32))
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file((source if whole_model else source.module).state_dict(), path)
    model = build_model({"name": "resnet8", "weights_path": str(path)}, 10, (3, 32, 32))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(ModelError, match="do not fit the model"):
        build_model({"name": "resnet8", "weights_path": str(path)}, 11, (3, 32, 32))
    transferred = build_model({"name": "resnet8", "weights_path": str(path), "new_head": True}, 11, (3, 32, 32))
    for key, value in transferred.state_dict().items():
        if key.startswith("module.fc"):
            assert value.shape[0] == 11
        else:
            assert torch.equal(value, source.state_dict()[key])
    with pytest.raises(ModelError, match="do not fit the model"):
        build_model({"name": "resnet20", "weights_path": str(path), "new_head": True}, 10, (3, 32, 32))
    path.write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot be read as a safetensors file"):
        build_model({"name": "resnet8", "weights_path": str(path)}, 10, (3, 32, 32))
    with pytest.raises(ModelError, match="cannot be read"):
        build_model({"name": "resnet8", "weights_path": str(tmp_path / "none")}, 10, (3, 32, 32))


@pytest.mark.parametrize(
    ("config", "num_classes", "image_shape", "message"),
    [
        ("resnet21", 10, (3, 32, 32), r"unknown model 'resnet21'. Did you mean 'resnet"),
        ({"name": "resnet20", "widht": 8}, 10, (3, 32, 32), r"model\.widht: unknown setting\. Did you mean 'width'"),
        ("resnet20", None, (3, 32, 32), "num_classes and image_shape must be given"),
        ("resnet20", 10, None, "num_classes and image_shape must be given"),
        ("resnet20", 10, (32, 32), r"image_shape must be \(channels, height, width\)"),
        ("resnet20", 1, (3, 32, 32), "at least 2 classes"),
        ({"name": "resnet20", "width": 0}, 10, (3, 32, 32), "1 or more, not 0"),
        ({"name": "resnet_small", "depth": 49}, 10, (3, 32, 32), r"model.depth: .* 6 n \+ 2 layers, .* not 49"),
        ({"name": "resnet_small", "depth": 2}, 10, (3, 32, 32), "such as 8, 20 or 50, not 2"),
        ({"name": "resnet20", "depth": 20}, 10, (3, 32, 32), "'resnet20' has a depth of its own"),
        ({"name": "resnet20", "weights": "DEFAULT"}, 10, (3, 32, 32), "no published weights"),
        ({"name": "resnet18", "width": 8}, 10, (3, 32, 32), "fixed width"),
        ("resnet18", 10, (1, 28, 28), "cannot take images of 1 x 28 x 28"),
        ("alexnet", 10, (3, 32, 32), "cannot take images of 3 x 32 x 32"),
        ("vit_b_32", 10, (3, 40, 40), "cannot take images of 3 x 40 x 40"),
        ({"name": "resnet18", "weights": "IMAGENET1K"}, 10, (3, 32, 32), "no weights 'IMAGENET1K'.* Did you mean"),
        ({"name": "googlenet", "weights": "DEFAULT"}, 10, (3, 64, 64), "take another model"),
    ],
)
def test_what_cannot_be_built_is_refused(config, num_classes, image_shape, message):
    with pytest.raises(ModelError, match=message):
        build_model(config, num_classes, image_shape)


def test_arguments_win_over_the_mapping():
    config = build_model("resnet8", 10, (3, 32, 32)).reuse_config
    assert build_model(config, num_classes=4).reuse_config == {**config, "num_classes": 4}


def test_names_and_structured_config():
    names = model_names()
    assert {"resnet56", "digits_cnn", "resnet50", "efficientnet_b0"} <= set(names)
    assert len(names) == len(set(names))
    assert set(ours.torchvision_model_names()) == set(torchvision.models.list_models(module=torchvision.models))
    section = OmegaConf.merge(OmegaConf.structured(ModelConfig), {"name": "resnet8", "width": 8})
    assert OmegaConf.to_object(section) == ModelConfig("resnet8", 8)


def test_digits_cnn_learns_the_digits_within_seconds():
    torch.manual_seed(0)
    model = build_model("digits_cnn", 10, (1, 8, 8))
    assert 20_000 < sum(parameter.numel() for parameter in model.parameters()) < 40_000
    assert isinstance(model.module, DigitsCNN)
    loaded = load_datasets(DataConfig(batch_size=64))
    steps = 8 * len(loaded.train) // 64  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps + 8)
    order = torch.Generator().manual_seed(0)
    for _ in range(8):
        positions = torch.randperm(len(loaded.train), generator=order).tolist()  # type: ignore[arg-type]
        for batch in dataloader_of(loaded.train, 64, positions, drop_last=True):  # type: ignore[arg-type]
            optimizer.zero_grad()
            model.loss(model(batch), batch).backward()
            optimizer.step()
            schedule.step()
    images, labels = next(iter(dataloader_of(loaded.eval, 360)))  # type: ignore[arg-type]
    with torch.no_grad():
        accuracy = (model.eval()((images, labels)).argmax(1) == labels).float().mean()
    assert accuracy > 0.97
