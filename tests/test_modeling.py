"""The model against transformers' and timm's ViT, which compute the same from the same weights."""

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification
from transformers.integrations import sdpa_attention

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification

WIDE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}


def make(seed=0, dtype=torch.float32, attn="eager", **fields):
    torch.manual_seed(seed)
    model = VitMnistForImageClassification(VitMnistConfig(attn_implementation=attn, **fields)).to(dtype)
    with torch.no_grad():  # biases start as zeros and LayerNorms as ones, which would hide errors
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch(size=5, dtype=torch.float32, side=28, channels=1):
    generator = torch.Generator().manual_seed(size)
    pixel_values = torch.randn(size, channels, side, side, generator=generator, dtype=torch.float64).to(dtype)
    return pixel_values, torch.randint(10, (size,), generator=generator)


def in_tree_names(model) -> dict[str, list[str]]:
    """Our parameter names to transformers' (three for the fused projection to queries, keys and values)."""
    names = {"vit.cls_token": ["vit.embeddings.cls_token"], "vit.pos_embed": ["vit.embeddings.position_embeddings"]}
    for end in ("weight", "bias"):
        names[f"vit.patch_embed.proj.{end}"] = [f"vit.embeddings.patch_embeddings.projection.{end}"]
        names[f"vit.norm.{end}"] = [f"vit.layernorm.{end}"]
        names[f"head.{end}"] = [f"classifier.{end}"]
        for i in range(model.config.num_hidden_layers):
            ours, theirs = f"vit.blocks.{i}", f"vit.layers.{i}"
            names[f"{ours}.attn.qkv.{end}"] = [f"{theirs}.attention.{x}_proj.{end}" for x in "qkv"]
            names[f"{ours}.attn.proj.{end}"] = [f"{theirs}.attention.o_proj.{end}"]
            names[f"{ours}.norm1.{end}"] = [f"{theirs}.layernorm_before.{end}"]
            names[f"{ours}.norm2.{end}"] = [f"{theirs}.layernorm_after.{end}"]
            names[f"{ours}.mlp.fc1.{end}"] = [f"{theirs}.mlp.fc1.{end}"]
            names[f"{ours}.mlp.fc2.{end}"] = [f"{theirs}.mlp.fc2.{end}"]
    return {ours: theirs for ours, theirs in names.items() if ours in dict(model.named_parameters())}


def in_tree_twin(model, attn="eager") -> ViTForImageClassification:
    config = model.config
    twin = ViTForImageClassification(
        ViTConfig(
            **{
                name: getattr(config, name)
                for name in (
                    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
                    "layer_norm_eps", "image_size", "patch_size", "num_channels", "qkv_bias", "num_labels",
                )
            },
            attn_implementation=attn,
        )
    )  # fmt: skip
    state = {}
    for ours, theirs in in_tree_names(model).items():
        state |= zip(theirs, model.state_dict()[ours].chunk(len(theirs)), strict=True)
    twin.to(model.dtype).load_state_dict(state)
    return twin.eval()


@pytest.mark.parametrize("fields", [{}, WIDE, {"qkv_bias": False, "patch_size": 4, "hidden_act": "relu"}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equals_in_tree_vit(fields, dtype, tolerance):
    model = make(dtype=dtype, **fields)
    # In float64 against sdpa: the eager attention of transformers' ViT takes its softmax in float32.
    twin = in_tree_twin(model, attn="eager" if dtype == torch.float32 else "sdpa")
    pixel_values, labels = batch(dtype=dtype)
    ours = model(pixel_values, labels=labels, output_hidden_states=True, output_attentions=True)
    theirs = twin(pixel_values, labels=labels, output_hidden_states=True, output_attentions=dtype == torch.float32)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=tolerance)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=0, atol=tolerance)
    torch.testing.assert_close(ours.hidden_states, theirs.hidden_states, rtol=0, atol=tolerance)
    if dtype == torch.float32:
        torch.testing.assert_close(ours.attentions, theirs.attentions, rtol=0, atol=tolerance)

    # With nothing recorded, the last block computes only the CLS token.
    short = model(pixel_values, labels=labels)
    torch.testing.assert_close(short.logits, theirs.logits, rtol=0, atol=tolerance)
    theirs.loss.backward()
    for loss in (ours.loss, short.loss):
        model.zero_grad()
        loss.backward()
        assert_gradients_equal(model, twin, tolerance)


def assert_gradients_equal(model, twin, tolerance):
    gradients = {name: parameter.grad for name, parameter in twin.named_parameters()}
    for name, others in in_tree_names(model).items():
        expected = torch.cat([gradients[other] for other in others])
        torch.testing.assert_close(model.get_parameter(name).grad, expected, rtol=0, atol=tolerance)


def test_equals_timm():
    try:
        from timm.models.vision_transformer import VisionTransformer
    except Exception as error:  # a torchvision of another build raises RuntimeError
        pytest.skip(f"timm cannot be imported: {error}")
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = make(dtype=dtype)
        twin = VisionTransformer(
            img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2,
        ).to(dtype).eval()  # fmt: skip
        twin.load_state_dict({name.removeprefix("vit."): value for name, value in model.state_dict().items()})
        pixel_values, labels = batch(dtype=dtype)
        loss = model(pixel_values, labels=labels).loss
        logits = twin(pixel_values)
        torch.testing.assert_close(model(pixel_values).logits, logits, rtol=0, atol=tolerance)
        loss.backward()
        nn.functional.cross_entropy(logits, labels).backward()
        for name, parameter in twin.named_parameters():
            ours = model.get_parameter(name if name.startswith("head") else f"vit.{name}")
            torch.testing.assert_close(ours.grad, parameter.grad, rtol=0, atol=tolerance)


def test_has_1850_parameters():
    # Patches 8*49+8, CLS 8, positions 17*8. Per block: norms 32, qkv 216, proj 72, MLP 144+136. Norm 16, head 90.
    assert make().num_parameters() == 400 + 8 + 136 + 2 * (32 + 216 + 72 + 280) + 16 + 90 == 1850


def test_cls_only_returns_the_cls_token():
    model, (pixel_values, _) = make().vit, batch()
    whole, short = model(pixel_values), model(pixel_values, cls_only=True)
    assert short.last_hidden_state.shape == (5, 1, 8)
    torch.testing.assert_close(short.pooler_output, whole.pooler_output)


@pytest.mark.parametrize("attn", ["sdpa", "flex_attention"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()  # flex attention has no backward pass on CPUs
def test_attention_implementations_agree(attn):
    pixel_values, _ = batch()
    expected = make(**WIDE)(pixel_values).logits
    with torch.compiler.set_stance("force_eager"):  # transformers compiles flex attention, which takes seconds
        logits = make(attn=attn, **WIDE)(pixel_values).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_outputs_have_the_documented_shapes():
    model, (pixel_values, labels) = make(), batch()
    output = model(pixel_values, labels=labels, output_hidden_states=True, output_attentions=True)
    assert output.logits.shape == (5, 10)
    assert [tuple(state.shape) for state in output.hidden_states] == [(5, 17, 8)] * 3
    assert [tuple(attention.shape) for attention in output.attentions] == [(5, 2, 17, 17)] * 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(5, 2, 17))
    encoded = model.vit(pixel_values)
    assert encoded.last_hidden_state.shape == (5, 17, 8)
    assert torch.equal(encoded.pooler_output, encoded.last_hidden_state[:, 0])
    loss, logits = model(pixel_values, labels=labels, return_dict=False)
    torch.testing.assert_close((loss, logits), (output.loss, output.logits))


def test_attentions_under_sdpa_are_empty_as_in_tree(monkeypatch):
    model, (pixel_values, _) = make(attn="sdpa"), batch()
    twin = in_tree_twin(model, attn="sdpa")
    for part in (twin, twin.vit, model, model.vit):
        messages = []
        monkeypatch.setattr(sdpa_attention.logger, "warning_once", messages.append)
        assert part(pixel_values, output_attentions=True).attentions == ()
        assert len(messages) == 2 and "`sdpa` attention does not support `output_attentions=True`" in messages[0]
    model.set_attn_implementation("eager")
    assert len(model(pixel_values, output_attentions=True).attentions) == 2


@pytest.fixture
def count_tokens(monkeypatch):
    """A function that classifies images and returns the logits and the number of tokens the last block computes."""

    def run(model, pixel_values):
        mlp, found = model.vit.blocks[-1].mlp, []
        with monkeypatch.context() as patch:
            patch.setattr(
                mlp, "forward", lambda states: found.append(states.shape[1]) or type(mlp).forward(mlp, states)
            )
            logits = model(pixel_values).logits
        (tokens,) = found
        return logits, tokens

    return run


HOOKED = ["vit", "vit.norm", "vit.blocks.1", "vit.blocks.1.norm1", "vit.blocks.1.attn", "vit.blocks.1.attn.qkv"]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("name", HOOKED)
def test_forward_hooks_get_all_tokens(name, attn, count_tokens):
    model, (pixel_values, _) = make(attn=attn), batch()
    expected, tokens = count_tokens(model, pixel_values)
    assert tokens == 1
    module, seen = model.get_submodule(name), []

    def hook(module, inputs, output=None):
        output = inputs if output is None else output
        seen.append((output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", output)).shape)

    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        handle = register(hook)
        logits, tokens = count_tokens(model, pixel_values)
        handle.remove()
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
        assert tokens == 17
    assert [shape[1] for shape in seen] == ([17, 1] if name == "vit" else [17, 17])  # an image has one channel
    assert count_tokens(model, pixel_values)[1] == 1


@pytest.mark.parametrize("name", HOOKED[1:])  # the output of vit is no tensor
def test_backward_hooks_get_the_gradients_of_all_tokens(name, count_tokens):
    model, (pixel_values, labels) = make(), batch()
    expected, _ = count_tokens(model, pixel_values)
    model(pixel_values, labels=labels).loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    seen = []
    handle = model.get_submodule(name).register_full_backward_hook(
        lambda module, inputs, outputs: seen.append(next(grad for grad in outputs if grad is not None))
    )
    logits, tokens = count_tokens(model, pixel_values)
    nn.functional.cross_entropy(logits, labels).backward()
    handle.remove()
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], gradients, rtol=0, atol=1e-6)
    assert tokens == 17 and [grad.shape[:2] for grad in seen] == [(5, 17)]
    assert count_tokens(model, pixel_values)[1] == 1


def test_grad_cam_at_the_last_block():
    """Gradients of a logit with respect to what a layer computes for each token, as Grad-CAM uses them."""
    model, (pixel_values, _) = make(), batch()
    block = model.vit.blocks[-1]
    for layer in (block, block.norm1):
        kept = []
        handle = layer.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
        logits = model(pixel_values).logits
        handle.remove()
        (gradients,) = torch.autograd.grad(logits[:, 3].sum(), kept)
        assert gradients.shape == kept[0].shape == (5, 17, 8)
        # Only the CLS token leads from the block to the logits. Before its attention, all tokens do.
        reached = gradients.any(-1)
        assert reached[:, 0].all() and torch.equal(reached[:, 1:], torch.full((5, 16), layer is block.norm1))


def test_one_token_is_computed_again_after_outputs_were_recorded(count_tokens):
    model, (pixel_values, _) = make(), batch()
    expected, _ = count_tokens(model, pixel_values)
    model(pixel_values, output_hidden_states=True, output_attentions=True)
    logits, tokens = count_tokens(model, pixel_values)  # transformers' hooks stay
    assert torch.equal(logits, expected) and tokens == 1


def test_num_items_in_batch_averages_over_accumulated_batches():
    model, (pixel_values, labels) = make(), batch(8)
    whole = model(pixel_values, labels=labels).loss
    parts = [model(pixel_values[s], labels=labels[s], num_items_in_batch=8).loss for s in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("size", [0, 1])
def test_smallest_batches(size):
    pixel_values, _ = batch(size)
    for attn in ("eager", "sdpa"):
        assert make(attn=attn)(pixel_values).logits.shape == (size, 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    pixel_values, labels = batch()
    expected = make()(pixel_values, labels=labels)
    model = make().to(dtype)
    output = model(pixel_values, labels=labels)  # float32 in: cast by the model
    assert output.logits.dtype == dtype and output.loss.dtype == torch.float32
    torch.testing.assert_close(output.logits.float(), expected.logits, rtol=0, atol=0.1)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_autocast():
    model, (pixel_values, labels) = make(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pixel_values, labels=labels)
    torch.testing.assert_close(output.logits.float(), model(pixel_values).logits, rtol=0, atol=0.1)
    assert output.loss.dtype == torch.float32


def test_compiles_as_one_graph():
    model, (pixel_values, labels) = make(attn="sdpa"), batch()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixel_values, labels=labels).loss, model(pixel_values, labels=labels).loss)
    model.vit.norm.register_forward_hook(lambda module, inputs, output: output.detach())
    torch.testing.assert_close(compiled(pixel_values).logits, model(pixel_values).logits)


def test_activation_checkpointing_keeps_gradients():
    pixel_values, labels = batch()
    gradients = []
    for checkpointing in (False, True):
        model = make().train()
        if checkpointing:
            getattr(
                model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
            )()  # newer, older name
        model(pixel_values, labels=labels).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_other_image_sizes_give_the_logits_of_the_in_tree_vit():
    model = make()
    pixel_values, _ = batch(side=42)
    expected = in_tree_twin(model)(pixel_values, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(model(pixel_values, interpolate_pos_encoding=True).logits, expected, rtol=0, atol=1e-5)
    same_size, _ = batch()
    assert torch.equal(model(same_size, interpolate_pos_encoding=True).logits, model(same_size).logits)
    wide = torch.randn(2, 1, 28, 49)
    assert model(wide, interpolate_pos_encoding=True).logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 28, 28), r"\(batch, 1, height, width\), got \(2, 3, 28, 28\)"),
        ((28, 28), r"got \(28, 28\)"),
        ((2, 1, 30, 30), "multiples of the patch size 7, got 30x30"),
        ((2, 1, 35, 35), "takes images of 28x28, got 35x35"),
    ],
)
def test_wrong_shapes_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        make()(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_images_that_were_not_normalized_are_refused(dtype):
    model, images = make(), torch.ones(2, 1, 28, 28, dtype=dtype)
    for part in (model, model.vit):
        with pytest.raises(ValueError, match=f"pixel_values must be normalized floats.*got {dtype}"):
            part(images)


@pytest.mark.parametrize("option", ["bool_masked_pos", "head_mask"])
def test_options_of_the_in_tree_vit_are_not_ignored(option):
    model, (pixel_values, _) = make(), batch()
    for part in (model, model.vit):
        with pytest.raises(ValueError, match=f"This model has no {option}"):
            part(pixel_values, **{option: torch.ones(5, 16, dtype=torch.bool)})
        part(pixel_values, **{option: None})


def test_labels_are_not_broadcast_in_regression():
    model, (pixel_values, _) = make(num_labels=5, problem_type="regression"), batch()
    assert model(pixel_values, labels=torch.zeros(5, 5)).loss > 0
    with pytest.raises(ValueError, match=r"labels of shape \(5, 5\), got \(5,\)"):
        model(pixel_values, labels=torch.zeros(5))


@pytest.mark.parametrize("initializer", ["xavier_uniform", "trunc_normal"])
def test_initialization(initializer):
    torch.manual_seed(0)
    width = 240
    config = VitMnistConfig(
        hidden_size=width, num_attention_heads=2, initializer=initializer, initializer_range=0.05, num_hidden_layers=1
    )
    model = VitMnistForImageClassification(config)
    block = model.vit.blocks[0]
    fans = {
        block.attn.qkv: (width, 3 * width),
        block.mlp.fc1: (width, 2 * width),
        model.vit.patch_embed.proj: (49, width),
    }
    for module, (fan_in, fan_out) in fans.items():
        # Glorot: variance 2 / (fan_in + fan_out). A normal distribution cut at 2 sigma keeps 0.88 of its std.
        expected = (2 / (fan_in + fan_out)) ** 0.5 if initializer == "xavier_uniform" else 0.05 * 0.88
        assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert not module.bias.any()
    assert model.vit.pos_embed.std().item() == pytest.approx(0.05 * 0.88, rel=0.1)
    assert (model.vit.norm.weight == 1).all() and model.vit.cls_token.any()
